//! A process's terminal.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, fstat, fstatfs, makedev, openat2, statat};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::error::{JailError, Step};

/// linux/magic.h
const DEVPTS_SUPER_MAGIC: u64 = 0x1cd1;

/// The two sides of a terminal.
pub(crate) struct Terminal {
    pub master: OwnedFd,
    pub slave: OwnedFd,
}

/// Makes a terminal of `rows` x `cols` (0 leaves them) in the devpts that is mounted at `/dev/pts` below `root`, so that
/// the container sees it by name; in the agent's if there is none.
pub(crate) fn open(root: &OwnedFd, rows: u16, cols: u16) -> Result<Terminal, JailError> {
    let what = || "making a terminal".to_owned();
    let master = match container_ptmx(root) {
        Some(fd) => fd,
        None => rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).step(what)?,
    };
    unlockpt(&master).step(what)?;
    // By descriptor: a path to the other side could be made to mean something else.
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = ioctl_tiocgptpeer(&master, flags).step(what)?;
    if rows != 0 || cols != 0 {
        let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size).step(|| format!("setting the terminal's size to {rows}x{cols}"))?;
    }
    Ok(Terminal { master, slave })
}

/// Makes `slave` the controlling terminal of the calling process, which leads a session without one.
pub(crate) fn take(slave: &OwnedFd) -> Result<(), JailError> {
    rustix::process::ioctl_tiocsctty(slave).step(|| "taking the controlling terminal".to_owned())
}

/// Opens the container's ptmx only if it is the real one: what the container put in its place is never opened, because
/// opening some devices does things.
fn container_ptmx(root: &OwnedFd) -> Option<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let dir =
        openat2(root, "dev/pts", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), resolve).ok()?;
    if fstatfs(&dir).ok()?.f_type as u64 != DEVPTS_SUPER_MAGIC {
        return None;
    }
    let is_ptmx = |mode, dev| FileType::from_raw_mode(mode) == FileType::CharacterDevice && dev == makedev(5, 2);
    let st = statat(&dir, "ptmx", AtFlags::SYMLINK_NOFOLLOW).ok()?;
    if !is_ptmx(st.st_mode, st.st_rdev) {
        return None;
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let master = openat2(&dir, "ptmx", flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS).ok()?;
    let st = fstat(&master).ok()?;
    is_ptmx(st.st_mode, st.st_rdev).then_some(master)
}
