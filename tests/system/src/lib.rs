//! Whole-system tests on real engines.
