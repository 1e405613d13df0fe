//! The state file: enough for `delete` to clean up after any crash (design decision 11).

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use kata_vmm::VmRecord;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::network::NetworkRecord;
use crate::origin::Origin;

/// The file's version; a reader refuses what it does not know.
pub const VERSION: u32 = 1;
const FILE: &str = "state.json";

/// A process that may have to be killed later: its pid, and its start time so that a reused pid is not taken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// On the host.
    pub pid: i32,
    /// Field 22 of /proc/pid/stat (proc_pid_stat(5)), clock ticks since boot.
    pub start_time: u64,
}

impl ProcessRecord {
    /// Of a running process; `None` if there is none.
    pub fn of(pid: i32) -> Option<ProcessRecord> {
        Some(ProcessRecord { pid, start_time: start_time(pid)? })
    }

    /// Whether exactly this process still runs (a zombie does not).
    pub fn alive(&self) -> bool {
        start_time(self.pid) == Some(self.start_time)
    }
}

/// The start time of a process that is not a zombie.
fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold spaces and parentheses: fields are counted after the last ')'.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// One container of the sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Its bundle.
    pub bundle: PathBuf,
    /// The process on the host that stands for it.
    pub pid: i32,
    /// That process's start time, as in [`ProcessRecord`]; none: it was gone when this was written.
    #[serde(default)]
    pub start_time: Option<u64>,
    /// Hooks to run once it is gone.
    #[serde(default)]
    pub poststop: Vec<kata_oci::Hook>,
    /// From the spec, for `state`.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Exit status, once it has one.
    #[serde(default)]
    pub exit_status: Option<i32>,
}

impl ContainerRecord {
    /// Whether the process that stands for it is `pid`, and still runs.
    pub fn is_stood_for_by(&self, pid: i32) -> bool {
        let process = self.start_time.map(|start_time| ProcessRecord { pid: self.pid, start_time });
        self.pid == pid && process.is_some_and(|p| p.alive())
    }
}

/// What is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateFile {
    /// The version of this form.
    pub version: u32,
    /// The sandbox's id.
    pub id: String,
    /// What it was made for; none: it has no name yet, or an older program has written this.
    #[serde(default)]
    pub origin: Option<Origin>,
    /// The daemon.
    pub daemon: Option<ProcessRecord>,
    /// The VMM, once it runs.
    pub vm: Option<VmRecord>,
    /// The file daemon, once it runs.
    pub fs: Option<ProcessRecord>,
    /// What a crash leaves in the engine's network namespace.
    #[serde(default)]
    pub network: Option<NetworkRecord>,
    /// Host cgroups made for the sandbox, to be removed; absolute directories.
    pub cgroups: Vec<PathBuf>,
    /// Those of the guest's CPUs alone, where they have their own.
    #[serde(default)]
    pub vcpu_cgroups: Vec<PathBuf>,
    /// By id.
    pub containers: BTreeMap<String, ContainerRecord>,
}

/// Why a state file cannot be used.
#[derive(Debug, Error)]
pub enum StateError {
    /// Reading or writing.
    #[error("cannot {what} the state file {path}: {source}")]
    Io {
        /// "read" or "write".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Not what we write.
    #[error("the state file {path} is damaged ({reason}); `delete --force` cleans up what it can find without it")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl StateFile {
    /// A new one.
    pub fn new(id: &str) -> StateFile {
        StateFile {
            version: VERSION,
            id: id.to_owned(),
            origin: None,
            daemon: ProcessRecord::of(std::process::id().cast_signed()),
            vm: None,
            fs: None,
            network: None,
            cgroups: Vec::new(),
            vcpu_cgroups: Vec::new(),
            containers: BTreeMap::new(),
        }
    }

    /// Reads it; `None` where there is none.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn load(run_dir: &Path) -> Result<Option<StateFile>, StateError> {
        let path = run_dir.join(FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StateError::Io { what: "read", path, source }),
        };
        let state: StateFile = serde_json::from_slice(&bytes)
            .map_err(|e| StateError::Corrupt { path: path.clone(), reason: e.to_string() })?;
        if state.version != VERSION {
            let reason = format!("version {}, this program knows {VERSION}", state.version);
            return Err(StateError::Corrupt { path, reason });
        }
        Ok(Some(state))
    }

    /// Replaces it atomically: a reader, or a crash, finds the old one or the new one.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn save(&self, run_dir: &Path) -> Result<(), StateError> {
        let path = run_dir.join(FILE);
        let temp = run_dir.join(".state.json.new");
        let write = || -> std::io::Result<()> {
            let mut file = std::fs::File::create(&temp)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            // /run is memory: fsync would order nothing there, and a crash of the host takes all of it anyway.
            std::fs::rename(&temp, &path)
        };
        write().map_err(|source| StateError::Io { what: "write", path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_comes_back_and_a_damaged_one_is_told() {
        let dir = std::env::temp_dir().join(format!("kata-state-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        assert_eq!(StateFile::load(&dir).unwrap(), None);
        let mut s = StateFile::new("x");
        s.containers.insert("x".into(), ContainerRecord { pid: 7, ..ContainerRecord::default() });
        s.save(&dir).unwrap();
        assert_eq!(StateFile::load(&dir).unwrap(), Some(s));
        for bad in ["", "{}", "{\"version\":99"] {
            std::fs::write(dir.join(FILE), bad).unwrap();
            let err = StateFile::load(&dir).unwrap_err().to_string();
            assert!(err.contains("state.json") && err.contains("damaged"), "{err}");
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_record_matches_only_its_own_process() {
        let me = ProcessRecord::of(std::process::id().cast_signed()).unwrap();
        assert!(me.alive());
        assert!(!ProcessRecord { start_time: me.start_time + 1, ..me }.alive());
        assert!(ProcessRecord::of(i32::MAX).is_none());
    }
}
