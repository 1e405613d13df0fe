//! What belongs to the pool: sandboxes that wait are no leak of any test's. Told by the pool's directory alone: a sandbox
//! that was taken has left it, and is looked at like any other.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

/// The directory of pools.
const POOLS: &str = "/run/kata/pool";

/// The processes of keepers and of sandboxes that wait, or are being made to.
#[derive(Debug, Default)]
pub struct Pool {
    pids: BTreeSet<u32>,
}

impl Pool {
    /// As it is now.
    pub fn now() -> Pool {
        let mut roots = BTreeSet::new();
        for pool in fs::read_dir(POOLS).into_iter().flatten().flatten() {
            let keeper = fs::read_to_string(pool.path().join(".keeper")).unwrap_or_default();
            roots.extend(keeper.split(' ').next().and_then(|pid| pid.parse::<u32>().ok()));
            for member in fs::read_dir(pool.path()).into_iter().flatten().flatten() {
                let state = fs::read(member.path().join("state.json")).unwrap_or_default();
                let state: Value = serde_json::from_slice(&state).unwrap_or_default();
                roots.extend(state["daemon"]["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()));
            }
        }
        let parents: Vec<(u32, u32)> = super::host::pids().filter_map(|pid| Some((pid, parent(pid)?))).collect();
        let mut pids = roots.clone();
        // Children of a sandbox that waits; those of a keeper only as long as they are in the pool, for a keeper remains
        // the parent of what was taken.
        let keepers: BTreeSet<u32> = roots.iter().copied().filter(|pid| is_keeper(*pid)).collect();
        loop {
            let before = pids.len();
            for (pid, parent) in &parents {
                if (pids.contains(parent) && !keepers.contains(parent)) || (keepers.contains(parent) && is_new(*pid)) {
                    pids.insert(*pid);
                }
            }
            if pids.len() == before {
                return Pool { pids };
            }
        }
    }

    /// Whether a process is of the pool.
    pub fn has(&self, pid: u32) -> bool {
        self.pids.contains(&pid)
    }

    /// Whether a path is.
    pub fn has_path(path: &Path) -> bool {
        path.starts_with(POOLS)
    }
}

fn is_keeper(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|argv| argv.starts_with(b"kata-factory\0"))
}

/// A child of a keeper that has no state file yet: its directory is there under the name it was given.
fn is_new(pid: u32) -> bool {
    let argv = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = argv.split(|b| *b == 0).map(String::from_utf8_lossy);
    let mut after = words.skip_while(|word| word != "--run-dir").skip(1);
    after.next().is_some_and(|dir| Path::new(&*dir).exists())
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}
