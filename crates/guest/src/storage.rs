//! What the host asks to have mounted in the guest before a container or the sandbox uses it.
//!
//! Several containers may name the same mount point; it is mounted once and unmounted when the last of them goes. What is
//! marked as shared stays until the sandbox ends: a container that is made again finds its files.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kata_proto::agent::Storage;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use thiserror::Error;

use crate::hugepages;
use crate::watched::{self, MirrorError, ScanError, Volumes};

/// The drivers that [`Storages::add`] knows, by the names that requests use.
pub const DRIVERS: &[&str] = &["virtio-fs", "virtiofs", "ephemeral", "local", "bind", "overlayfs", WATCHABLE];

/// The driver of volumes whose changes are followed.
pub const WATCHABLE: &str = "watchable-bind";

/// Where the kernel lists the virtio-fs devices that it has.
const VIRTIOFS_DEVICES: &str = "/sys/bus/virtio/drivers/virtiofs";
/// How often a device that is being plugged is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(4);

/// Why a storage cannot be had.
#[derive(Debug, Error)]
pub enum StorageError {
    /// A driver that this agent does not have.
    #[error("storage driver {driver:?} for {mount_point}; known are {DRIVERS:?}")]
    Driver {
        /// As requested.
        driver: String,
        /// As requested.
        mount_point: String,
    },
    /// Something else in the request.
    #[error("the storage at {mount_point} is invalid: {what}")]
    Invalid {
        /// As requested.
        mount_point: String,
        /// What is wrong.
        what: String,
    },
    /// The mount point cannot be made, or changed.
    #[error("cannot prepare {path}")]
    Prepare {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// mount(2) refused.
    #[error("cannot mount {source_name} ({fstype}) at {path}")]
    Mount {
        /// What.
        source_name: String,
        /// Its file system.
        fstype: String,
        /// Where.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
    /// No such device.
    #[error("no virtio-fs device with the tag {tag} appeared within {} s", waited.as_secs())]
    NoDevice {
        /// As requested.
        tag: String,
        /// How long we looked.
        waited: Duration,
    },
    /// A volume that is to be followed.
    #[error("cannot copy the volume for {path}")]
    Copy {
        /// Where to.
        path: PathBuf,
        /// Why not.
        source: MirrorError,
    },
    /// Huge pages.
    #[error("cannot have huge pages for {path}")]
    HugePages {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: hugepages::HugePageError,
    },
    /// umount(2) refused.
    #[error("cannot unmount {path}")]
    Unmount {
        /// Where.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    Mount,
    Directory,
    /// A mount for which pages were set aside.
    HugePages(hugepages::Pages),
}

struct Used {
    made: Made,
    users: usize,
}

/// All storages of the guest.
pub struct Storages {
    used: Mutex<HashMap<PathBuf, Used>>,
    /// Those that stay until the sandbox ends.
    kept: Mutex<Vec<PathBuf>>,
    /// Those that are followed.
    pub volumes: Volumes,
    hotplug: Duration,
    /// An agent that is an ordinary process has no virtio-fs: this directory stands for each share.
    stand_in: Option<OwnedFd>,
}

/// An option list split into mount(2)'s flags and the file system's own data.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    flags: u64,
    data: String,
}

impl Options {
    fn parse(options: &[String]) -> Self {
        let mut flags = MsFlags::empty();
        let mut data: Vec<&str> = Vec::new();
        for option in options.iter().flat_map(|o| o.split(',')).filter(|o| !o.is_empty()) {
            match option {
                "defaults" | "rw" => flags.remove(if option == "rw" { MsFlags::MS_RDONLY } else { MsFlags::empty() }),
                "ro" => flags |= MsFlags::MS_RDONLY,
                "nosuid" => flags |= MsFlags::MS_NOSUID,
                "suid" => flags -= MsFlags::MS_NOSUID,
                "nodev" => flags |= MsFlags::MS_NODEV,
                "dev" => flags -= MsFlags::MS_NODEV,
                "noexec" => flags |= MsFlags::MS_NOEXEC,
                "exec" => flags -= MsFlags::MS_NOEXEC,
                "sync" => flags |= MsFlags::MS_SYNCHRONOUS,
                "async" => flags -= MsFlags::MS_SYNCHRONOUS,
                "dirsync" => flags |= MsFlags::MS_DIRSYNC,
                "noatime" => flags |= MsFlags::MS_NOATIME,
                "nodiratime" => flags |= MsFlags::MS_NODIRATIME,
                "relatime" => flags |= MsFlags::MS_RELATIME,
                "strictatime" => flags |= MsFlags::MS_STRICTATIME,
                "bind" => flags |= MsFlags::MS_BIND,
                "rbind" => flags |= MsFlags::MS_BIND | MsFlags::MS_REC,
                other => data.push(other),
            }
        }
        Options { flags: flags.bits(), data: data.join(",") }
    }

    fn flags(&self) -> MsFlags {
        MsFlags::from_bits_truncate(self.flags)
    }
}

impl Storages {
    /// `hotplug`: how long a device may take to appear. `stand_in`: a directory in place of every virtio-fs share.
    pub fn new(hotplug: Duration, stand_in: Option<OwnedFd>) -> Self {
        Storages { used: Mutex::default(), kept: Mutex::default(), volumes: Volumes::default(), hotplug, stand_in }
    }

    fn used(&self) -> MutexGuard<'_, HashMap<PathBuf, Used>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes all of `storages` usable, in order, or none. Blocks. Returns the mount points, for [`Storages::release`].
    ///
    /// # Errors
    /// [`StorageError`] of the first that failed.
    pub fn add_all(&self, storages: &[Storage]) -> Result<Vec<PathBuf>, StorageError> {
        let mut done = Vec::new();
        for storage in storages {
            match self.add(storage) {
                Ok(point) => done.push(point),
                Err(e) => {
                    if let Err(also) = self.release(&done) {
                        log::error!("{}", crate::failure::chain(&also));
                    }
                    return Err(e);
                }
            }
        }
        Ok(done)
    }

    fn add(&self, storage: &Storage) -> Result<PathBuf, StorageError> {
        let invalid = |what: String| StorageError::Invalid { mount_point: storage.mount_point.clone(), what };
        let point = PathBuf::from(&storage.mount_point);
        let plain = |c| !matches!(c, std::path::Component::ParentDir);
        if !point.is_absolute() || point == Path::new("/") || !point.components().all(plain) {
            return Err(invalid("the mount point must be an absolute path without ..".into()));
        }
        // The lock is not held while a mount may wait: two calls for one new mount point at once are told apart below.
        if let Some(used) = self.used().get_mut(&point) {
            used.users += 1;
            return Ok(point);
        }
        if storage.fs_group.is_some() && storage.driver != "ephemeral" {
            return Err(invalid(format!("driver {} has no fs_group here", storage.driver)));
        }
        let made = match storage.driver.as_str() {
            "virtio-fs" | "virtiofs" => self.virtiofs(storage, &point)?,
            "ephemeral" if storage.fstype == "hugetlbfs" => {
                prepare(&point)?;
                let pages = hugepages::set_aside(&storage.options)
                    .map_err(|source| StorageError::HugePages { path: point.clone(), source })?;
                let mounted = mount_at("hugetlbfs", "hugetlbfs", &point, &Options::parse(&storage.options));
                if mounted.is_err() {
                    pages.give_back();
                }
                mounted?;
                Made::HugePages(pages)
            }
            "ephemeral" => ephemeral(storage, &point)?,
            "local" => local(storage, &point)?,
            "bind" => bind(storage, &point)?,
            WATCHABLE => self.watchable(storage, &point)?,
            "overlayfs" => {
                prepare(&point)?;
                mount_at("overlay", "overlay", &point, &Options::parse(&storage.options))?;
                Made::Mount
            }
            other => {
                let (driver, mount_point) = (other.to_owned(), storage.mount_point.clone());
                return Err(StorageError::Driver { driver, mount_point });
            }
        };
        let mut used = self.used();
        match used.get_mut(&point) {
            Some(first) => {
                // Somebody was faster; ours lies on top of theirs.
                first.users += 1;
                drop(used);
                unmake(&point, made)?;
            }
            None if storage.shared => {
                used.insert(point.clone(), Used { made, users: 2 });
                self.kept.lock().unwrap_or_else(PoisonError::into_inner).push(point.clone());
            }
            None => drop(used.insert(point.clone(), Used { made, users: 1 })),
        }
        Ok(point)
    }

    /// Gives up the sandbox's own use of what containers share. Blocks.
    ///
    /// # Errors
    /// The first [`StorageError`].
    pub fn release_kept(&self) -> Result<(), StorageError> {
        let kept = std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        self.release(&kept)
    }

    /// Gives up one use of each mount point, the latest first; what nobody uses any more is unmounted. Blocks.
    ///
    /// # Errors
    /// The first [`StorageError`]; the others are tried nevertheless.
    pub fn release(&self, points: &[PathBuf]) -> Result<(), StorageError> {
        let mut result = Ok(());
        for point in points.iter().rev() {
            let made = {
                let mut used = self.used();
                let Some(entry) = used.get_mut(point) else { continue };
                entry.users -= 1;
                if entry.users > 0 {
                    continue;
                }
                used.remove(point).map(|u| u.made)
            };
            self.volumes.forget(point);
            if let Some(made) = made {
                result = result.and(unmake(point, made));
            }
        }
        result
    }

    /// A copy that follows its original; of what is too large for that, the original itself.
    fn watchable(&self, storage: &Storage, point: &Path) -> Result<Made, StorageError> {
        let source = Path::new(&storage.source);
        let at = |source_error| StorageError::Prepare { path: source.to_owned(), source: source_error };
        let meta = fs::metadata(source).map_err(at)?;
        if !meta.is_dir() {
            return bind(storage, point);
        }
        prepare(point)?;
        let data = format!("size={},nr_inodes={},mode=755", watched::COPY_BYTES, watched::COPY_INODES);
        let flags = (MsFlags::MS_NOSUID | MsFlags::MS_NODEV).bits();
        mount_at("tmpfs", "tmpfs", point, &Options { flags, data })?;
        let polled = !storage.driver_options.iter().any(|o| o == watched::TOLD);
        let copied = self.volumes.add(source, point, polled);
        if copied.is_err() {
            // Nobody has seen it; the error that is told is the copy's.
            let _ = umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        }
        match copied {
            Ok(()) => Ok(Made::Mount),
            Err(MirrorError::Scan(why @ (ScanError::TooMuch | ScanError::Kind(_)))) => {
                log::warn!("changes of the volume at {} wake nobody who watches it: {why}", point.display());
                let options =
                    if storage.options.is_empty() { vec!["bind".to_owned()] } else { storage.options.clone() };
                bind(&Storage { options, ..storage.clone() }, point)
            }
            Err(source) => Err(StorageError::Copy { path: point.to_owned(), source }),
        }
    }

    /// The host says that these have changed: volumes that are followed are looked at, and tmpfs get the size that is
    /// given. Blocks.
    ///
    /// # Errors
    /// The first [`StorageError`]; the others are seen to nevertheless.
    pub fn update(&self, storages: &[Storage]) -> Result<(), StorageError> {
        let mut result = Ok(());
        for storage in storages {
            result = result.and(self.update_one(storage));
        }
        result
    }

    fn update_one(&self, storage: &Storage) -> Result<(), StorageError> {
        let point = PathBuf::from(&storage.mount_point);
        let invalid =
            |what: &str| StorageError::Invalid { mount_point: storage.mount_point.clone(), what: what.to_owned() };
        if !self.used().contains_key(&point) {
            return Err(invalid("it is not mounted"));
        }
        match storage.driver.as_str() {
            // One that was too large to be followed is its original.
            WATCHABLE => {
                self.volumes.changed(&point).map(drop).map_err(|source| StorageError::Copy { path: point, source })
            }
            "ephemeral" => {
                let options = Options::parse(&storage.options);
                let flags = (options.flags() | MsFlags::MS_REMOUNT).bits();
                mount_at("tmpfs", "tmpfs", &point, &Options { flags, data: options.data })
            }
            other => Err(invalid(&format!("a mount of driver {other} cannot be changed"))),
        }
    }

    fn virtiofs(&self, storage: &Storage, point: &Path) -> Result<Made, StorageError> {
        prepare(point)?;
        let options = Options::parse(&storage.options);
        if let Some(dir) = &self.stand_in {
            let source = format!("/proc/self/fd/{}", dir.as_raw_fd());
            let bind = Options { flags: options.flags | (MsFlags::MS_BIND | MsFlags::MS_REC).bits(), ..options };
            mount_at(&source, "none", point, &bind)?;
            return Ok(Made::Mount);
        }
        let deadline = Instant::now() + self.hotplug;
        loop {
            // Looked for first: the kernel logs every attempt for a tag that is not there, and its console is slow.
            let refused = if has_virtiofs_device() {
                match mount_at(&storage.source, "virtiofs", point, &options) {
                    Ok(()) => return Ok(Made::Mount),
                    Err(StorageError::Mount { source: Errno::EINVAL | Errno::ENOENT, .. }) => true,
                    Err(e) => return Err(e),
                }
            } else {
                false
            };
            if Instant::now() >= deadline {
                return Err(StorageError::NoDevice { tag: storage.source.clone(), waited: self.hotplug });
            }
            std::thread::sleep(if refused { LOOK_AGAIN * 5 } else { LOOK_AGAIN });
        }
    }
}

fn has_virtiofs_device() -> bool {
    let Ok(entries) = fs::read_dir(VIRTIOFS_DEVICES) else { return false };
    entries.flatten().any(|e| {
        let name = e.file_name();
        let name = name.as_encoded_bytes();
        name.strip_prefix(b"virtio").is_some_and(|n| !n.is_empty() && n.iter().all(u8::is_ascii_digit))
    })
}

fn prepare(dir: &Path) -> Result<(), StorageError> {
    fs::create_dir_all(dir).map_err(|source| StorageError::Prepare { path: dir.to_owned(), source })
}

fn mount_at(source: &str, fstype: &str, point: &Path, options: &Options) -> Result<(), StorageError> {
    let data = (!options.data.is_empty()).then_some(options.data.as_str());
    mount(Some(source), point, Some(fstype), options.flags(), data).map_err(|e| StorageError::Mount {
        source_name: source.to_owned(),
        fstype: fstype.to_owned(),
        path: point.to_owned(),
        source: e,
    })
}

/// A tmpfs of its own.
fn ephemeral(storage: &Storage, point: &Path) -> Result<Made, StorageError> {
    prepare(point)?;
    mount_at("tmpfs", "tmpfs", point, &Options::parse(&storage.options))?;
    if let Some(group) = storage.fs_group.as_ref() {
        let change = || {
            std::os::unix::fs::chown(point, None, Some(group.group_id))?;
            let mode = fs::metadata(point)?.mode();
            // Kubernetes: the group may write, and what is made below belongs to it.
            fs::set_permissions(point, fs::Permissions::from_mode(mode & 0o7777 | 0o2070))
        };
        if let Err(source) = change() {
            // Undone because the caller will not know of it; if that fails too, a tmpfs that nobody uses remains.
            let _ = umount2(point, MntFlags::MNT_DETACH);
            return Err(StorageError::Prepare { path: point.to_owned(), source });
        }
    }
    Ok(Made::Mount)
}

/// A directory on the guest's own file system.
fn local(storage: &Storage, point: &Path) -> Result<Made, StorageError> {
    let invalid = |what: String| StorageError::Invalid { mount_point: storage.mount_point.clone(), what };
    let mut mode = None;
    for option in &storage.options {
        match option.split_once('=') {
            Some(("mode", value)) => {
                let value = u32::from_str_radix(value, 8).map_err(|_| invalid(format!("{option} is no mode")))?;
                mode = Some(value & 0o7777);
            }
            _ => return Err(invalid(format!("option {option} is not known to driver local"))),
        }
    }
    prepare(point)?;
    if let Some(mode) = mode {
        fs::set_permissions(point, fs::Permissions::from_mode(mode))
            .map_err(|source| StorageError::Prepare { path: point.to_owned(), source })?;
    }
    Ok(Made::Directory)
}

/// Something of the guest at a second place.
fn bind(storage: &Storage, point: &Path) -> Result<Made, StorageError> {
    let at = |path: &Path, source| StorageError::Prepare { path: path.to_owned(), source };
    let source = Path::new(&storage.source);
    if fs::metadata(source).map_err(|e| at(source, e))?.is_dir() {
        prepare(point)?;
    } else {
        if let Some(parent) = point.parent() {
            prepare(parent)?;
        }
        fs::File::create(point).map_err(|e| at(point, e))?;
    }
    let mut options = Options::parse(&storage.options);
    options.flags |= MsFlags::MS_BIND.bits();
    mount_at(&storage.source, "none", point, &options)?;
    let others = options.flags() - (MsFlags::MS_BIND | MsFlags::MS_REC);
    if !others.is_empty() {
        // A bind mount takes its flags only when it is mounted again (mount(2), "Remounting an existing mount").
        let again = Options { flags: (others | MsFlags::MS_BIND | MsFlags::MS_REMOUNT).bits(), ..Options::default() };
        if let Err(e) = mount_at(&storage.source, "none", point, &again) {
            // Not usable as asked; the first error is the one to tell.
            let _ = umount2(point, MntFlags::MNT_DETACH);
            return Err(e);
        }
    }
    Ok(Made::Mount)
}

fn unmake(point: &Path, made: Made) -> Result<(), StorageError> {
    match made {
        Made::Mount | Made::HugePages(_) => {
            let done = match umount2(point, MntFlags::UMOUNT_NOFOLLOW) {
                // Somebody still holds a file open; it goes away when they do.
                Err(Errno::EBUSY) => umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW),
                other => other,
            };
            done.map_err(|source| StorageError::Unmount { path: point.to_owned(), source })?;
            if let Made::HugePages(pages) = made {
                pages.give_back();
            }
            Ok(())
        }
        Made::Directory => {
            fs::remove_dir_all(point).map_err(|source| StorageError::Prepare { path: point.to_owned(), source })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn options_are_flags_or_data() {
        let o = Options::parse(&strings(&["ro,nosuid", "size=10m", "mode=1777", "rw", ""]));
        assert_eq!(o.flags(), MsFlags::MS_NOSUID);
        assert_eq!(o.data, "size=10m,mode=1777");
    }

    #[test]
    fn unknown_drivers_and_paths_that_climb_are_refused() {
        let all = Storages::new(Duration::ZERO, None);
        let mut s = Storage { driver: "nvdimm".into(), mount_point: "/run/x".into(), ..Default::default() };
        assert!(matches!(all.add(&s), Err(StorageError::Driver { .. })));
        for bad in ["", "/", "x", "/run/../etc"] {
            s.mount_point = bad.into();
            assert!(matches!(all.add(&s), Err(StorageError::Invalid { .. })), "{bad}");
        }
    }

    #[test]
    fn a_local_directory_lives_as_long_as_its_last_user() {
        let dir = tempfile::tempdir().unwrap();
        let point = dir.path().join("a/b");
        let all = Storages::new(Duration::ZERO, None);
        let s = Storage {
            driver: "local".into(),
            mount_point: point.to_str().unwrap().into(),
            options: strings(&["mode=0750"]),
            ..Default::default()
        };
        let first = all.add_all(std::slice::from_ref(&s)).unwrap();
        let second = all.add_all(&[s]).unwrap();
        assert_eq!(fs::metadata(&point).unwrap().mode() & 0o7777, 0o750);
        all.release(&first).unwrap();
        assert!(point.exists());
        all.release(&second).unwrap();
        assert!(!point.exists());
    }

    #[test]
    fn what_containers_share_stays_until_the_sandbox_ends() {
        let dir = tempfile::tempdir().unwrap();
        let point = dir.path().join("a");
        let all = Storages::new(Duration::ZERO, None);
        let s = Storage {
            driver: "local".into(),
            mount_point: point.to_str().unwrap().into(),
            shared: true,
            ..Default::default()
        };
        for _ in 0..2 {
            let used = all.add_all(std::slice::from_ref(&s)).unwrap();
            fs::write(point.join("x"), "").unwrap();
            all.release(&used).unwrap();
            assert!(point.join("x").exists());
        }
        all.release_kept().unwrap();
        assert!(!point.exists());
    }

    #[test]
    fn only_what_is_mounted_and_can_be_changed_is_updated() {
        let all = Storages::new(Duration::ZERO, None);
        let s = Storage { driver: WATCHABLE.into(), mount_point: "/run/nowhere".into(), ..Default::default() };
        assert!(matches!(all.update(&[s]), Err(StorageError::Invalid { .. })));
    }
}
