//! The OCI command line: a client of the sandbox's daemon.
