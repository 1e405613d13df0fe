//! The OCI runtime specification (1.0 to 1.2) as serde structs: what a `config.json` says, what `state` answers.
//!
//! Only what a runtime on Linux reads is here. Unknown fields are ignored, as the specification demands
//! (config.md, "Extensibility"). Structs are written by us: the `oci-spec` crate would add 2 MB.

mod example;
mod linux;
mod load;
mod process;
mod state;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use example::example_spec;
pub use linux::{
    BlockIo, Cpu, DeviceCgroup, HugepageLimit, IdMapping, Linux, LinuxDevice, Memory, Namespace, Pids, Resources,
    ThrottleDevice, WeightDevice,
};
pub use load::{LoadError, load_process, load_spec};
pub use process::{Capabilities, ConsoleSize, Process, Rlimit, User};
pub use state::{State, Status};

/// The version of the specification that this runtime writes (`ociVersion`).
pub const OCI_VERSION: &str = "1.0.2";

/// `config.json` (config.md).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// The specification's version that this file follows.
    pub oci_version: String,
    /// The container's first process; absent only where the container is never started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// The root file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<Root>,
    /// Host name inside.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// NIS domain name inside.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domainname: String,
    /// Mounts beside the root, in order.
    #[serde(deserialize_with = "null_is_default")]
    pub mounts: Vec<Mount>,
    /// Programs to run at points of the lifecycle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Hooks>,
    /// Free-form metadata.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What is specific to Linux.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub linux: Option<Linux>,
}

/// The root file system (config.md, "Root").
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Root {
    /// Absolute, or relative to the bundle.
    pub path: String,
    /// Whether the container sees it read-only.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub readonly: bool,
}

/// One mount (config.md, "Mounts").
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    /// Where, in the container.
    pub destination: String,
    /// File system type; "bind" or empty with the option `bind` or `rbind` for a bind mount.
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// What.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// As in fstab.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Mount {
    /// Whether this is a bind mount (config.md: by its options; many writers say so in the type).
    pub fn is_bind(&self) -> bool {
        self.kind == "bind" || self.options.iter().any(|o| o == "bind" || o == "rbind")
    }

    /// Whether a bind takes the mounts below its source along.
    pub fn is_recursive(&self) -> bool {
        !self.options.iter().any(|o| o == "bind")
    }

    /// Whether it is to be read-only.
    pub fn is_read_only(&self) -> bool {
        self.options.iter().rev().find_map(|o| match o.as_str() {
            "ro" | "rro" => Some(true),
            "rw" | "rrw" => Some(false),
            _ => None,
        }) == Some(true)
    }
}

/// Hooks by lifecycle point (config.md, "POSIX-platform Hooks").
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hooks {
    /// Before the user's process, in the runtime's namespaces (deprecated, still used).
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub prestart: Vec<Hook>,
    /// After the environment exists, in the runtime's namespaces.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub create_runtime: Vec<Hook>,
    /// The same, in the container's namespaces.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub create_container: Vec<Hook>,
    /// During start, in the container's namespaces.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub start_container: Vec<Hook>,
    /// After the process has started, in the runtime's namespaces.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub poststart: Vec<Hook>,
    /// After the container is deleted, in the runtime's namespaces.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub poststop: Vec<Hook>,
}

/// One hook.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hook {
    /// Absolute path of the program.
    pub path: String,
    /// Its argv, with `argv[0]`.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Its whole environment.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Seconds before it is killed; absent means no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
}

/// Go writes nil slices and maps as `null`.
pub(crate) fn null_is_default<'de, D, T>(d: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_and_unknown_fields_do_no_harm_and_numbers_may_be_pointers() {
        let spec: Spec = serde_json::from_str(
            r#"{"ociVersion":"1.2.0","mounts":null,"annotations":null,"future":{"x":1},
                "process":{"args":["a"],"cwd":"/","user":{"uid":0,"gid":0,"additionalGids":null},"capabilities":null},
                "linux":{"resources":{"memory":{"limit":1048576,"swap":-1},"cpu":{"shares":2},"devices":null},
                         "namespaces":[{"type":"pid"},{"type":"network","path":"/x"}]}}"#,
        )
        .unwrap();
        let linux = spec.linux.unwrap();
        let resources = linux.resources.unwrap();
        assert_eq!(resources.memory.unwrap().swap, Some(-1));
        assert_eq!(linux.namespaces[1].path, "/x");
    }

    #[test]
    fn the_last_of_ro_and_rw_counts() {
        let m = |o: &[&str]| Mount { options: o.iter().map(|s| (*s).to_owned()).collect(), ..Mount::default() };
        assert!(m(&["rbind", "ro"]).is_read_only());
        assert!(!m(&["ro", "rw"]).is_read_only());
        assert!(m(&["rbind"]).is_bind() && m(&["rbind"]).is_recursive() && !m(&["bind"]).is_recursive());
        assert!(!m(&["nosuid"]).is_bind());
    }
}
