//! A pid namespace that outlives the containers in it, for those that share one.
//!
//! A pid namespace lives as long as its first process. This one's does nothing but wait for what is orphaned in it. The
//! containers can see it, so it has nothing to look at: no capability, an empty root, no mount and no descriptor of the agent's
//! but the channel, whose end is its own.

use std::os::fd::OwnedFd;

use capctl::caps::{CapState, bounding};
use kata_sys::jail::{cloexec_from, reset_signals};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::set_parent_process_death_signal;

use crate::channel::{Channel, Message};
use crate::error::{JailError, Step};
use crate::job::{Job, Kind};
use crate::launch::{self, Child, IdMaps, JobFds, Waiting};
use crate::rootfs::Rootfs;

/// What the first process shows as its name.
const NAME: &std::ffi::CStr = c"pause";

/// A pid namespace with nothing in it yet. Dropping it kills whatever is in it.
#[derive(Debug)]
pub struct PidNamespace {
    /// The first process lives as long as this is open.
    _channel: Waiting,
    file: OwnedFd,
}

impl PidNamespace {
    /// Makes one. Blocking. The [`Child`] is its first process, which the caller must wait for, as it must for all children.
    ///
    /// # Errors
    /// [`JailError`]; nothing is left then but a child that is about to end.
    pub fn create() -> Result<(PidNamespace, Child), JailError> {
        let job = Job {
            kind: Kind::Hold,
            id: "the pid namespace".to_owned(),
            rootfs: String::new(),
            cgroup: String::new(),
            spec: Vec::new(),
            terminal: false,
            rows: 0,
            cols: 0,
            namespaces: 0,
            cgroup_files: 0,
        };
        let fds = JobFds { cgroup_procs: Vec::new(), init: None, stdio: None };
        let (channel, child) = launch::prepare(&job, fds, &IdMaps { uids: &[], gids: &[] })?;
        let path = format!("/proc/{}/ns/pid", child.pid);
        let file = std::fs::File::open(&path).step(|| format!("opening {path}"))?;
        Ok((PidNamespace { _channel: channel, file: file.into() }, child))
    }

    /// The namespace's file, to be joined.
    pub fn file(&self) -> &OwnedFd {
        &self.file
    }
}

/// Stage 0: the namespaces.
pub(crate) fn enter() -> Result<(), JailError> {
    let all = CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    unshare(all).step(|| format!("making new namespaces ({all:?})"))
}

/// Stage 1: the whole life of the first process. Returns when the agent lets go of it, or when it could not begin.
pub(crate) fn hold(channel: &Channel) -> Result<(), JailError> {
    rustix::process::setsid().step(|| "beginning a session".to_owned())?;
    empty_root()?;
    reset_signals().step(|| "resetting signals".to_owned())?;
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&children), None).step(|| "blocking SIGCHLD".to_owned())?;
    let orphans = SignalFd::with_flags(&children, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .step(|| "signalfd".to_owned())?;
    // It has no right to be told apart by name if that fails.
    let _ = nix::sys::prctl::set_name(NAME);
    give_up_rights()?;
    // The tie is to the agent's thread that started the helper; from here on the channel tells of the agent's end.
    set_parent_process_death_signal(None).step(|| "untying from the agent's thread".to_owned())?;
    channel.send(&Message::Ready).step(|| "telling the agent".to_owned())?;
    loop {
        let mut fds = [PollFd::new(channel, PollFlags::IN), PollFd::new(&orphans, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e).step(|| "waiting for orphans".to_owned()),
        }
        if !fds[0].revents().is_empty() {
            // Nothing is ever said there: it has closed.
            return Ok(());
        }
        while let Ok(Some(_)) = orphans.read_signal() {}
        reap();
    }
}

/// An empty file system that cannot be written to, in place of the agent's.
fn empty_root() -> Result<(), JailError> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .step(|| "cutting the mount namespace off from the agent's".to_owned())?;
    // A directory that every guest has; this mount namespace is nobody else's.
    let place = rustix::fs::open("/run", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .step(|| "opening /run".to_owned())?;
    Rootfs::empty(&place)?.pivot(true)
}

fn give_up_rights() -> Result<(), JailError> {
    let what = || "giving up rights".to_owned();
    cloexec_from(3).step(what)?;
    bounding::clear().step(what)?;
    CapState::empty().set_current().step(what)?;
    capctl::prctl::set_no_new_privs().step(what)
}

fn reap() {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}
