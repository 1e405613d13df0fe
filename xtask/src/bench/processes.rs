//! The processes of one container on the host, whoever runs it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::Value;

/// Where our sandboxes' directories are.
const SANDBOXES: &str = "/run/kata";

/// What a process is to its sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// QEMU.
    Vmm,
    /// The sandbox's daemon.
    Daemon,
    /// What serves files to the guest.
    FileDaemon,
    /// Anything else: a stand-in, a shim, the workload itself where there is no VM.
    Other,
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its pid.
    pub pid: u32,
    /// What it is.
    pub role: Role,
}

/// The processes of the container with this id: those of our sandbox of that name, or a containerd-shim for it, each with
/// all that descend from them.
///
/// # Errors
/// There are none.
pub fn of_container(id: &str) -> Result<Vec<Process>> {
    let mut roots = of_state(id);
    if roots.is_empty() {
        roots = shims(id);
    }
    ensure!(!roots.is_empty(), "no process belongs to the container {id}");
    Ok(with_descendants(&roots, &parents()))
}

/// From the state file of our sandbox.
fn of_state(id: &str) -> BTreeMap<u32, Role> {
    let entries = fs::read_dir(SANDBOXES).into_iter().flatten().flatten();
    let states = entries.filter_map(|entry| fs::read(entry.path().join("state.json")).ok());
    let states = states.filter_map(|text| serde_json::from_slice::<Value>(&text).ok());
    states.filter(|state| state["id"] == id).flat_map(|state| recorded(&state)).collect()
}

fn recorded(state: &Value) -> BTreeMap<u32, Role> {
    let mut roots = BTreeMap::new();
    let mut add = |pid: &Value, role| {
        if let Some(pid) = pid.as_u64().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0) {
            roots.entry(pid).or_insert(role);
        }
    };
    add(&state["vm"]["pid"], Role::Vmm);
    add(&state["daemon"]["pid"], Role::Daemon);
    add(&state["fs"]["pid"], Role::FileDaemon);
    for container in state["containers"].as_object().into_iter().flat_map(serde_json::Map::values) {
        add(&container["pid"], Role::Other);
    }
    roots
}

fn shims(id: &str) -> BTreeMap<u32, Role> {
    let is_shim = |pid: &u32| {
        let words = words_of(*pid);
        let program = words.first().and_then(|word| word.rsplit('/').next()).unwrap_or_default();
        program.starts_with("containerd-shim") && words.iter().any(|word| word == id)
    };
    parents().keys().copied().filter(is_shim).map(|pid| (pid, Role::Other)).collect()
}

/// A child is what its parent is, unless it is known to be something else.
fn with_descendants(roots: &BTreeMap<u32, Role>, parents: &BTreeMap<u32, u32>) -> Vec<Process> {
    let mut found = Vec::new();
    for pid in parents.keys().copied().chain(roots.keys().copied()).collect::<BTreeSet<u32>>() {
        let mut up = Some(pid);
        while let Some(this) = up {
            if let Some(role) = roots.get(&this) {
                let role = if *role == Role::Daemon && this != pid { Role::Other } else { *role };
                found.push(Process { pid, role });
                break;
            }
            up = parents.get(&this).copied().filter(|parent| *parent != 0);
        }
    }
    found
}

/// Every process's parent.
fn parents() -> BTreeMap<u32, u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, stat_of(pid)?.get(1)?.parse().ok()?))).collect()
}

/// The fields of /proc/pid/stat from the third on (proc_pid_stat(5)); the name before them may hold anything.
fn stat_of(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(") ")?.1.split(' ').map(str::to_owned).collect())
}

/// CPU time that a process has used, in clock ticks (1/100 s); 0 if it is gone.
pub fn ticks(pid: u32) -> u64 {
    let field = |stat: &[String], at: usize| stat.get(at).and_then(|text| text.parse().ok()).unwrap_or(0);
    // utime and stime are fields 14 and 15.
    stat_of(pid).map_or(0, |stat| field(&stat, 11) + field(&stat, 12))
}

/// The words of its command line.
pub fn words_of(pid: u32) -> Vec<String> {
    let cmdline = fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline")).unwrap_or_default();
    cmdline.split(|b| *b == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_sandbox_is_what_its_state_names_and_what_descends_from_that() {
        let state = json!({
            "id": "a", "daemon": { "pid": 10 }, "vm": { "pid": 11 }, "fs": { "pid": 12 },
            "containers": { "a": { "pid": 20 }, "b": { "pid": 0 } },
        });
        let roots = recorded(&state);
        assert_eq!(roots.len(), 4);
        // 11 and 12 are children of 10, 13 of 12, 14 of 10; 99 is somebody else's.
        let parents = BTreeMap::from([(10, 1), (11, 10), (12, 10), (13, 12), (14, 10), (20, 1), (99, 1), (1, 0)]);
        let found: Vec<(u32, Role)> = with_descendants(&roots, &parents).into_iter().map(|p| (p.pid, p.role)).collect();
        let expected = [
            (10, Role::Daemon),
            (11, Role::Vmm),
            (12, Role::FileDaemon),
            (13, Role::FileDaemon),
            (14, Role::Other),
            (20, Role::Other),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn this_very_process_has_a_parent_and_uses_time() {
        let me = std::process::id();
        assert!(parents().contains_key(&me));
        // Until the clock has ticked for us: work is counted, not time.
        while ticks(me) == 0 {
            std::hint::black_box((0..1_000_000u64).sum::<u64>());
        }
        assert!(!words_of(me).is_empty());
    }
}
