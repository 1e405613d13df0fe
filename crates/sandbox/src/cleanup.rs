//! Removing what a sandbox left behind, from its state file alone: after any crash, at any point.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use thiserror::Error;

use crate::hostcgroup::HostCgroup;
use crate::state::{ProcessRecord, StateError, StateFile};

/// How long killed processes may take to go.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// Why something is left.
#[derive(Debug, Error)]
pub enum CleanupError {
    /// A process that SIGKILL did not end in time (it hangs in the kernel).
    #[error("process {pid} of the sandbox does not die; look at /proc/{pid}/stack")]
    Process {
        /// Which.
        pid: i32,
    },
    /// A mount below the run directory.
    #[error(transparent)]
    Share(#[from] kata_storage::ShareError),
    /// The run directory.
    #[error("cannot remove {path}: {source}")]
    Remove {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Ends every process of the sandbox, and removes its mounts, cgroups and directory. `state` is what
/// [`StateFile::load`] found; without one (never written, or damaged) what the directory itself shows is used.
/// Safe to call twice, and when nothing is there.
///
/// # Errors
/// [`CleanupError`]; what could be removed is removed all the same.
pub fn cleanup(run_dir: &Path, state: Option<&StateFile>) -> Result<(), CleanupError> {
    let mut processes: Vec<ProcessRecord> = Vec::new();
    if let Some(state) = state {
        // The daemon first: it would restart nothing, but it would report what we do as a crash.
        processes.extend(state.daemon);
        processes.extend(state.vm.as_ref().map(|vm| ProcessRecord { pid: vm.pid, start_time: vm.start_time }));
        processes.extend(state.fs);
        let me = std::process::id().cast_signed();
        processes.retain(|p| p.pid != me);
    }
    let killed = kill_all(&processes);
    if run_dir.exists() {
        kata_storage::Share::cleanup(run_dir)?;
    }
    if let Some(state) = state {
        HostCgroup { dirs: state.cgroups.clone() }.remove();
    }
    match std::fs::remove_dir_all(run_dir) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(CleanupError::Remove { path: run_dir.to_owned(), source });
        }
        _ => {}
    }
    killed
}

/// As [`cleanup`], with whatever state file there is.
///
/// # Errors
/// [`CleanupError`].
pub fn cleanup_dir(run_dir: &Path) -> Result<Option<StateFile>, CleanupError> {
    let state = match StateFile::load(run_dir) {
        Ok(state) => state,
        Err(err @ (StateError::Corrupt { .. } | StateError::Io { .. })) => {
            tracing::warn!("{err}");
            None
        }
    };
    cleanup(run_dir, state.as_ref())?;
    Ok(state)
}

fn kill_all(processes: &[ProcessRecord]) -> Result<(), CleanupError> {
    for p in processes.iter().filter(|p| p.alive()) {
        // It may end between the check and the signal; a pid is not reused that fast.
        let _ = kill(Pid::from_raw(p.pid), Signal::SIGKILL);
    }
    let deadline = Instant::now() + GONE_WITHIN;
    for p in processes {
        while p.alive() {
            if Instant::now() > deadline {
                return Err(CleanupError::Process { pid: p.pid });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}
