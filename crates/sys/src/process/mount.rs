//! Mount attributes: the part of the mount API that rustix does not wrap.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What to set on a mount (flags of `mount_setattr(2)`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MountAttrs {
    /// No writing through this mount.
    pub read_only: bool,
    /// Set-id bits and file capabilities do not count.
    pub nosuid: bool,
    /// Device nodes do not open.
    pub nodev: bool,
    /// Nothing is executed from it.
    pub noexec: bool,
    /// Mounts made in the original appear here, ours (and our unmounting) do not appear there.
    pub slave: bool,
    /// Nor do mounts made in the original appear here. Counts before `slave`.
    pub private: bool,
}

/// Sets `attrs` on the mount whose root is `mount` (a descriptor of `open_tree` or `fsmount`, or any directory that is
/// a mount's root), with `recursive` on everything mounted below it too. Nothing is ever cleared.
///
/// Attributes belong to a mount before it is attached or not at all: a mount attached to a shared parent is copied to
/// the peers at once, and later changes do not follow.
///
/// # Errors
/// `mount_setattr(2)`'s; Linux 5.12 is needed.
pub fn set_mount_attrs(mount: BorrowedFd<'_>, attrs: MountAttrs, recursive: bool) -> io::Result<()> {
    let mut set = 0u64;
    for (wanted, flag) in [
        (attrs.read_only, libc::MOUNT_ATTR_RDONLY),
        (attrs.nosuid, libc::MOUNT_ATTR_NOSUID),
        (attrs.nodev, libc::MOUNT_ATTR_NODEV),
        (attrs.noexec, libc::MOUNT_ATTR_NOEXEC),
    ] {
        if wanted {
            set |= flag;
        }
    }
    let propagation = match attrs {
        MountAttrs { private: true, .. } => libc::MS_PRIVATE,
        MountAttrs { slave: true, .. } => libc::MS_SLAVE,
        _ => 0,
    };
    let attr = libc::mount_attr { attr_set: set, attr_clr: 0, propagation, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: an empty C string as the path, and a mount_attr that lives across the call with its true size.
    let r = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
