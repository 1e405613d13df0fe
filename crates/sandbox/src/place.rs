//! Where a container is to be made: in a sandbox of its own, or in one that is there.

use std::fs;
use std::path::Path;

use kata_oci::Spec;
use thiserror::Error;

use crate::key::{Owner, key};
use crate::role::{Role, RoleError, joined_pids, role};
use crate::state::StateFile;

/// A container's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A sandbox of its own id.
    Own,
    /// The sandbox of this id, of the same owner.
    In(String),
}

/// Why it has none.
#[derive(Debug, Error)]
pub enum PlaceError {
    /// Annotations.
    #[error(transparent)]
    Role(#[from] RoleError),
    /// It wants to join containers that are not in one guest.
    #[error(
        "the container is to join namespaces of two virtual machines, those of {one} and {other}; all must be of one"
    )]
    Several {
        /// A sandbox.
        one: String,
        /// Another.
        other: String,
    },
}

/// Where the container of this spec belongs. A path `/proc/PID/ns/...` is followed where PID stands for a container in one of the
/// owner's sandboxes; what other processes' namespaces mean is not decided here.
///
/// # Errors
/// [`PlaceError`].
pub fn place(owner: &Owner, spec: &Spec) -> Result<Place, PlaceError> {
    place_below(Path::new(kata_types::HOST_RUN_DIR), owner, spec)
}

fn place_below(parent: &Path, owner: &Owner, spec: &Spec) -> Result<Place, PlaceError> {
    match role(spec)? {
        Role::Sandbox => return Ok(Place::Own),
        Role::Container { sandbox } => return Ok(Place::In(sandbox.to_string())),
        Role::Single => {}
    }
    let mut found: Option<(i32, String)> = None;
    for (_, pid) in joined_pids(spec) {
        // Usually all of them are one process's.
        if found.as_ref().is_some_and(|(known, _)| *known == pid) {
            continue;
        }
        let Some(sandbox) = sandbox_of(parent, owner, pid) else { continue };
        match found {
            Some((_, one)) if one != sandbox => return Err(PlaceError::Several { one, other: sandbox }),
            _ => found = Some((pid, sandbox)),
        }
    }
    Ok(found.map_or(Place::Own, |(_, sandbox)| Place::In(sandbox)))
}

/// The living sandbox of this owner in which `pid` stands for a container that has not ended.
fn sandbox_of(parent: &Path, owner: &Owner, pid: i32) -> Option<String> {
    let entries = fs::read_dir(parent).ok()?.flatten();
    for entry in entries {
        // A directory that is just being removed, or is none of ours, says nothing.
        let Ok(Some(state)) = StateFile::load(&entry.path()) else { continue };
        let ours = entry.file_name().to_str() == Some(&key(owner, &state.id));
        let lives = state.daemon.is_some_and(|daemon| daemon.alive());
        if ours && lives && state.containers.values().any(|c| c.exit_status.is_none() && c.is_stood_for_by(pid)) {
            return Some(state.id);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{ContainerRecord, ProcessRecord};

    fn joins(pids: &[i32]) -> Spec {
        let list: Vec<_> = pids
            .iter()
            .zip(["network", "ipc", "pid"])
            .map(|(pid, kind)| serde_json::json!({ "type": kind, "path": format!("/proc/{pid}/ns/{kind}") }))
            .collect();
        serde_json::from_value(serde_json::json!({ "linux": { "namespaces": list } })).unwrap()
    }

    /// A sandbox's directory in which this process is everything.
    fn sandbox(parent: &Path, owner: &Owner, id: &str, change: impl FnOnce(&mut StateFile, &mut ContainerRecord)) {
        let me = ProcessRecord::of(std::process::id().cast_signed()).unwrap();
        let dir = parent.join(key(owner, id));
        fs::create_dir(&dir).unwrap();
        let mut state = StateFile::new(id);
        let mut container =
            ContainerRecord { pid: me.pid, start_time: Some(me.start_time), ..ContainerRecord::default() };
        change(&mut state, &mut container);
        state.containers.insert("c".into(), container);
        state.save(&dir).unwrap();
    }

    #[test]
    fn a_pid_leads_to_the_owners_living_sandbox_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let (owner, other) = (Owner::Oci("/run/a".into()), Owner::Oci("/run/b".into()));
        let me = std::process::id().cast_signed();
        let at = |pids: &[i32]| place_below(dir.path(), &owner, &joins(pids)).unwrap();
        assert_eq!(at(&[me]), Place::Own);
        sandbox(dir.path(), &other, "others", |_, _| {});
        sandbox(dir.path(), &owner, "ended", |_, c| c.exit_status = Some(0));
        sandbox(dir.path(), &owner, "reused", |_, c| c.start_time = Some(1));
        sandbox(dir.path(), &owner, "dead", |s, _| s.daemon = Some(ProcessRecord { pid: me, start_time: 1 }));
        fs::create_dir(dir.path().join("rubbish")).unwrap();
        assert_eq!(at(&[me, me]), Place::Own);
        sandbox(dir.path(), &owner, "mine", |_, _| {});
        assert_eq!(at(&[1, me, me]), Place::In("mine".into()));
        // A process that is nobody's container.
        assert_eq!(at(&[1]), Place::Own);
    }

    #[test]
    fn two_machines_cannot_be_joined() {
        let dir = tempfile::tempdir().unwrap();
        let owner = Owner::Containerd("default".into());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id().cast_signed();
        sandbox(dir.path(), &owner, "one", |_, _| {});
        sandbox(dir.path(), &owner, "two", |_, c| {
            c.pid = pid;
            c.start_time = ProcessRecord::of(pid).map(|p| p.start_time);
        });
        let err = place_below(dir.path(), &owner, &joins(&[std::process::id().cast_signed(), pid])).unwrap_err();
        child.kill().unwrap();
        child.wait().unwrap();
        let text = err.to_string();
        assert!(text.contains("one") && text.contains("two"), "{text}");
    }

    #[test]
    fn annotations_go_first() {
        let owner = Owner::Containerd("k8s.io".into());
        let spec = |kind: &str| -> Spec {
            serde_json::from_value(serde_json::json!({ "annotations": {
                "io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": "s" } }))
            .unwrap()
        };
        assert_eq!(place(&owner, &spec("container")).unwrap(), Place::In("s".into()));
        assert_eq!(place(&owner, &spec("sandbox")).unwrap(), Place::Own);
        assert!(place(&owner, &spec("x")).is_err());
    }
}
