//! The state of a container as `state` prints it and hooks get it on stdin (runtime.md, "State").

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Where a container is in its lifecycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Being made.
    Creating,
    /// Made, its process not started.
    Created,
    /// Its process runs.
    Running,
    /// Its process is frozen (runc's addition).
    Paused,
    /// Its process has ended.
    Stopped,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        })
    }
}

/// The state object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// The specification's version.
    pub oci_version: String,
    /// The container.
    pub id: String,
    /// Where it is.
    pub status: Status,
    /// The host's process that stands for it; 0 when there is none.
    pub pid: i32,
    /// Absolute path of the bundle.
    pub bundle: String,
    /// From the spec.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}
