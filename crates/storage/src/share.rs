//! The share: `<run directory>/share`, a mount with propagation, into which root file systems and volumes are mounted
//! as they come. The file daemon's mount namespace is a slave of it, so it sees them too.
//!
//! Everything about a mount (read-only above all) is set before it is attached: what is attached appears in the
//! daemon's namespace at once, as it is then, and later changes do not follow.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use kata_sys::process::mount::{MountAttrs, set_mount_attrs};
use kata_types::ContainerId;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use thiserror::Error;

use crate::mountinfo::mounts_below;
use crate::options::Options;
use crate::view::View;

/// The most that `mount(2)` takes as options is a page, less one byte.
const MAX_DATA: usize = 4095;

/// A mount that makes a root file system, as an engine describes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RootfsMount {
    /// "overlay", "bind", "ext4".
    pub fstype: String,
    /// What is mounted.
    pub source: String,
    /// As for mount(8).
    pub options: Vec<String>,
}

/// Why the share could not be changed.
#[derive(Debug, Error)]
pub enum ShareError {
    /// What the caller wants to be seen cannot be used.
    #[error("{what} {path}: {source}")]
    Source {
        /// "the root file system", "the bind source".
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A mount failed.
    #[error("cannot mount {fstype} {from} at {at}: {source}")]
    Mount {
        /// "overlay", "bind".
        fstype: String,
        /// The source.
        from: String,
        /// The mount point.
        at: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The container is there already.
    #[error("container {0} has a root file system already")]
    Exists(ContainerId),
    /// Any other system call.
    #[error("cannot {what} {path}: {source}")]
    Os {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

fn os(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ShareError {
    let path = path.to_owned();
    move |source| ShareError::Os { what, path, source }
}

/// What is remembered of a container, also after it has been taken out.
#[derive(Debug, Default)]
struct Shown {
    /// How many of its id there were before. Each has a directory of another name: the guest's kernel remembers names for
    /// a while, and must not find the last one's files, or their absence, in place of this one's.
    before: u32,
    /// How many volumes it has been given.
    volumes: u32,
    /// It is there now.
    present: bool,
}

/// The share of a sandbox. What is mounted is unmounted when it is dropped.
#[derive(Debug)]
pub struct Share {
    dir: PathBuf,
    containers: BTreeMap<ContainerId, Shown>,
    lent: BTreeSet<&'static str>,
    /// Where what is shown is looked for.
    view: View,
    removed: bool,
}

impl Share {
    /// Makes the share in a sandbox's run directory, empty.
    ///
    /// # Errors
    /// [`ShareError::Os`].
    pub fn create(run_dir: &Path) -> Result<Share, ShareError> {
        // Mounts are found again by their path in mountinfo, which is without links.
        let run_dir = fs::canonicalize(run_dir).map_err(os("find", run_dir))?;
        let dir = run_dir.join("share");
        Share::cleanup(&run_dir)?;
        fs::DirBuilder::new().mode(0o700).create(&dir).map_err(os("make", &dir))?;
        let share =
            Share { dir, containers: BTreeMap::new(), lent: BTreeSet::new(), view: View::default(), removed: false };
        share.mount_itself().map_err(os("make a share of", &share.dir))?;
        Ok(share)
    }

    fn mount_itself(&self) -> io::Result<()> {
        let none = None::<&str>;
        mount(Some(&self.dir), &self.dir, none, MsFlags::MS_BIND, none)?;
        // First apart from whatever the run directory is propagated to, then with a group of its own.
        mount(none, &self.dir, none, MsFlags::MS_PRIVATE, none)?;
        mount(none, &self.dir, none, MsFlags::MS_SHARED, none)?;
        Ok(())
    }

    /// Looks for what is to be shown there from now on.
    pub fn look_in(&mut self, view: View) {
        self.view = view;
    }

    /// Its path.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The run directory has been given another name, or is seen in another mount namespace of ours.
    pub fn moved_to(&mut self, run_dir: &Path) {
        self.dir = run_dir.join("share");
    }

    /// The share's mount, to be taken along into another mount namespace: a peer of this one, so that who sees what is
    /// mounted in this one sees what will be mounted in that one.
    ///
    /// # Errors
    /// [`ShareError::Os`].
    pub fn carry(&self) -> Result<OwnedFd, ShareError> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        open_tree(CWD, &self.dir, flags).map_err(|e| os("take along the mount", &self.dir)(e.into()))
    }

    /// Mounts what was carried, in the mount namespace that is now this thread's.
    ///
    /// # Errors
    /// [`ShareError::Os`].
    pub fn put_down(&mut self, carried: OwnedFd) -> Result<(), ShareError> {
        move_mount(carried, "", CWD, &self.dir, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(|e| os("mount the share at", &self.dir)(e.into()))
    }

    /// The name of a container's directory in the share. An id has at most 128 bytes, and none has a `~`.
    fn name(&self, cid: &ContainerId) -> String {
        match self.containers.get(cid).map_or(0, |shown| shown.before) {
            0 => cid.to_string(),
            before => format!("{cid}~{before}"),
        }
    }

    /// Makes a container's root file system: by the engine's mounts, one over the other, or, without any, as a view of
    /// `bundle_rootfs` with all that is mounted in it. Returns its path in the guest.
    ///
    /// # Errors
    /// [`ShareError`]; nothing of the container is left then.
    pub fn add_rootfs(
        &mut self,
        cid: &ContainerId,
        mounts: &[RootfsMount],
        bundle_rootfs: &Path,
        read_only: bool,
    ) -> Result<String, ShareError> {
        let name = self.name(cid);
        let target = self.dir.join(&name).join("rootfs");
        if target.exists() {
            return Err(ShareError::Exists(cid.clone()));
        }
        self.containers.entry(cid.clone()).or_default().present = true;
        make_dirs(&target)?;
        let made = if mounts.is_empty() {
            attach_bind(&self.view, "the root file system", bundle_rootfs, &target, attrs(read_only), true, Some(true))
        } else {
            mounts.iter().try_for_each(|m| attach_mount(&self.view, m, &target, read_only))
        };
        if let Err(e) = made {
            // The error that led here is the one to report.
            if let Err(e) = self.remove_container(cid) {
                tracing::warn!("{e}");
            }
            return Err(e);
        }
        Ok(format!("{}/{name}/rootfs", kata_types::GUEST_SHARE_DIR))
    }

    /// Shows a file or directory of the host to a container, with what is mounted below it later; returns its path in the
    /// guest.
    ///
    /// # Errors
    /// [`ShareError`].
    pub fn add_bind(
        &mut self,
        cid: &ContainerId,
        source: &Path,
        read_only: bool,
        recursive: bool,
    ) -> Result<String, ShareError> {
        self.show(cid, source, recursive, attrs(read_only))
    }

    /// The same, without what is mounted below it later (mount_namespaces(7), `MS_PRIVATE`).
    ///
    /// # Errors
    /// [`ShareError`].
    pub fn add_private_bind(
        &mut self,
        cid: &ContainerId,
        source: &Path,
        read_only: bool,
        recursive: bool,
    ) -> Result<String, ShareError> {
        self.show(cid, source, recursive, MountAttrs { private: true, ..attrs(read_only) })
    }

    fn show(
        &mut self,
        cid: &ContainerId,
        source: &Path,
        recursive: bool,
        attrs: MountAttrs,
    ) -> Result<String, ShareError> {
        let of = self.name(cid);
        let shown = self.containers.entry(cid.clone()).or_default();
        shown.present = true;
        let name = shown.volumes.to_string();
        shown.volumes += 1;
        let target = self.dir.join(&of).join("mounts").join(&name);
        if let Some(parent) = target.parent() {
            make_dirs(parent)?;
        }
        if let Err(e) = attach_bind(&self.view, "the bind source", source, &target, attrs, recursive, None) {
            if let Err(e) = remove_placeholder(&target) {
                tracing::warn!("{e}");
            }
            return Err(e);
        }
        Ok(format!("{}/{of}/mounts/{name}", kata_types::GUEST_SHARE_DIR))
    }

    /// Lends a directory to the guest itself, read-only, as `name`, which must be no container's; it stays until the share ends.
    /// Lending it again changes nothing.
    ///
    /// # Errors
    /// [`ShareError`]; [`ShareError::Source`] where there is no such directory.
    pub fn lend(&mut self, name: &'static str, source: &Path) -> Result<(), ShareError> {
        if self.lent.contains(name) {
            return Ok(());
        }
        let attrs = MountAttrs { private: true, ..attrs(true) };
        let what = "the directory to be lent to the guest";
        attach_bind(&self.view, what, source, &self.dir.join(name), attrs, false, Some(true))?;
        self.lent.insert(name);
        Ok(())
    }

    /// Where on the host the guest's path of something shown is: the share itself, whatever is mounted at its source.
    pub fn on_host(&self, guest: &str) -> PathBuf {
        let below = Path::new(guest).strip_prefix(kata_types::GUEST_SHARE_DIR);
        self.dir.join(below.unwrap_or(Path::new("")))
    }

    /// Takes a container out. Only our own empty mount points are removed, never a file's content. Removing what is
    /// not there is no error.
    ///
    /// # Errors
    /// [`ShareError::Os`] with what could not be removed.
    pub fn remove_container(&mut self, cid: &ContainerId) -> Result<(), ShareError> {
        remove_tree(&self.dir.join(self.name(cid)))?;
        if let Some(shown) = self.containers.get_mut(cid).filter(|shown| shown.present) {
            *shown = Shown { before: shown.before.saturating_add(1), volumes: 0, present: false };
        }
        Ok(())
    }

    /// Takes everything out, and the share itself.
    ///
    /// # Errors
    /// [`ShareError::Os`] with what could not be removed.
    pub fn remove_all(mut self) -> Result<(), ShareError> {
        self.removed = true;
        remove_tree(&self.dir)
    }

    /// Removes what an earlier process left of a share, as far as this mount namespace shows it. Also fine where there
    /// is nothing.
    ///
    /// # Errors
    /// [`ShareError::Os`] with what could not be removed.
    pub fn cleanup(run_dir: &Path) -> Result<(), ShareError> {
        match fs::canonicalize(run_dir) {
            Ok(run_dir) => remove_tree(&run_dir.join("share")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(os("find", run_dir)(e)),
        }
    }
}

/// Removes a sandbox's run directory with what an earlier process left in it. What is mounted in it is the user's: as
/// long as anything is, nothing is removed.
///
/// # Errors
/// [`ShareError::Os`] with what could not be removed.
pub fn remove_run_dir(run_dir: &Path) -> Result<(), ShareError> {
    Share::cleanup(run_dir)?;
    let dir = match fs::canonicalize(run_dir) {
        Ok(dir) => dir,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(os("find", run_dir)(e)),
    };
    if let Some(mount) = mounts_below(&dir).map_err(os("list the mounts below", &dir))?.first() {
        return Err(os("remove what is still mounted", mount)(io::ErrorKind::ResourceBusy.into()));
    }
    match fs::remove_dir_all(&dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(os("remove", &dir)(e)),
        _ => Ok(()),
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if !self.removed
            && let Err(e) = remove_tree(&self.dir)
        {
            tracing::warn!("{e}");
        }
    }
}

/// What is set on everything in the share: neither set-id programs nor devices of the guest's making are of use on the
/// host, and the guest's kernel decides about its own. What is unmounted in the share must not be unmounted where it
/// came from.
fn attrs(read_only: bool) -> MountAttrs {
    MountAttrs { read_only, nosuid: true, nodev: true, noexec: false, slave: true, private: false }
}

/// Makes a directory and those above it.
fn make_dirs(dir: &Path) -> Result<(), ShareError> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(os("make", dir))
}

/// Attaches a view of `source` at `target`, which is made if it is not there. `must_be_dir`: none if any kind will do.
fn attach_bind(
    view: &View,
    what: &'static str,
    source: &Path,
    target: &Path,
    attrs: MountAttrs,
    recursive: bool,
    must_be_dir: Option<bool>,
) -> Result<(), ShareError> {
    let wrong = |e: io::Error| ShareError::Source { what, path: source.to_owned(), source: e };
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = view.look(|| open_tree(CWD, source, flags)).map_err(wrong)?.map_err(|e| wrong(e.into()))?;
    let stat = rustix::fs::fstat(&tree).map_err(|e| wrong(e.into()))?;
    let is_dir = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir();
    if must_be_dir == Some(true) && !is_dir {
        return Err(wrong(io::ErrorKind::NotADirectory.into()));
    }
    let failed = |e: io::Error| ShareError::Mount {
        fstype: "bind".to_owned(),
        from: source.display().to_string(),
        at: target.to_owned(),
        source: e,
    };
    set_mount_attrs(tree.as_fd(), attrs, recursive).map_err(failed)?;
    if !target.exists() {
        let made = if is_dir { fs::create_dir(target) } else { fs::File::create_new(target).map(drop) };
        made.map_err(os("make", target))?;
    }
    move_mount(&tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(|e| failed(e.into()))
}

/// Attaches one of an engine's mounts.
fn attach_mount(view: &View, described: &RootfsMount, target: &Path, read_only: bool) -> Result<(), ShareError> {
    let mut options = Options::parse(&described.fstype, &described.options);
    if let Some(recursive) = options.bind {
        let mut attrs = attrs(read_only);
        attrs.read_only |= options.attrs().read_only;
        attrs.noexec |= options.attrs().noexec;
        let source = Path::new(&described.source);
        return attach_bind(view, "the root file system", source, target, attrs, recursive, Some(true));
    }
    options.flags.0 |= MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    options.flags.0.set(MsFlags::MS_RDONLY, read_only || options.flags.0.contains(MsFlags::MS_RDONLY));
    let mut data = options.data.join(",");
    let mut held = Vec::new();
    if data.len() > MAX_DATA && described.fstype == "overlay" {
        data = shortened(&options.data, &mut held)?;
    }
    let source = Some(described.source.as_str()).filter(|s| !s.is_empty());
    let fstype = described.fstype.as_str();
    mount(source.or(Some(fstype)), target, Some(fstype), options.flags.0, Some(data.as_str())).map_err(|e| {
        ShareError::Mount {
            fstype: described.fstype.clone(),
            from: if data.is_empty() { described.source.clone() } else { format!("{} ({data})", described.source) },
            at: target.to_owned(),
            source: e.into(),
        }
    })
}

/// The options of an overlay with many layers, each layer as a descriptor's path, which is short. `held` keeps the
/// descriptors open for the mount.
fn shortened(options: &[String], held: &mut Vec<OwnedFd>) -> Result<String, ShareError> {
    let mut short = Vec::with_capacity(options.len());
    for option in options {
        let Some(layers) = option.strip_prefix("lowerdir=") else {
            short.push(option.clone());
            continue;
        };
        let mut paths = Vec::new();
        for layer in layers.split(':').map(Path::new) {
            let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
            let fd = rustix::fs::open(layer, flags, rustix::fs::Mode::empty()).map_err(|e| ShareError::Source {
                what: "the layer",
                path: layer.to_owned(),
                source: e.into(),
            })?;
            paths.push(format!("/proc/self/fd/{}", fd.as_raw_fd()));
            held.push(fd);
        }
        short.push(format!("lowerdir={}", paths.join(":")));
    }
    Ok(short.join(","))
}

/// Unmounts everything at and below `dir`, and removes the directories and empty files that are left.
fn remove_tree(dir: &Path) -> Result<(), ShareError> {
    let mounts = mounts_below(dir).map_err(os("list the mounts below", dir))?;
    for point in mounts.iter().rev() {
        unmount(point)?;
    }
    remove_placeholders(dir)
}

/// Unmounts, or, where something still holds it (such as the file daemon, as long as the guest remembers a file),
/// takes it off the tree, to end when it is let go.
fn unmount(point: &Path) -> Result<(), ShareError> {
    match umount2(point, MntFlags::UMOUNT_NOFOLLOW) {
        // Gone with one that lay below it in the tree.
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => Ok(()),
        Err(_) => match umount2(point, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => Ok(()),
            Err(e) => Err(os("unmount", point)(e.into())),
        },
    }
}

/// Removes a directory of our own with the mount points in it. A file that is not empty is nobody's mount point: it
/// stays, and is the error.
fn remove_placeholders(path: &Path) -> Result<(), ShareError> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(os("look at", path)(e)),
        Ok(meta) if !meta.is_dir() => return remove_placeholder(path),
        Ok(_) => {}
    }
    for entry in fs::read_dir(path).map_err(os("list", path))? {
        remove_placeholders(&entry.map_err(os("list", path))?.path())?;
    }
    remove_placeholder(path)
}

/// Removes one mount point.
fn remove_placeholder(path: &Path) -> Result<(), ShareError> {
    let removed = fs::symlink_metadata(path).and_then(|meta| {
        if meta.is_dir() {
            fs::remove_dir(path)
        } else if meta.is_file() && meta.len() == 0 {
            fs::remove_file(path)
        } else {
            Err(io::ErrorKind::DirectoryNotEmpty.into())
        }
    });
    match removed {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(os("remove", path)),
    }
}
