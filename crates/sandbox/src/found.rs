//! Finding the sandboxes of a host: of every containerd namespace and of every root of the OCI command line.

use std::path::{Path, PathBuf};

use crate::state::{ContainerRecord, StateFile};

/// A sandbox that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its directory.
    pub run_dir: PathBuf,
    /// What its state file tells.
    pub state: StateFile,
}

/// All whose daemon lives, by id. `parent` is the directory of run directories. Those that wait in a pool, or are about to
/// go, are none.
pub fn find(parent: &Path) -> Vec<Found> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        if !is_key(&entry.file_name().to_string_lossy()) {
            continue;
        }
        let run_dir = entry.path();
        // One that begins or goes just now has no file, and one that is damaged is told by whoever deletes it.
        let Ok(Some(state)) = StateFile::load(&run_dir) else { continue };
        if state.daemon.is_some_and(|daemon| daemon.alive()) {
            all.push(Found { run_dir, state });
        }
    }
    all.sort_by(|a, b| (&a.state.id, &a.run_dir).cmp(&(&b.state.id, &b.run_dir)));
    all
}

/// As [`crate::key()`] makes them.
pub(crate) fn is_key(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

impl Found {
    /// The container that is the sandbox itself, or the first of those there are: its annotations tell whose pod it is.
    pub fn first_container(&self) -> Option<&ContainerRecord> {
        self.state.containers.get(&self.state.id).or_else(|| self.state.containers.values().next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::ProcessRecord;

    #[test]
    fn only_sandboxes_whose_daemon_lives_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, id: &str, daemon: Option<ProcessRecord>| {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            let state = StateFile { daemon, ..StateFile::new(id) };
            state.save(&path).unwrap();
        };
        let me = ProcessRecord::of(std::process::id().cast_signed());
        make(&"b".repeat(32), "two", me);
        make(&"a".repeat(32), "one", me);
        make(&"c".repeat(32), "dead", Some(ProcessRecord { start_time: 1, ..me.unwrap() }));
        make(".ending-7", "going", me);
        std::fs::create_dir(dir.path().join("d".repeat(32))).unwrap();
        let ids: Vec<String> = find(dir.path()).into_iter().map(|f| f.state.id).collect();
        assert_eq!(ids, ["one", "two"]);
        assert!(find(Path::new("/no/such/directory")).is_empty());
    }
}
