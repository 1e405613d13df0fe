//! Which sandbox a container belongs to, as its engine says: by annotations, or by the namespaces that it joins. Pure.
//!
//! | engine | sandbox | container |
//! |---|---|---|
//! | containerd's CRI plugin | `io.kubernetes.cri.container-type` = `sandbox` | `container`, with `io.kubernetes.cri.sandbox-id` |
//! | CRI-O | `io.kubernetes.cri-o.ContainerType` = `sandbox` | `container`, with `io.kubernetes.cri-o.SandboxID` |
//! | dockershim | `io.kubernetes.docker.type` = `podsandbox` | `container`, with `io.kubernetes.sandbox.id` |
//! | podman | no annotation: the command is `catatonit -P` or `pause` | as CRI-O |

use std::path::Path;

use kata_oci::Spec;
use kata_types::{IdError, SandboxId};
use thiserror::Error;

/// What a container is to its sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// It has a sandbox of its own, unless it joins somebody's namespaces ([`joined_pids`]).
    Single,
    /// It stands for a pod's sandbox and does nothing itself: the pause container.
    Sandbox,
    /// It lives in the sandbox of this id.
    Container {
        /// Whose container stands for the sandbox.
        sandbox: SandboxId,
    },
}

/// Why annotations do not say it.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum RoleError {
    /// A value that no engine writes.
    #[error("the annotation {key} is {value:?}; \"{sandbox}\" and \"container\" are what it may be")]
    Type {
        /// The annotation.
        key: &'static str,
        /// What it says.
        value: String,
        /// How this engine says sandbox.
        sandbox: &'static str,
    },
    /// Half of what is needed.
    #[error(
        "the annotation {type_key} says that this is a container of a pod, but {id_key} does not name the pod's sandbox"
    )]
    NoSandbox {
        /// The annotation that is there.
        type_key: &'static str,
        /// The one that is missing.
        id_key: &'static str,
    },
    /// A sandbox's id that is none.
    #[error("the annotation {key}: {source}")]
    Id {
        /// The annotation.
        key: &'static str,
        /// What is wrong with it.
        source: IdError,
    },
}

/// How one engine writes it.
struct Dialect {
    type_key: &'static str,
    sandbox: &'static str,
    id_key: &'static str,
}

const CONTAINER: &str = "container";
const DIALECTS: [Dialect; 3] = [
    Dialect {
        type_key: "io.kubernetes.cri.container-type",
        sandbox: "sandbox",
        id_key: "io.kubernetes.cri.sandbox-id",
    },
    Dialect {
        type_key: "io.kubernetes.cri-o.ContainerType",
        sandbox: "sandbox",
        id_key: "io.kubernetes.cri-o.SandboxID",
    },
    Dialect { type_key: "io.kubernetes.docker.type", sandbox: "podsandbox", id_key: "io.kubernetes.sandbox.id" },
];

/// Reads a spec.
///
/// # Errors
/// [`RoleError`] where annotations contradict themselves.
pub fn role(spec: &Spec) -> Result<Role, RoleError> {
    for d in &DIALECTS {
        let Some(value) = spec.annotations.get(d.type_key) else { continue };
        if value == d.sandbox {
            return Ok(Role::Sandbox);
        }
        if value != CONTAINER {
            return Err(RoleError::Type { key: d.type_key, value: value.clone(), sandbox: d.sandbox });
        }
        let Some(id) = spec.annotations.get(d.id_key) else {
            return Err(RoleError::NoSandbox { type_key: d.type_key, id_key: d.id_key });
        };
        // A podman pod without an infra container has the pod's own id here, which is nobody's sandbox, and joins nothing.
        if is_podmans(spec) && !joins_any(spec) {
            return Ok(Role::Single);
        }
        let sandbox = SandboxId::new(id.clone()).map_err(|source| RoleError::Id { key: d.id_key, source })?;
        return Ok(Role::Container { sandbox });
    }
    Ok(if is_podmans(spec) && only_waits(spec) { Role::Sandbox } else { Role::Single })
}

/// The processes of the host whose namespaces a spec joins: the kinds ("pid", "network", ...) and pids of its paths of the form
/// `/proc/PID/ns/NAME`, by which engines say "with that container".
pub fn joined_pids(spec: &Spec) -> Vec<(String, i32)> {
    let namespaces = spec.linux.iter().flat_map(|l| &l.namespaces);
    namespaces.filter_map(|n| Some((n.kind.clone(), pid_of(&n.path)?))).collect()
}

/// The pid of a path `/proc/PID/ns/NAME`.
pub(crate) fn pid_of(path: &str) -> Option<i32> {
    let (pid, name) = path.strip_prefix("/proc/")?.split_once("/ns/")?;
    (!name.is_empty() && !name.contains('/')).then_some(())?;
    pid.parse().ok().filter(|pid| *pid > 0)
}

fn joins_any(spec: &Spec) -> bool {
    spec.linux.iter().flat_map(|l| &l.namespaces).any(|n| !n.path.is_empty())
}

fn is_podmans(spec: &Spec) -> bool {
    spec.annotations.get("io.container.manager").is_some_and(|manager| manager == "libpod")
}

/// podman's infra container, whose command is catatonit in its pausing mode, or the pause image's. One with a command of
/// the user's runs as any container does.
fn only_waits(spec: &Spec) -> bool {
    let args = spec.process.iter().flat_map(|p| &p.args).map(String::as_str).collect::<Vec<_>>();
    let Some((program, rest)) = args.split_first() else { return false };
    let name = Path::new(program).file_name().and_then(|n| n.to_str());
    matches!((name, rest), (Some("catatonit"), ["-P"]) | (Some("pause"), []))
}

#[cfg(test)]
mod tests;
