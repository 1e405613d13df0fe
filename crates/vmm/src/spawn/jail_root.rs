//! A root directory that holds only what a program needs to see.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use kata_sys::process::mount::{MountAttrs, set_mount_attrs};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, mknod};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::SpawnError;
use super::wire::{Bind, Root};

/// Where the new root is put together: a directory that every system has. What it held is hidden only from this
/// process, and all that comes from there is opened before.
const STAGE: &str = "/run";

/// Mounts made elsewhere appear here, ours nowhere else.
pub(super) fn make_slave() -> io::Result<()> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>)?;
    Ok(())
}

/// Something of the host's, held before the stage covers its path.
enum Held {
    Link { target: PathBuf, points_to: PathBuf },
    Tree { target: PathBuf, tree: OwnedFd, is_dir: bool },
}

/// Makes `root` the root directory of this process's mount namespace, which must be its own. Devices belong to `user`.
pub(super) fn enter(root: &Root, user: Option<(u32, u32)>) -> Result<(), SpawnError> {
    let mut held = Vec::with_capacity(root.binds.len());
    for bind in &root.binds {
        let shown = bind.source.display().to_string();
        match hold(bind) {
            Ok(one) => held.push(one),
            Err(e) if bind.optional && e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(SpawnError::new("open for the new root", shown, e)),
        }
    }
    let mut devices = Vec::with_capacity(root.devices.len());
    for path in &root.devices {
        let device =
            device_number(path).map_err(|e| SpawnError::new("look at device", path.display().to_string(), e))?;
        devices.push((path, device));
    }

    // Directories and links only; a megabyte is plenty.
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(Some("kata-root"), STAGE, Some("tmpfs"), flags, Some("mode=0755,size=1m,nr_inodes=1k"))
        .map_err(|e| SpawnError::new("mount the new root at", STAGE, e))?;
    for one in &held {
        let (Held::Link { target, .. } | Held::Tree { target, .. }) = one;
        place(one).map_err(|e| SpawnError::new("show in the new root", target.display().to_string(), e))?;
    }
    for (path, device) in devices {
        make_device(path, device, user).map_err(|e| SpawnError::new("make device", path.display().to_string(), e))?;
    }
    if root.proc {
        mount_proc().map_err(|e| SpawnError::new("mount", "/proc", e))?;
    }
    pivot().map_err(|e| SpawnError::new("change to", "the new root", e))
}

fn hold(bind: &Bind) -> io::Result<Held> {
    let target = bind.target.clone();
    if !bind.follow && fs::symlink_metadata(&bind.source)?.is_symlink() {
        return Ok(Held::Link { target, points_to: fs::read_link(&bind.source)? });
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, &bind.source, flags)?;
    let attrs = MountAttrs { read_only: true, nosuid: true, nodev: true, slave: true, ..MountAttrs::default() };
    set_mount_attrs(tree.as_fd(), attrs, true)?;
    let is_dir = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&tree)?.st_mode).is_dir();
    Ok(Held::Tree { target, tree, is_dir })
}

/// The stage's path for a path of the new root.
fn staged(target: &Path) -> io::Result<PathBuf> {
    let relative = target.strip_prefix("/").map_err(|_| io::ErrorKind::InvalidInput)?;
    let plain = relative.components().all(|c| matches!(c, std::path::Component::Normal(_)));
    if !plain || relative.as_os_str().is_empty() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(Path::new(STAGE).join(relative))
}

fn make_parent(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    match path.parent() {
        // The umask must not make it unreadable for the program's user.
        Some(parent) if !parent.exists() => {
            make_parent(parent)?;
            fs::DirBuilder::new().mode(0o755).create(parent)?;
            fs::set_permissions(parent, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        }
        _ => Ok(()),
    }
}

fn place(held: &Held) -> io::Result<()> {
    match held {
        Held::Link { target, points_to } => {
            let path = staged(target)?;
            make_parent(&path)?;
            symlink(points_to, path)
        }
        Held::Tree { target, tree, is_dir } => {
            let path = staged(target)?;
            make_parent(&path)?;
            if !path.exists() {
                if *is_dir { fs::create_dir(&path)? } else { fs::write(&path, "")? }
            }
            move_mount(tree, "", CWD, &path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
            Ok(())
        }
    }
}

/// Processes and nothing else of what /proc has (Documentation/filesystems/proc.rst, "subset"; Linux 5.8).
fn mount_proc() -> io::Result<()> {
    let at = Path::new(STAGE).join("proc");
    fs::create_dir(&at)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
    Ok(mount(Some("proc"), &at, Some("proc"), flags, Some("subset=pid"))?)
}

fn device_number(path: &Path) -> io::Result<u64> {
    let meta = fs::metadata(path)?;
    if meta.file_type().is_char_device() { Ok(meta.rdev()) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

fn make_device(path: &Path, device: u64, user: Option<(u32, u32)>) -> io::Result<()> {
    let path = staged(path)?;
    make_parent(&path)?;
    mknod(&path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), device)?;
    if let Some((uid, gid)) = user {
        std::os::unix::fs::chown(&path, Some(uid), Some(gid))?;
    }
    Ok(())
}

fn pivot() -> io::Result<()> {
    std::env::set_current_dir(STAGE)?;
    // The old root comes to lie over the new one, and is taken off.
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    std::env::set_current_dir("/")?;
    let root =
        rustix::fs::open("/", rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty())?;
    set_mount_attrs(root.as_fd(), MountAttrs { read_only: true, nosuid: true, ..MountAttrs::default() }, false)
}
