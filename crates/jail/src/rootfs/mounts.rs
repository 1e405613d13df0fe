//! Making mounts, first detached, then with all their attributes, then put in place: so a mount is never seen with
//! fewer restrictions than asked for, and its place is named by a descriptor, not by a path that could change.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use kata_sys::jail::{MountAttr, mount_setattr};
use rustix::fs::{AtFlags, CWD, FileType, statat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_reconfigure, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, fspick, move_mount, open_tree,
};

use super::options::MountOptions;
use crate::error::{JailError, Step, SysError};

/// A mount that is nowhere yet.
pub(crate) struct Detached(OwnedFd);

impl Detached {
    /// A copy of what is at `path`, with what is mounted below it if `recursive`.
    pub(crate) fn bind(path: &str, recursive: bool) -> Result<Self, JailError> {
        Self::copy(CWD, path, recursive).step(|| format!("bind-mounting {path}"))
    }

    /// A copy of what `fd` refers to.
    pub(crate) fn bind_fd(fd: impl AsFd, recursive: bool) -> Result<Self, rustix::io::Errno> {
        Self::copy(fd.as_fd(), "", recursive)
    }

    fn copy(dir: BorrowedFd<'_>, path: &str, recursive: bool) -> Result<Self, rustix::io::Errno> {
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        if recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        if path.is_empty() {
            flags |= OpenTreeFlags::AT_EMPTY_PATH;
        }
        open_tree(dir, path, flags).map(Detached)
    }

    /// A new filesystem.
    pub(crate) fn filesystem(kind: &str, source: &str, data: &[String]) -> Result<Self, JailError> {
        let fs = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).step(|| format!("opening filesystem type {kind:?}"))?;
        let step = |what: String, e: rustix::io::Errno| JailError::Step {
            step: format!("mounting {kind} from {source:?}: {what}{}", complaints(&fs)),
            source: e.errno(),
        };
        if !source.is_empty() {
            fsconfig_set_string(&fs, "source", source).map_err(|e| step("its source".into(), e))?;
        }
        for option in data {
            configure(&fs, option).map_err(|e| step(format!("option {option:?}"), e))?;
        }
        fsconfig_create(&fs).map_err(|e| step("making it".into(), e))?;
        fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
            .map(Detached)
            .map_err(|e| step("mounting it".into(), e))
    }

    /// Applies the attributes and the propagation.
    pub(crate) fn apply(&self, options: &MountOptions) -> Result<(), JailError> {
        set(&self.0, options)
    }

    /// One change of attributes.
    pub(crate) fn set_attr(&self, attr: &MountAttr, recursive: bool) -> std::io::Result<()> {
        mount_setattr(&self.0, attr, recursive)
    }

    /// Whether the mount's root is a directory; a bind mount of a file is none.
    pub(crate) fn is_dir(&self) -> Result<bool, rustix::io::Errno> {
        let mode = statat(&self.0, "", AtFlags::EMPTY_PATH)?.st_mode;
        Ok(FileType::from_raw_mode(mode) == FileType::Directory)
    }

    /// Mounts it on `place`. The descriptor then refers to the attached mount's root.
    pub(crate) fn attach(self, place: impl AsFd) -> Result<OwnedFd, rustix::io::Errno> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&self.0, "", place, "", flags)?;
        Ok(self.0)
    }

    /// The root of the mount that is nowhere yet, to fill it.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Changes the mount whose root is `place`, as `mount -o remount` does.
pub(crate) fn remount(place: &OwnedFd, options: &MountOptions) -> Result<(), JailError> {
    if options.bind.is_none() && !options.data.is_empty() {
        let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
        let fs = fspick(place, "", flags).step(|| "remounting".to_owned())?;
        for option in &options.data {
            configure(&fs, option).step(|| format!("remounting with {option:?}{}", complaints(&fs)))?;
        }
        fsconfig_reconfigure(&fs).step(|| format!("remounting{}", complaints(&fs)))?;
    }
    set(place, options)
}

fn set(mount: &OwnedFd, options: &MountOptions) -> Result<(), JailError> {
    for (attr, recursive) in [(&options.recursive_attr, true), (&options.attr, false)] {
        if *attr != MountAttr::default() {
            mount_setattr(mount, attr, recursive).step(|| "setting the mount's attributes".to_owned())?;
        }
    }
    for (propagation, recursive) in &options.propagation {
        let attr = MountAttr { propagation: *propagation, ..Default::default() };
        mount_setattr(mount, &attr, *recursive).step(|| "setting the mount's propagation".to_owned())?;
    }
    Ok(())
}

fn configure(fs: &OwnedFd, option: &str) -> Result<(), rustix::io::Errno> {
    match option.split_once('=') {
        Some((key, value)) => fsconfig_set_string(fs, key, value),
        None => fsconfig_set_flag(fs, option),
    }
}

/// What the filesystem has to say about the failure, each line as `: text`.
fn complaints(fs: &OwnedFd) -> String {
    let mut out = String::new();
    let mut line = [0u8; 512];
    // One message a read, ENODATA when there are no more; bounded all the same.
    for _ in 0..16 {
        match rustix::io::read(fs, &mut line) {
            Ok(n) if n > 0 => {
                let text = String::from_utf8_lossy(&line[..n]);
                let text = text.trim_end();
                // "e ", "w " or "i " stands before the text.
                out += &format!(": {}", text.get(2..).unwrap_or(text));
            }
            _ => break,
        }
    }
    out
}
