//! System calls: the one place for unsafe code. Everything here is a thin, safe function over one call or a few
//! that belong together; policy lives with the callers.
