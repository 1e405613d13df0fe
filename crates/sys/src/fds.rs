//! Inherited descriptors.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Closes every descriptor from `first` on: what a careless parent let us inherit (a leaked pipe end makes docker
/// wait for ever). To be called before anything of ours is open there.
///
/// # Errors
/// `close_range(2)`'s; Linux 5.9 is needed.
pub fn close_from(first: RawFd) -> io::Result<()> {
    // SAFETY: the caller's promise: at the start of a program no owner of such a descriptor exists yet.
    let r = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_int::MAX, 0) };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Takes over an inherited descriptor by its number.
///
/// # Errors
/// `EBADF` when it is not open.
pub fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: only reads flags.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open (checked above), and by the caller's promise nothing in this program owns it yet: it was
    // inherited, and its number was told to us for this purpose.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Moves an inherited descriptor to another number, closing what was there; it is closed at exec.
///
/// # Errors
/// `dup3(2)`'s.
pub fn move_to(number: RawFd, to: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: at the start of a program no owner of either number exists yet (the caller's promise, as in `adopt`).
    let r = unsafe { libc::dup3(number, to, libc::O_CLOEXEC) };
    if r < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `to` was just made; see above for `number`, which is not used again.
    unsafe {
        libc::close(number);
        Ok(OwnedFd::from_raw_fd(to))
    }
}
