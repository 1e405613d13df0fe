//! Removing what a sandbox left behind, from its state file alone: after any crash, at any point.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kata_vmm::spawn::kill_recorded;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use thiserror::Error;

use crate::hostcgroup::HostCgroup;
use crate::key::task_socket;
use crate::retire::retired;
use crate::state::{ProcessRecord, StateError, StateFile};

/// How long a daemon may take to die that has stopped answering because it was killed: it closes what it has open, one by one.
const DIES_WITHIN: Duration = Duration::from_secs(2);
/// How long killed processes may take to go.
const GONE_WITHIN: Duration = Duration::from_secs(5);
/// How long somebody else's clean-up of the same sandbox may take: of several containers, one after the other.
const TURN_WITHIN: Duration = Duration::from_secs(15);
const TURN_STEP: Duration = Duration::from_millis(5);

/// Why something is left.
#[derive(Debug, Error)]
pub enum CleanupError {
    /// A process that SIGKILL did not end in time (it hangs in the kernel).
    #[error("process {pid} of the sandbox does not die ({source}); look at /proc/{pid}/stack")]
    Process {
        /// Which.
        pid: i32,
        /// How that is known.
        source: io::Error,
    },
    /// Others clean up there and do not come to an end.
    #[error("cannot lock {dir}, in which another process cleans up: {source}")]
    Turn {
        /// The sandbox's.
        dir: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The state file of what is kept.
    #[error(transparent)]
    State(#[from] StateError),
    /// A mount below the run directory, or the directory itself.
    #[error(transparent)]
    Share(#[from] kata_storage::ShareError),
}

/// What was there before it was cleaned up.
#[derive(Debug, Default)]
pub struct Remains {
    /// The state file.
    pub state: Option<StateFile>,
    /// Why it could not be used, if it was there.
    pub damaged: Option<StateError>,
}

/// Ends every process of the sandbox, and removes its mounts, cgroups, what it did in the engine's network namespace, and its
/// directory. Where there is no state file (never written, or damaged) the daemon is found by its socket, its processes go with
/// it, the directory shows the rest, and `cgroups_path`, the spec's, tells the cgroup. Safe to call twice, and when nothing is there.
///
/// # Errors
/// [`CleanupError`]; what could be removed is removed all the same.
pub fn cleanup(run_dir: &Path, cgroups_path: Option<&str>) -> Result<Remains, CleanupError> {
    let remains = match StateFile::load(run_dir) {
        Ok(state) => Remains { state, damaged: None },
        Err(err) => Remains { state: None, damaged: Some(err) },
    };
    let killed = kill_all(run_dir, remains.state.as_ref());
    if let Some(network) = remains.state.as_ref().and_then(|s| s.network.as_ref()) {
        network.clean_up();
    }
    let mut removed = kata_storage::remove_run_dir(run_dir);
    // A daemon that was about to go may have given its directory another name just before it was killed here.
    if let Some(daemon) = remains.state.as_ref().and_then(|state| state.daemon)
        && let ending = retired(run_dir, daemon.pid)
        && StateFile::load(&ending).ok().flatten().is_some_and(|state| state.daemon == Some(daemon))
    {
        removed = removed.and(kata_storage::remove_run_dir(&ending));
    }
    match (&remains.state, cgroups_path) {
        (Some(state), _) => HostCgroup { dirs: state.cgroups.clone(), vcpus: state.vcpu_cgroups.clone() }.remove(),
        (None, Some(path)) => HostCgroup::find(path).remove(),
        (None, None) => {}
    }
    killed?;
    removed?;
    Ok(remains)
}

/// Removes what a dead sandbox left of one of its containers. What the others still need is kept (how they ended, their hooks);
/// with the last of them everything goes, as by [`cleanup`]. An engine asks for all of them at once: one after the other.
///
/// # Errors
/// [`CleanupError`].
pub fn cleanup_container(run_dir: &Path, id: &str, cgroups_path: Option<&str>) -> Result<Remains, CleanupError> {
    let _turn = turn(run_dir, TURN_WITHIN)?;
    let Ok(Some(mut state)) = StateFile::load(run_dir) else { return cleanup(run_dir, cgroups_path) };
    let before = state.clone();
    state.containers.remove(id);
    if state.containers.is_empty() {
        return cleanup(run_dir, cgroups_path);
    }
    kill_all(run_dir, Some(&before))?;
    // The others' shims have told already, or tell now, that their sandbox is gone.
    state.save(run_dir)?;
    Ok(Remains { state: Some(before), damaged: None })
}

/// Whether the daemon of a sandbox that broke off the connection has died. It may be dying: until a killed process has closed its
/// listening socket, connections are made to it that nobody will serve. Blocks for a moment then.
pub fn has_died(run_dir: &Path) -> bool {
    died_within(run_dir, DIES_WITHIN)
}

fn died_within(run_dir: &Path, within: Duration) -> bool {
    let deadline = Instant::now() + within;
    loop {
        let state = StateFile::load(run_dir).ok().flatten();
        let lives = match state.and_then(|state| state.daemon) {
            Some(daemon) => daemon.alive(),
            None => daemon_by_its_socket(run_dir).is_some(),
        };
        if !lives || Instant::now() >= deadline {
            return !lives;
        }
        std::thread::sleep(TURN_STEP);
    }
}

/// Waits for our turn in this directory, and keeps it as long as what is returned; `None`: there is no such directory.
pub(crate) fn turn(run_dir: &Path, within: Duration) -> Result<Option<OwnedFd>, CleanupError> {
    let failed = |source: Errno| CleanupError::Turn { dir: run_dir.to_owned(), source: source.into() };
    let deadline = Instant::now() + within;
    loop {
        let dir = match rustix::fs::open(run_dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            // Whoever had it before may have removed it, and somebody else made another: that is found by the next look.
            Ok(()) if is_at(dir.as_fd(), run_dir) => return Ok(Some(dir)),
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(TURN_STEP),
            Err(e) => return Err(failed(e)),
        }
    }
}

/// Whether this path still leads to the open directory.
pub(crate) fn is_at(dir: BorrowedFd<'_>, path: &Path) -> bool {
    let inode = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    let there = rustix::fs::stat(path).map(inode);
    rustix::fs::fstat(dir).map(inode).is_ok_and(|ours| there == Ok(ours))
}

fn kill_all(run_dir: &Path, state: Option<&StateFile>) -> Result<(), CleanupError> {
    // The daemon first: it would report what we do as a crash.
    let processes = match state {
        Some(state) => {
            let vm = state.vm.as_ref().map(|vm| ProcessRecord { pid: vm.pid, start_time: vm.start_time });
            [state.daemon, vm, state.fs]
        }
        // The kernel ends its children with it.
        None => [daemon_by_its_socket(run_dir), None, None],
    };
    let me = std::process::id().cast_signed();
    let deadline = Instant::now() + GONE_WITHIN;
    let mut done = Ok(());
    for p in processes.into_iter().flatten().filter(|p| p.pid != me) {
        if let Err(source) = kill_recorded(p.pid, p.start_time, deadline) {
            done = done.and(Err(CleanupError::Process { pid: p.pid, source }));
        }
    }
    done
}

/// Whoever listens at the sandbox's socket, if anyone does.
fn daemon_by_its_socket(run_dir: &Path) -> Option<ProcessRecord> {
    let socket = UnixStream::connect(task_socket(run_dir)).ok()?;
    let listener = rustix::net::sockopt::socket_peercred(&socket).ok()?;
    ProcessRecord::of(listener.pid.as_raw_nonzero().get())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::ContainerRecord;

    #[test]
    fn a_daemon_that_is_dying_is_waited_for_and_one_that_lives_is_not_dead() {
        let dir = tempfile::tempdir().unwrap();
        assert!(has_died(dir.path()), "nobody is there");
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let mut state = StateFile::new("x");
        state.daemon = ProcessRecord::of(child.id().cast_signed());
        state.save(dir.path()).unwrap();
        assert!(!died_within(dir.path(), Duration::from_millis(50)));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(100));
                child.kill().unwrap();
                child.wait().unwrap();
            });
            assert!(died_within(dir.path(), Duration::from_secs(60)));
        });
    }

    #[test]
    fn a_dead_sandboxs_containers_go_one_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        std::fs::create_dir(&run).unwrap();
        let mut state = StateFile::new("s");
        state.daemon = None;
        for (id, status) in [("s", 137), ("a", 3), ("b", 4)] {
            let record = ContainerRecord { exit_status: Some(status), ..ContainerRecord::default() };
            state.containers.insert(id.into(), record);
        }
        state.save(&run).unwrap();
        let status = |id: &str| {
            let remains = cleanup_container(&run, id, None).unwrap();
            remains.state.and_then(|mut s| s.containers.remove(id)).and_then(|c| c.exit_status)
        };
        // The sandbox's own container first: podman does so.
        assert_eq!(status("s"), Some(137));
        assert_eq!(status("s"), None);
        assert_eq!(status("a"), Some(3));
        assert_eq!(status("b"), Some(4));
        assert!(!run.exists());
        assert_eq!(status("b"), None);
    }

    #[test]
    fn a_daemon_that_gives_its_directory_another_name_while_it_is_killed_leaves_none() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        // Found alive, with its directory; killed with that renamed.
        let mut daemon = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let mut state = StateFile::new("s");
        state.daemon = ProcessRecord::of(daemon.id().cast_signed());
        let other = StateFile { daemon: state.daemon.map(|d| ProcessRecord { start_time: 1, ..d }), ..state.clone() };
        let ending = retired(&run, daemon.id().cast_signed());
        for (there, left) in [(&other, true), (&state, false)] {
            for (dir, state) in [(&run, &state), (&ending, there)] {
                std::fs::create_dir_all(dir).unwrap();
                state.save(dir).unwrap();
            }
            cleanup(&run, None).unwrap();
            assert!(!run.exists());
            assert_eq!(ending.exists(), left, "one of a daemon that had the pid before is not this one's");
        }
        daemon.wait().unwrap();
    }

    #[test]
    fn all_at_once_take_turns_and_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..20 {
            let run = dir.path().join("run");
            std::fs::create_dir(&run).unwrap();
            let mut state = StateFile::new("s");
            state.daemon = None;
            let ids = ["s", "a", "b", "c", "d", "e"];
            for (id, status) in ids.iter().zip(1..) {
                let record = ContainerRecord { exit_status: Some(status), ..ContainerRecord::default() };
                state.containers.insert((*id).into(), record);
            }
            state.save(&run).unwrap();
            std::thread::scope(|scope| {
                for (id, status) in ids.iter().zip(1..) {
                    let run = &run;
                    scope.spawn(move || {
                        let remains = cleanup_container(run, id, None).unwrap();
                        let record = remains.state.and_then(|mut s| s.containers.remove(*id));
                        assert_eq!(record.and_then(|c| c.exit_status), Some(status), "{id}");
                    });
                }
            });
            assert!(!run.exists());
        }
    }
}
