//! A child process that was started: how it ended, its last words, and that it does not outlive its owner.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::watch;

use crate::{ConsoleRing, VmExit};

/// How long a drop waits for a killed process; only a process stuck in the kernel takes longer than milliseconds.
const KILL_WAIT: Duration = Duration::from_secs(5);
/// How many lines of stderr an exit carries.
const EXIT_LINES: usize = 20;

/// A child of ours that nobody else waits for. Dropping it kills and reaps it.
#[derive(Debug)]
pub(super) struct Child {
    pid: i32,
    pidfd: OwnedFd,
    expected: AtomicBool,
    /// Exit code or signal, once reaped.
    ended: Mutex<Option<(Option<i32>, Option<i32>)>>,
}

impl Child {
    /// Takes charge of a child that has not been waited for.
    pub(super) fn adopt(pid: i32) -> io::Result<Child> {
        let typed = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        // A child that nobody waited for keeps its pid: this descriptor is the right process's.
        let pidfd = pidfd_open(typed, PidfdFlags::empty())?;
        Ok(Child { pid, pidfd, expected: AtomicBool::new(false), ended: Mutex::new(None) })
    }

    /// Reaps it if it has ended.
    fn try_reap(&self) -> Option<(Option<i32>, Option<i32>)> {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.is_none() {
            match waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
                Ok(Some(status)) => *ended = Some((status.exit_status(), status.terminating_signal())),
                Ok(None) => {}
                // Somebody else waited for it: the status is lost, but it has ended.
                Err(rustix::io::Errno::CHILD) => *ended = Some((None, None)),
                Err(e) => tracing::warn!(pid = self.pid, "cannot wait for a child: {e}"),
            }
        }
        *ended
    }

    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Kills it and blocks until it is gone, [`KILL_WAIT`] at most.
    fn finish(&self) {
        if self.try_reap().is_some() {
            return;
        }
        self.expected.store(true, Ordering::Relaxed);
        if let Err(e) = self.signal(Signal::KILL) {
            tracing::warn!(pid = self.pid, "cannot kill a child: {e}");
        }
        if !wait_gone(&self.pidfd, KILL_WAIT) || self.try_reap().is_none() {
            tracing::error!(pid = self.pid, "a killed child does not end; it is stuck in the kernel");
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Waits until a process ends; whether it did.
fn wait_gone(pidfd: &OwnedFd, at_most: Duration) -> bool {
    let deadline = Instant::now() + at_most;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// A program that was started. It is killed and waited for when this is dropped.
#[derive(Debug)]
pub struct Spawned {
    child: Arc<Child>,
    stderr: Arc<Mutex<ConsoleRing>>,
    exited: Arc<watch::Sender<Option<VmExit>>>,
    watcher: tokio::task::JoinHandle<()>,
}

impl Spawned {
    /// Watches a child and reads its stderr.
    pub(super) fn new(child: Child, stderr: OwnedFd) -> io::Result<Spawned> {
        let stderr = pipe::Receiver::from_owned_fd(stderr)?;
        let pidfd = watched(child.pidfd.try_clone()?)?;
        let child = Arc::new(child);
        let ring = Arc::new(Mutex::new(ConsoleRing::new()));
        let exited = Arc::new(watch::channel(None).0);
        let watcher = tokio::spawn(watch_child(child.clone(), pidfd, stderr, ring.clone(), exited.clone()));
        Ok(Spawned { child, stderr: ring, exited, watcher })
    }

    /// Its pid on the host.
    pub fn pid(&self) -> i32 {
        self.child.pid
    }

    /// Its pidfd's number, for polling elsewhere.
    pub fn pidfd(&self) -> std::os::fd::RawFd {
        self.child.pidfd.as_raw_fd()
    }

    /// How it ended; level-triggered.
    pub fn exited(&self) -> watch::Receiver<Option<VmExit>> {
        self.exited.subscribe()
    }

    /// Waits until it ends. May be dropped and called again.
    pub async fn wait(&self) -> VmExit {
        let mut exited = self.exited.subscribe();
        match exited.wait_for(Option::is_some).await {
            Ok(exit) => exit.clone().unwrap_or_else(|| self.exit_now()),
            // The sender is ours and alive.
            Err(_) => self.exit_now(),
        }
    }

    /// From now on its end is what we asked for ([`VmExit::expected`]).
    pub fn expect_exit(&self) {
        self.child.expected.store(true, Ordering::Relaxed);
    }

    /// Sends SIGKILL; that it ended is told by [`Spawned::wait`].
    ///
    /// # Errors
    /// `pidfd_send_signal(2)`'s; a process that has ended already is none.
    pub fn kill(&self) -> io::Result<()> {
        self.expect_exit();
        self.child.signal(Signal::KILL)
    }

    /// Sends SIGTERM.
    ///
    /// # Errors
    /// As [`Spawned::kill`].
    pub fn terminate(&self) -> io::Result<()> {
        self.expect_exit();
        self.child.signal(Signal::TERM)
    }

    /// The last lines it wrote to stderr.
    pub fn stderr_tail(&self) -> Vec<String> {
        self.stderr.lock().unwrap_or_else(PoisonError::into_inner).tail()
    }

    fn exit_now(&self) -> VmExit {
        exit_of(&self.child, &self.stderr)
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        self.child.finish();
        self.watcher.abort();
        // Whoever still watches learns it, too.
        self.exited.send_if_modified(|exit| {
            let first = exit.is_none();
            if first {
                *exit = Some(exit_of(&self.child, &self.stderr));
            }
            first
        });
    }
}

/// Registers a descriptor with the runtime, for reading.
#[allow(deprecated, reason = "unsound only for types whose descriptor changes while registered; OwnedFd's does not")]
pub(super) fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}

/// What the child's end looks like, as far as it is known.
fn exit_of(child: &Child, stderr: &Mutex<ConsoleRing>) -> VmExit {
    let (code, signal) = child.try_reap().unwrap_or((None, None));
    VmExit {
        code,
        signal,
        expected: child.expected.load(Ordering::Relaxed),
        stderr_tail: stderr.lock().unwrap_or_else(PoisonError::into_inner).text(EXIT_LINES),
    }
}

/// Reads stderr until the child ends, then tells how it did.
async fn watch_child(
    child: Arc<Child>,
    pidfd: AsyncFd<OwnedFd>,
    stderr: pipe::Receiver,
    ring: Arc<Mutex<ConsoleRing>>,
    exited: Arc<watch::Sender<Option<VmExit>>>,
) {
    let mut open = true;
    loop {
        tokio::select! {
            ready = stderr.readable(), if open => open = ready.is_ok() && drain(child.pid, &stderr, &ring),
            ready = pidfd.readable() => {
                if child.try_reap().is_some() || ready.is_err() {
                    break;
                }
                if let Ok(mut guard) = ready {
                    guard.clear_ready();
                }
            }
        }
    }
    if open {
        // What it wrote just before its end. Not until the end of file: a descendant may hold the pipe.
        drain(child.pid, &stderr, &ring);
    }
    exited.send_replace(Some(exit_of(&child, &ring)));
}

/// Reads what is there now, a bounded amount; whether more may come.
fn drain(pid: i32, stderr: &pipe::Receiver, ring: &Mutex<ConsoleRing>) -> bool {
    let mut bytes = [0; 4096];
    for _ in 0..64 {
        match stderr.try_read(&mut bytes) {
            Ok(0) => return false,
            Ok(n) => {
                let mut ring = ring.lock().unwrap_or_else(PoisonError::into_inner);
                ring.push_and(&bytes[..n], |line| tracing::debug!(target: "stderr", pid, "{line}"));
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return e.kind() == io::ErrorKind::WouldBlock,
        }
    }
    true
}

/// The start time of a process: field 22 of /proc/pid/stat (proc(5)), in clock ticks since boot.
///
/// # Errors
/// `NotFound` if there is no such process; `InvalidData` if the file is not understood.
pub fn start_time(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the name in brackets, which may hold anything: count from its end.
    let after_name = stat.rfind(')').map(|at| &stat[at + 1..]);
    after_name
        .and_then(|rest| rest.split_ascii_whitespace().nth(19))
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Kills a process that an earlier process of ours recorded, and waits until it is gone. A pid that meanwhile belongs
/// to another process (its start time differs) is left alone. Whether a process was killed.
///
/// # Errors
/// `TimedOut` if it is still there at the deadline; else a system call's.
pub fn kill_recorded(pid: i32, started: u64, deadline: Instant) -> io::Result<bool> {
    let typed = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    let pidfd = match pidfd_open(typed, PidfdFlags::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::SRCH) => return Ok(false),
        Err(e) => return Err(e.into()),
    };
    // With the descriptor open, the pid cannot come to mean another process without this one having ended.
    match start_time(pid) {
        Ok(now) if now == started => {}
        Ok(_) => return Ok(false),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    }
    match pidfd_send_signal(&pidfd, Signal::KILL) {
        Ok(()) => {}
        Err(rustix::io::Errno::SRCH) => return Ok(false),
        Err(e) => return Err(e.into()),
    }
    if wait_gone(&pidfd, deadline.saturating_duration_since(Instant::now())) {
        Ok(true)
    } else {
        Err(io::ErrorKind::TimedOut.into())
    }
}
