//! The daemon's mount namespace: its own, slave to the host's, so that a kill leaks no mount.

use std::os::fd::AsFd;

use kata_sandbox::Machine;
use nix::mount::MsFlags;
use nix::sched::{CloneFlags, setns, unshare};

/// A mount namespace of this thread's own: a copy of the one it is in.
pub(super) fn own() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    nix::mount::mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
}

/// Moves this thread, and those that it makes from now on, into a copy of `theirs`, with the machine's share. The file
/// daemon goes on seeing what is mounted into the share: the share that is taken along is a peer of the one left behind.
pub(super) fn follow(theirs: impl AsFd, machine: &mut Machine) -> Result<(), String> {
    let text = |what: &'static str| move |e: nix::Error| format!("cannot {what}: {e}");
    let share = machine.share.carry().map_err(|e| e.to_string())?;
    // Threads share their root and working directory until told otherwise, and setns(2) wants them unshared.
    unshare(CloneFlags::CLONE_FS).map_err(text("have a working directory of the main thread's own"))?;
    setns(theirs, CloneFlags::CLONE_NEWNS).map_err(text("enter the taker's mount namespace"))?;
    own().map_err(text("make a mount namespace"))?;
    machine.share.put_down(share).map_err(|e| e.to_string())
}
