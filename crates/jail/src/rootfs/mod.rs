//! The container's view of the filesystem.

pub(crate) mod copy_up;
pub(crate) mod devices;
pub(crate) mod mounts;
pub(crate) mod options;
pub(crate) mod path;

use std::os::fd::OwnedFd;

use kata_proto::oci;
use kata_sys::jail::{MountAttr, mount_setattr};
use nix::errno::Errno;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};

use crate::error::{JailError, Step};
use crate::report::Report;
use mounts::Detached;
use options::MountOptions;
use path::{Missing, resolve};

/// A container's root, mounted and being filled, before it is anybody's root.
pub(crate) struct Rootfs {
    root: OwnedFd,
    propagation: Option<(u64, bool)>,
    /// Made read-only at the end: nodes and mount points must get in first.
    late_read_only: Vec<OwnedFd>,
}

/// What of the container's surroundings the mounts depend on.
pub(crate) struct Surroundings<'a> {
    /// The container's cgroup directory in the agent's view; bound where the spec mounts cgroups and the container has
    /// no cgroup namespace.
    pub cgroup: &'a str,
    /// Whether it has one.
    pub cgroup_namespace: bool,
    /// For the agent's log.
    pub report: &'a Report,
}

impl Rootfs {
    /// Cuts the mount namespace off from the agent's and mounts `rootfs` on itself, which makes it something to pivot to.
    pub(crate) fn open(rootfs: &str, propagation: &str) -> Result<Self, JailError> {
        let propagation = match propagation {
            "" => None,
            word => Some(
                options::propagation(word)
                    .ok_or_else(|| JailError::invalid(format!("unknown rootfsPropagation {word:?}")))?,
            ),
        };
        let shared = matches!(propagation, Some((libc::MS_SHARED, _)));
        let private = matches!(propagation, Some((libc::MS_PRIVATE | libc::MS_UNBINDABLE, _)));
        // A container whose mounts shall be seen outside leaves the sharing as it is.
        if !shared {
            let kind = if private { MountPropagationFlags::PRIVATE } else { MountPropagationFlags::DOWNSTREAM };
            mount_change("/", kind | MountPropagationFlags::REC)
                .step(|| "cutting the mount namespace off from the agent's".to_owned())?;
        }
        let tree = Detached::bind(rootfs, true)?;
        if shared {
            make_parent_private(rootfs)?;
            // pivot_root(2) wants that of the mount that takes the old root as well, which is this one for a moment.
            let private = MountAttr { propagation: libc::MS_PRIVATE, ..Default::default() };
            tree.set_attr(&private, false).step(|| "making the root filesystem's mount private".to_owned())?;
        }
        let place = rustix::fs::open(rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .step(|| format!("opening the root filesystem {rootfs}"))?;
        let root = tree.attach(&place).step(|| format!("mounting the root filesystem {rootfs} on itself"))?;
        Ok(Rootfs { root, propagation, late_read_only: Vec::new() })
    }

    /// An empty root at `place`, in a mount namespace that is cut off from all others.
    pub(crate) fn empty(place: &OwnedFd) -> Result<Self, JailError> {
        let options = ["size=4k", "nr_inodes=2", "mode=555"].map(str::to_owned);
        let root = Detached::filesystem("tmpfs", "tmpfs", &options)?
            .attach(place)
            .step(|| "mounting an empty root file system".to_owned())?;
        Ok(Rootfs { root, propagation: None, late_read_only: Vec::new() })
    }

    /// The root directory.
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.root
    }

    /// Mounts what the spec lists, in its order.
    pub(crate) fn mount_all(&mut self, list: &[oci::Mount], around: &Surroundings<'_>) -> Result<(), JailError> {
        for m in list {
            self.mount(m, around).map_err(|e| match e {
                JailError::Step { step, source } => {
                    JailError::Step { step: format!("mounting {:?}: {step}", m.destination), source }
                }
                other => other,
            })?;
        }
        Ok(())
    }

    fn mount(&mut self, m: &oci::Mount, around: &Surroundings<'_>) -> Result<(), JailError> {
        let mut options = MountOptions::parse(&m.options)?;
        if options.bind.is_none() && matches!(m.type_.as_str(), "bind" | "rbind" | "none") && !options.remount {
            options.bind = Some(m.type_ == "rbind");
        }
        if options.remount {
            let place = self.place(&m.destination, Missing::Fail)?;
            return mounts::remount(&place, &options);
        }
        // Nodes and mount points are made in /dev before it may become read-only.
        let late = m.destination.trim_end_matches('/') == "/dev" && options.bind.is_none();
        let read_only = late && options.defer_read_only();
        let mount = detached(m, &options, around)?;
        let is_dir = mount.is_dir().step(|| format!("looking at {:?}", m.source))?;
        let place = self.place(&m.destination, if is_dir { Missing::MakeDir } else { Missing::MakeFile })?;
        if options.copy_up && m.type_ == "tmpfs" {
            copy_up::copy(&place, mount.fd()).step(|| "copying what it hides".to_owned())?;
        }
        mount.apply(&options)?;
        let mounted = mount.attach(&place).step(|| format!("putting {:?} in place", m.source))?;
        if read_only {
            self.late_read_only.push(mounted);
        }
        Ok(())
    }

    fn place(&self, destination: &str, missing: Missing) -> Result<OwnedFd, JailError> {
        if destination.split('/').all(|c| matches!(c, "" | "." | "..")) {
            return Err(JailError::invalid(format!("mount destination {destination:?}")));
        }
        resolve(&self.root, destination, missing).step(|| "finding or making the mount point".to_owned())
    }

    /// Binds `file` over `path`, which is made if it is missing.
    pub(crate) fn bind_over(&self, file: &OwnedFd, path: &str) -> Result<(), JailError> {
        let place = self.place(path, Missing::MakeFile)?;
        Detached::bind_fd(file, false).and_then(|m| m.attach(&place)).step(|| format!("binding {path}"))?;
        Ok(())
    }

    /// Hides paths: an empty read-only directory over a directory, the null device over anything else.
    pub(crate) fn mask(&self, paths: &[String]) -> Result<(), JailError> {
        if paths.is_empty() {
            return Ok(());
        }
        let null = devices::agent_null()?;
        for path in paths {
            let what = || format!("masking {path}");
            let Some(place) = self.existing(path).step(what)? else { continue };
            let cover = if is_dir(&place).step(what)? {
                let cover = Detached::filesystem("tmpfs", "tmpfs", &[])?;
                cover.set_attr(&options::read_only(), false).step(what)?;
                cover
            } else {
                Detached::bind_fd(&null, false).step(what)?
            };
            cover.attach(&place).step(what)?;
        }
        Ok(())
    }

    /// Makes paths read-only, with what is mounted below them.
    pub(crate) fn make_read_only(&self, paths: &[String]) -> Result<(), JailError> {
        for path in paths {
            let what = || format!("making {path} read-only");
            let Some(place) = self.existing(path).step(what)? else { continue };
            let cover = Detached::bind_fd(&place, true).step(what)?;
            cover.set_attr(&options::read_only(), true).step(what)?;
            cover.attach(&place).step(what)?;
        }
        Ok(())
    }

    /// What a list of paths to protect names; a path that is not there needs no protection.
    fn existing(&self, path: &str) -> Result<Option<OwnedFd>, rustix::io::Errno> {
        match resolve(&self.root, path, Missing::Fail) {
            Ok(fd) => Ok(Some(fd)),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Makes the working directory if it is missing, as runc does; whether that worked shows when it is entered.
    pub(crate) fn make_cwd(&self, cwd: &str) {
        let _ = resolve(&self.root, cwd, Missing::MakeDir);
    }

    /// Makes this the root of the calling process and lets go of the old one.
    pub(crate) fn pivot(self, read_only: bool) -> Result<(), JailError> {
        for mount in &self.late_read_only {
            mount_setattr(mount, &options::read_only(), false).step(|| "making /dev read-only".to_owned())?;
        }
        if read_only {
            mount_setattr(&self.root, &options::read_only(), false)
                .step(|| "making the root filesystem read-only".to_owned())?;
        }
        let old = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .step(|| "opening the old root".to_owned())?;
        rustix::process::fchdir(&self.root).step(|| "entering the root filesystem".to_owned())?;
        // The old root then lies over the new one, and the working directory is the new one.
        nix::unistd::pivot_root(".", ".").map_err(|source| match source {
            Errno::EINVAL => JailError::Step {
                step: "pivot_root (the agent's own root must be a mount that can be left, not the initial ramfs)"
                    .into(),
                source,
            },
            _ => JailError::Step { step: "pivot_root".into(), source },
        })?;
        let what = || "letting go of the old root".to_owned();
        rustix::process::fchdir(&old).step(what)?;
        // Unmounting below must not reach the agent's mounts.
        mount_change(".", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).step(what)?;
        unmount(".", UnmountFlags::DETACH).step(what)?;
        rustix::process::chdir("/").step(what)?;
        if let Some((propagation, recursive)) = self.propagation {
            let attr = MountAttr { propagation, ..Default::default() };
            mount_setattr(&self.root, &attr, recursive).step(|| "setting the root's propagation".to_owned())?;
        }
        Ok(())
    }
}

fn is_dir(fd: &OwnedFd) -> Result<bool, rustix::io::Errno> {
    let mode = rustix::fs::fstat(fd)?.st_mode;
    Ok(rustix::fs::FileType::from_raw_mode(mode) == rustix::fs::FileType::Directory)
}

fn detached(m: &oci::Mount, options: &MountOptions, around: &Surroundings<'_>) -> Result<Detached, JailError> {
    if let Some(recursive) = options.bind {
        if !m.source.starts_with('/') {
            return Err(JailError::invalid(format!("bind mount source {:?} is not absolute", m.source)));
        }
        if !options.data.is_empty() {
            around.report.warn(&format!("mount {:?}: options without meaning {:?}", m.destination, options.data));
        }
        return Detached::bind(&m.source, recursive);
    }
    match m.type_.as_str() {
        "cgroup" | "cgroup2" if around.cgroup_namespace => Detached::filesystem("cgroup2", "cgroup", &options.data),
        "cgroup" | "cgroup2" => Detached::bind(around.cgroup, true),
        "" => Err(JailError::invalid(format!("mount {:?} has no type", m.destination))),
        // These have one superblock for many mounts: only the mount can be read-only.
        "proc" | "sysfs" | "mqueue" | "devpts" | "tmpfs" => Detached::filesystem(&m.type_, &m.source, &options.data),
        kind => {
            let mut data = options.data.clone();
            if options.read_only() {
                data.push("ro".into());
            }
            Detached::filesystem(kind, &m.source, &data)
        }
    }
}

/// pivot_root(2) wants the mount that holds the new root not to be shared.
fn make_parent_private(rootfs: &str) -> Result<(), JailError> {
    let mut dir = std::path::Path::new(rootfs);
    loop {
        match mount_change(dir, MountPropagationFlags::PRIVATE) {
            Ok(()) => return Ok(()),
            // Not the root of a mount: the one that holds it is further up.
            Err(rustix::io::Errno::INVAL) => {}
            Err(e) => return Err(e).step(|| format!("making the mount of {rootfs} private")),
        }
        let Some(parent) = dir.parent() else {
            return Err(JailError::invalid(format!("the root filesystem {rootfs:?} is in no mount")));
        };
        dir = parent;
    }
}
