//! Block devices of the host's that are plugged for containers: each once, for all that use it, and unplugged when the
//! last of them goes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use kata_proto::agent as pb;
use kata_types::ContainerId;
use kata_vmm::{Device, DeviceError, DeviceId, GuestAddr};
use rustix::fs::{Mode, OFlags};
use thiserror::Error;

use super::{Machine, chain};
use crate::plan::Disk;

/// Why a container cannot have a block device.
#[derive(Debug, Error)]
pub enum DiskError {
    /// It cannot be opened on the host.
    #[error("cannot open the host's block device {major}:{minor} for {container_path}")]
    Open {
        /// Its numbers.
        major: i64,
        /// Its numbers.
        minor: i64,
        /// Where the container was to have it.
        container_path: String,
        /// Why not.
        source: io::Error,
    },
    /// It cannot be plugged.
    #[error("cannot plug the host's block device {major}:{minor} for {container_path}")]
    Plug {
        /// Its numbers.
        major: i64,
        /// Its numbers.
        minor: i64,
        /// Where the container was to have it.
        container_path: String,
        /// Why not.
        source: DeviceError,
    },
}

/// A device, and whether the guest may not write to it: one that some may write and others not is plugged twice.
type Key = (i64, i64, bool);

#[derive(Debug)]
struct Plugged {
    id: DeviceId,
    at: GuestAddr,
    users: BTreeSet<ContainerId>,
}

/// What is plugged.
#[derive(Debug, Default)]
pub(super) struct Disks(BTreeMap<Key, Plugged>);

impl Machine {
    /// Plugs what a container needs. What was plugged before an error stays until [`Machine::unplug_disks`].
    ///
    /// # Errors
    /// [`DiskError`].
    pub async fn plug_disks(&mut self, container: &ContainerId, disks: &[Disk]) -> Result<Vec<pb::Device>, DiskError> {
        let mut devices = Vec::new();
        for disk in disks {
            let Disk { major, minor, container_path, .. } = disk;
            let open = |source| DiskError::Open {
                major: *major,
                minor: *minor,
                container_path: container_path.clone(),
                source,
            };
            let (file, read_only) = match self.disks.0.keys().find(|key| **key == (*major, *minor, disk.read_only)) {
                Some(_) => (None, disk.read_only),
                None => open_device(*major, *minor, disk.read_only).map(|(f, ro)| (Some(f), ro)).map_err(open)?,
            };
            let key = (*major, *minor, read_only);
            if let Some(plugged) = self.disks.0.get_mut(&key) {
                plugged.users.insert(container.clone());
            } else if let Some(file) = file {
                let id = DeviceId(format!("d-{major}-{minor}{}", if read_only { "-ro" } else { "" }));
                let device = Device::Block { id: id.clone(), file, read_only };
                let at = self.vm.attach(device).await.map_err(|source| DiskError::Plug {
                    major: *major,
                    minor: *minor,
                    container_path: container_path.clone(),
                    source,
                })?;
                self.disks.0.insert(key, Plugged { id, at, users: BTreeSet::from([container.clone()]) });
            }
            if let Some(plugged) = self.disks.0.get(&key) {
                devices.push(for_agent(disk, &plugged.at));
            }
        }
        Ok(devices)
    }

    /// Unplugs what only this container used.
    pub async fn unplug_disks(&mut self, container: &ContainerId) {
        let mut gone = Vec::new();
        for (key, plugged) in &mut self.disks.0 {
            if plugged.users.remove(container) && plugged.users.is_empty() {
                gone.push(*key);
            }
        }
        for key in gone {
            let Some(plugged) = self.disks.0.remove(&key) else { continue };
            // One that the guest does not let go of stays plugged as long as the VM runs: its name is not free then, and
            // plugging it again tells so.
            if let Err(err) = self.vm.detach(&plugged.id).await {
                tracing::warn!(container = %container, "{}", chain(&err));
            }
        }
    }
}

/// Upstream's form.
fn for_agent(disk: &Disk, at: &GuestAddr) -> pb::Device {
    let mut device = pb::Device::new();
    (device.type_, device.id) = match at {
        GuestAddr::Pci(path) => ("blk".into(), path.clone()),
        GuestAddr::Scsi { target, lun } => ("scsi".into(), format!("{target}:{lun}")),
        GuestAddr::FsTag(tag) => ("virtio-fs".into(), tag.clone()),
    };
    device.container_path.clone_from(&disk.container_path);
    // Ours: for a mount the spec does not say which device it is.
    device.options.push(format!("host={}:{}", disk.major, disk.minor));
    device
}

/// Opens a block device by its numbers; tells whether it can only be read, wanted or not.
fn open_device(major: i64, minor: i64, read_only: bool) -> io::Result<(OwnedFd, bool)> {
    let number = |n: i64| u32::try_from(n).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let wanted = rustix::fs::makedev(number(major)?, number(minor)?);
    let path = node_path(major, minor)?;
    let open = |flags| rustix::fs::open(&path, flags | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty());
    let (file, read_only) = if read_only {
        (open(OFlags::RDONLY)?, true)
    } else {
        match open(OFlags::RDWR) {
            // A device that is read-only itself.
            Err(rustix::io::Errno::ROFS | rustix::io::Errno::ACCESS) => (open(OFlags::RDONLY)?, true),
            other => (other?, false),
        }
    };
    let file = fs::File::from(file);
    let meta = file.metadata()?;
    if !meta.file_type().is_block_device() || meta.rdev() != wanted {
        let text = format!("{} is another device by now", path.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, text));
    }
    Ok((file.into(), read_only))
}

/// Where /dev has the device: its name is the kernel's (Documentation/ABI/testing/sysfs-dev).
fn node_path(major: i64, minor: i64) -> io::Result<PathBuf> {
    let uevent = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent"))?;
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let name = name.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the kernel has no name for it"))?;
    Ok(Path::new("/dev").join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_is_told_in_upstreams_words() {
        let disk = Disk { major: 8, minor: 16, read_only: false, container_path: "/dev/xvda".into() };
        let d = for_agent(&disk, &GuestAddr::Pci("04/00".into()));
        assert_eq!((d.type_.as_str(), d.id.as_str(), d.container_path.as_str()), ("blk", "04/00", "/dev/xvda"));
        assert_eq!(d.options, ["host=8:16"]);
        let d = for_agent(&disk, &GuestAddr::Scsi { target: 0, lun: 7 });
        assert_eq!((d.type_.as_str(), d.id.as_str()), ("scsi", "0:7"));
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        assert!(open_device(4095, 1_048_575, true).is_err());
        assert!(open_device(-1, 0, true).is_err());
    }
}
