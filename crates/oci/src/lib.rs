//! The OCI runtime specification as serde structs.
