//! configuration.toml: read, then understood.
