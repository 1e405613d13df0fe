//! Whole-system tests: each drives a real engine, or our own command line, starts real VMs, and checks that nothing is
//! left behind. `cargo xtask test` runs them, as root; see `tests/`. What they stand on is `kata-testkit`.
