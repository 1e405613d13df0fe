//! Plugging a disk: as a device of its own into a root port as long as there are more than others need, then behind one
//! SCSI controller, which is plugged with the first that needs it and stays.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use kata_vmm::{DeviceError, DeviceId, GuestAddr};
use serde_json::{Value, json};

use super::{Backend, Plugged, QemuVm, device_name};
use crate::command::{port, port_path};

/// Root ports that are left to others: three network cards and the SCSI controller itself.
const KEPT_PORTS: usize = 4;
/// The names of the controller and of its bus.
const CONTROLLER: &str = "scsi";
const BUS: &str = "scsi.0";
/// Logical units of one target (QEMU's hw/scsi/virtio-scsi.c, `VIRTIO_SCSI_MAX_LUN`), fewer than there are.
const LUNS: u32 = 1024;

/// The controller and what is behind it.
#[derive(Debug, Default)]
pub(super) struct Scsi {
    port: Option<usize>,
    disks: BTreeMap<DeviceId, ScsiDisk>,
}

#[derive(Debug, Clone, Copy)]
struct ScsiDisk {
    lun: u32,
    fdset: u64,
}

impl Scsi {
    /// The controller's root port.
    pub(super) fn port(&self) -> Option<usize> {
        self.port
    }

    /// Whether a disk is behind it.
    pub(super) fn has(&self, id: &DeviceId) -> bool {
        self.disks.contains_key(id)
    }

    fn free_lun(&self) -> Option<u32> {
        (0..LUNS).find(|lun| self.disks.values().all(|d| d.lun != *lun))
    }
}

/// The file opened just as far as the guest may go: QEMU takes a descriptor only if its access mode is the wanted one.
fn with_access(file: OwnedFd, read_only: bool) -> io::Result<OwnedFd> {
    use rustix::fs::OFlags;
    let mode = rustix::fs::fcntl_getfl(&file)? & OFlags::RWMODE;
    match (read_only, mode) {
        (false, OFlags::RDWR) | (true, OFlags::RDONLY) => Ok(file),
        (true, OFlags::RDWR) => {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, rustix::fs::Mode::empty())?)
        }
        _ => Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is not opened for reading and writing")),
    }
}

fn node_name(id: &DeviceId) -> String {
    // Node names are limited to 31 bytes; ids of disks to 20.
    format!("node-{}", id.0)
}

impl QemuVm {
    pub(super) async fn plug_block(
        &mut self,
        id: DeviceId,
        file: OwnedFd,
        read_only: bool,
    ) -> Result<GuestAddr, DeviceError> {
        if self.devices.contains_key(&id) || self.scsi.has(&id) {
            return Err(DeviceError::Id { id: id.0, reason: "is taken".to_owned() });
        }
        if id.0.len() > 20 {
            let reason = "is too long for a disk's serial number (20 bytes)".to_owned();
            return Err(DeviceError::Id { id: id.0, reason });
        }
        if self.free_ports().count() > KEPT_PORTS {
            self.plug_virtio_disk(id, file, read_only).await
        } else {
            self.plug_scsi_disk(id, file, read_only).await
        }
    }

    async fn plug_virtio_disk(
        &mut self,
        id: DeviceId,
        file: OwnedFd,
        read_only: bool,
    ) -> Result<GuestAddr, DeviceError> {
        let index = self.free_port(&id)?;
        let operation = format!("plug the disk {}", id.0);
        let fdset = self.open_image(&operation, &id, file, read_only).await?;
        let device = json!({
            "driver": "virtio-blk-pci", "id": device_name(&id), "bus": port(index), "drive": node_name(&id),
            "serial": id.0, "share-rw": true,
        });
        if let Err(e) = self.command(&operation, "device_add", device, None).await {
            self.undo_image(&id, fdset).await;
            return Err(e);
        }
        self.devices.insert(id, Plugged { port: index, backend: Backend::Block { fdset } });
        Ok(GuestAddr::Pci(port_path(index)))
    }

    async fn plug_scsi_disk(&mut self, id: DeviceId, file: OwnedFd, read_only: bool) -> Result<GuestAddr, DeviceError> {
        let operation = format!("plug the disk {}", id.0);
        if self.scsi.port.is_none() {
            let index = self.free_port(&id)?;
            let device = json!({ "driver": "virtio-scsi-pci", "id": CONTROLLER, "bus": port(index) });
            self.command(&operation, "device_add", device, None).await?;
            self.scsi.port = Some(index);
        }
        let lun = self.scsi.free_lun().ok_or_else(|| DeviceError::NoSlot(id.0.clone()))?;
        let fdset = self.open_image(&operation, &id, file, read_only).await?;
        let device = json!({
            "driver": "scsi-hd", "id": device_name(&id), "bus": BUS, "channel": 0, "scsi-id": 0, "lun": lun,
            "drive": node_name(&id), "serial": id.0, "share-rw": true,
        });
        if let Err(e) = self.command(&operation, "device_add", device, None).await {
            self.undo_image(&id, fdset).await;
            return Err(e);
        }
        self.scsi.disks.insert(id, ScsiDisk { lun, fdset });
        Ok(GuestAddr::Scsi { target: 0, lun })
    }

    pub(super) async fn unplug_scsi_disk(&mut self, id: &DeviceId) -> Result<(), DeviceError> {
        let Some(disk) = self.scsi.disks.get(id).copied() else {
            return Err(DeviceError::Id { id: id.0.clone(), reason: "is not plugged".to_owned() });
        };
        self.unplug(id).await?;
        self.scsi.disks.remove(id);
        self.close_image(&format!("release {}", id.0), id, disk.fdset).await
    }

    /// Gives QEMU the file as a block node; returns the set of descriptors that it is in.
    async fn open_image(
        &self,
        operation: &str,
        id: &DeviceId,
        file: OwnedFd,
        read_only: bool,
    ) -> Result<u64, DeviceError> {
        let refused = |reason: String| DeviceError::Refused { operation: operation.to_owned(), reason };
        let kind = rustix::fs::fstat(&file).map_err(|e| refused(e.to_string()))?.st_mode;
        let is_device = rustix::fs::FileType::from_raw_mode(kind).is_block_device();
        let file = with_access(file, read_only).map_err(|e| refused(e.to_string()))?;
        let added = self.command(operation, "add-fd", Value::Null, Some(&file)).await?;
        let fdset = added["fdset-id"].as_u64().ok_or_else(|| refused("add-fd gave no set".to_owned()))?;
        let mut protocol = json!({
            "driver": if is_device { "host_device" } else { "file" },
            "filename": format!("/dev/fdset/{fdset}"), "read-only": read_only,
        });
        if is_device {
            // Who may use a device at once is its owner's business, as it is without a VM.
            protocol["locking"] = json!("off");
        }
        let blockdev = json!({
            "node-name": node_name(id), "driver": "raw", "read-only": read_only, "discard": "unmap", "file": protocol,
        });
        if let Err(e) = self.command(operation, "blockdev-add", blockdev, None).await {
            self.undo("remove-fd", json!({ "fdset-id": fdset })).await;
            return Err(e);
        }
        Ok(fdset)
    }

    async fn undo_image(&self, id: &DeviceId, fdset: u64) {
        self.undo("blockdev-del", json!({ "node-name": node_name(id) })).await;
        self.undo("remove-fd", json!({ "fdset-id": fdset })).await;
    }

    /// The reverse of `open_image`.
    pub(super) async fn close_image(&self, operation: &str, id: &DeviceId, fdset: u64) -> Result<(), DeviceError> {
        self.command(operation, "blockdev-del", json!({ "node-name": node_name(id) }), None).await?;
        self.command(operation, "remove-fd", json!({ "fdset-id": fdset }), None).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_unit_comes_first() {
        let mut scsi = Scsi::default();
        for (name, lun) in [("a", 0), ("b", 1), ("d", 3)] {
            scsi.disks.insert(DeviceId(name.into()), ScsiDisk { lun, fdset: 0 });
        }
        assert_eq!(scsi.free_lun(), Some(2));
        assert!(scsi.has(&DeviceId("b".into())) && !scsi.has(&DeviceId("c".into())));
        assert!(node_name(&DeviceId("x".repeat(20))).len() <= 31);
    }

    #[test]
    fn a_file_is_given_no_further_than_the_guest_may_go() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = |write| OwnedFd::from(std::fs::File::options().read(true).write(write).open(file.path()).unwrap());
        assert!(with_access(open(false), false).is_err());
        let reopened = with_access(open(true), true).unwrap();
        assert_eq!(
            rustix::fs::fcntl_getfl(&reopened).unwrap() & rustix::fs::OFlags::RWMODE,
            rustix::fs::OFlags::RDONLY
        );
    }
}
