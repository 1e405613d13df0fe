//! The file systems of the guest.

use std::fs;
use std::os::unix::fs::symlink;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use super::BootError;

struct Mount {
    fstype: &'static str,
    at: &'static str,
    flags: MsFlags,
    data: &'static str,
    /// Whether the guest is useless without it.
    needed: bool,
}

const QUIET: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
const NO_SUID: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

const MOUNTS: &[Mount] = &[
    Mount { fstype: "proc", at: "/proc", flags: QUIET, data: "", needed: true },
    Mount { fstype: "sysfs", at: "/sys", flags: QUIET, data: "", needed: true },
    Mount { fstype: "devtmpfs", at: "/dev", flags: MsFlags::MS_NOSUID, data: "mode=0755", needed: true },
    Mount {
        fstype: "devpts",
        at: "/dev/pts",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        data: "mode=0620,gid=5,ptmxmode=0666",
        needed: true,
    },
    Mount { fstype: "tmpfs", at: "/dev/shm", flags: QUIET, data: "mode=1777", needed: true },
    // No noexec: rootfs and volumes appear below /run.
    Mount { fstype: "tmpfs", at: "/run", flags: NO_SUID, data: "mode=0755", needed: true },
    Mount { fstype: "tmpfs", at: "/tmp", flags: NO_SUID, data: "mode=1777", needed: true },
    Mount { fstype: "cgroup2", at: "/sys/fs/cgroup", flags: QUIET, data: "nsdelegate", needed: true },
    Mount { fstype: "mqueue", at: "/dev/mqueue", flags: QUIET, data: "", needed: false },
];

const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Mounts them all, in order.
///
/// # Errors
/// [`BootError`] for one that is needed.
pub fn mount_all() -> Result<(), BootError> {
    for m in MOUNTS {
        match mount_one(m) {
            Ok(()) => {}
            Err(e) if m.needed => return Err(e),
            Err(e) => log::info!("{}", crate::failure::chain(&e)),
        }
    }
    for (target, link) in LINKS {
        match symlink(target, link) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => log::warn!("no {link}: {e}"),
            _ => {}
        }
    }
    for dir in ["/etc", "/var"] {
        fs::create_dir_all(dir).map_err(|e| BootError::new("making", dir, e))?;
    }
    Ok(())
}

fn mount_one(m: &Mount) -> Result<(), BootError> {
    match fs::create_dir(m.at) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(BootError::new("making", m.at, e)),
    }
    match mount(Some(m.fstype), m.at, Some(m.fstype), m.flags, Some(m.data)) {
        // The kernel has mounted it already (devtmpfs, on a root from a disk).
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(e) => Err(BootError::new(m.fstype, m.at, e)),
    }
}
