//! Leaves the initrd's file system. It is the root of the mount tree, which pivot_root(2) refuses to replace, and a
//! container's last step into its rootfs is a pivot_root. So a tmpfs is moved on top of it and becomes the root; copies
//! of the mount tree (new mount namespaces) then have a root that can be pivoted away.
//!
//! The agent keeps running from the initrd's /init: the file stays where it is, below the new root, and
//! /proc/self/exe still leads to it. Everything else of the initrd is deleted, which gives its memory back.

use std::fs;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{FsType, statfs};

use super::BootError;

const NEW: &str = "/newroot";
/// What stays in the old root: the agent itself, its console, and our mount point.
const KEEP: &[&str] = &["init", "dev", "newroot"];
/// ramfs (linux/magic.h).
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6u32 as _);

/// Makes a tmpfs the root, if the root is an initrd.
///
/// # Errors
/// [`BootError`].
pub fn switch() -> Result<(), BootError> {
    let root = Path::new("/");
    let kind = statfs(root).map_err(|e| BootError::new("looking at", root, e))?.filesystem_type();
    if kind != RAMFS_MAGIC && kind != nix::sys::statfs::TMPFS_MAGIC {
        // A root from a disk is a mount like any other.
        return Ok(());
    }
    fs::create_dir(NEW).map_err(|e| BootError::new("making", NEW, e))?;
    mount(Some("tmpfs"), NEW, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))
        .map_err(|e| BootError::new("mounting a tmpfs", NEW, e))?;
    free(root);
    std::env::set_current_dir(NEW).map_err(|e| BootError::new("entering", NEW, e))?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .map_err(|e| BootError::new("moving to the root", NEW, e))?;
    nix::unistd::chroot(".").map_err(|e| BootError::new("changing the root to", NEW, e))?;
    std::env::set_current_dir("/").map_err(|e| BootError::new("entering", "/", e))
}

/// Deletes the initrd's content.
fn free(root: &Path) {
    let Ok(entries) = fs::read_dir(root) else { return };
    for entry in entries.flatten() {
        if KEEP.iter().any(|keep| entry.file_name() == *keep) {
            continue;
        }
        let is_dir = entry.file_type().is_ok_and(|t| t.is_dir());
        let gone = if is_dir { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
        if let Err(e) = gone {
            log::warn!("{} of the initrd keeps its memory: {e}", entry.path().display());
        }
    }
}
