//! System calls: the one place for unsafe code.
