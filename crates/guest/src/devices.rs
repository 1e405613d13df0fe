//! Devices that the host has plugged for a container: found where the host says they are, and put into the spec, which
//! knows them by the host's numbers.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kata_proto::agent::Device;
use kata_proto::oci;
use thiserror::Error;

use crate::pci::{self, PciPath};

/// The kinds of device that [`find`] knows, by the names that requests use.
pub const HANDLERS: &[&str] = &[BLK, SCSI];
/// A virtio-blk device; its id is a PCI path.
const BLK: &str = "blk";
/// A disk behind a SCSI controller; its id is "target:unit".
const SCSI: &str = "scsi";

const SCSI_DEVICES: &str = "/sys/bus/scsi/devices";
const SCSI_HOSTS: &str = "/sys/class/scsi_host";
/// How often a device that is being plugged is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How often SCSI hosts are told to look themselves.
const RESCAN: Duration = Duration::from_millis(200);

/// Why a container cannot have a device.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// A kind that this agent does not have.
    #[error("device type {kind:?} for {container_path}; known are {HANDLERS:?}")]
    Kind {
        /// As requested.
        kind: String,
        /// As requested.
        container_path: String,
    },
    /// Not an address of its kind.
    #[error("the device for {container_path} has the address {id:?}, which is no {kind} address")]
    Address {
        /// As requested.
        kind: String,
        /// As requested.
        id: String,
        /// As requested.
        container_path: String,
    },
    /// It did not come.
    #[error("no {kind} device appeared at {id} within {} s", waited.as_secs())]
    Missing {
        /// As requested.
        kind: String,
        /// As requested.
        id: String,
        /// How long we looked.
        waited: Duration,
    },
    /// The spec has no use for it.
    #[error("the spec has neither a device nor a mount at {container_path}, for which a device was plugged")]
    Unused {
        /// As requested.
        container_path: String,
    },
}

/// A block device of the guest's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its node: "/dev/vda".
    pub node: String,
    /// Its numbers.
    pub major: i64,
    /// Its numbers.
    pub minor: i64,
}

/// Where the kernel lists a device's block devices.
trait Place {
    fn look(&self) -> Option<Found>;
    /// Asks the kernel to look itself.
    fn rescan(&self) {}
}

impl Place for PciPath {
    fn look(&self) -> Option<Found> {
        block_of(&pci::virtio_of(&self.find()?)?)
    }
}

struct Scsi {
    target: u32,
    unit: u32,
}

impl Place for Scsi {
    fn look(&self) -> Option<Found> {
        let end = format!(":0:{}:{}", self.target, self.unit);
        block_of(&children(Path::new(SCSI_DEVICES)).find(|path| ends_with(path, &end))?)
    }

    fn rescan(&self) {
        for host in children(Path::new(SCSI_HOSTS)) {
            // Looking again is all that it is for: the device is then there, or the time passes.
            let _ = fs::write(host.join("scan"), format!("0 {} {}", self.target, self.unit));
        }
    }
}

fn children(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path())
}

fn ends_with(path: &Path, end: &str) -> bool {
    path.file_name().is_some_and(|n| n.as_encoded_bytes().ends_with(end.as_bytes()))
}

/// The disk of a device's directory in sysfs, once its node is there too.
fn block_of(device: &Path) -> Option<Found> {
    let disk = children(&device.join("block")).next()?;
    let text = fs::read_to_string(disk.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    let node = format!("/dev/{}", disk.file_name()?.to_str()?);
    let found = Found { node, major: major.parse().ok()?, minor: minor.parse().ok()? };
    Path::new(&found.node).exists().then_some(found)
}

/// Waits for a device. Blocks.
///
/// # Errors
/// [`DeviceError`].
pub fn find(device: &Device, limit: Duration) -> Result<Found, DeviceError> {
    let address = || DeviceError::Address {
        kind: device.type_.clone(),
        id: device.id.clone(),
        container_path: device.container_path.clone(),
    };
    let place: Box<dyn Place> = match device.type_.as_str() {
        BLK => Box::new(PciPath::parse(&device.id).ok_or_else(address)?),
        SCSI => {
            let (target, unit) = device.id.split_once(':').ok_or_else(address)?;
            let number = |n: &str| n.parse::<u32>().map_err(|_| address());
            Box::new(Scsi { target: number(target)?, unit: number(unit)? })
        }
        other => {
            let (kind, container_path) = (other.to_owned(), device.container_path.clone());
            return Err(DeviceError::Kind { kind, container_path });
        }
    };
    let begun = Instant::now();
    let mut scanned = begun;
    loop {
        if let Some(found) = place.look() {
            return Ok(found);
        }
        if begun.elapsed() >= limit {
            return Err(DeviceError::Missing { kind: device.type_.clone(), id: device.id.clone(), waited: limit });
        }
        if scanned.elapsed() >= RESCAN {
            place.rescan();
            scanned = Instant::now();
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Puts what was found into the spec: `devices[i]` is at `found[i]`. The spec's own device at the container's path gets
/// the guest's numbers, and so do the rules of the device cgroup and the limits of block IO that name the host's. Where
/// the spec has a mount there instead, the guest's node is what it mounts.
///
/// # Errors
/// [`DeviceError::Unused`].
pub fn apply(spec: &mut oci::Spec, devices: &[Device], found: &[Found]) -> Result<(), DeviceError> {
    let mut numbers = Numbers::default();
    for (device, found) in devices.iter().zip(found) {
        let path = &device.container_path;
        let linux = spec.Linux.mut_or_insert_default();
        let host = if let Some(node) = linux.Devices.iter_mut().find(|d| d.Path == *path) {
            let host = (node.Major, node.Minor);
            (node.Major, node.Minor, node.Type) = (found.major, found.minor, "b".to_owned());
            Some(host)
        } else if let Some(mount) = spec.Mounts.iter_mut().find(|m| m.destination == *path) {
            mount.source.clone_from(&found.node);
            host_numbers(device)
        } else {
            return Err(DeviceError::Unused { container_path: path.clone() });
        };
        if let Some(host) = host {
            numbers.0.entry(host).or_default().push((found.major, found.minor));
        }
    }
    let Some(resources) = spec.Linux.as_mut().and_then(|l| l.Resources.as_mut()) else { return Ok(()) };
    numbers.translate(&mut resources.Devices, |r| r.Type == "b", |r| (&mut r.Major, &mut r.Minor));
    if let Some(io) = resources.BlockIO.as_mut() {
        numbers.translate(&mut io.WeightDevice, |_| true, |w| (&mut w.Major, &mut w.Minor));
        let lists = [
            &mut io.ThrottleReadBpsDevice,
            &mut io.ThrottleWriteBpsDevice,
            &mut io.ThrottleReadIOPSDevice,
            &mut io.ThrottleWriteIOPSDevice,
        ];
        for list in lists {
            numbers.translate(list, |_| true, |t| (&mut t.Major, &mut t.Minor));
        }
    }
    Ok(())
}

/// The guest's numbers of a device by the host's. It has two where it was plugged twice, to be written to and not.
#[derive(Default)]
struct Numbers(HashMap<(i64, i64), Vec<(i64, i64)>>);

impl Numbers {
    /// Puts the guest's numbers into each item, which is repeated for each of them. All at once: a guest's number may be
    /// another device's number on the host.
    fn translate<T: Clone>(
        &self,
        list: &mut Vec<T>,
        applies: impl Fn(&T) -> bool,
        numbers_of: impl Fn(&mut T) -> (&mut i64, &mut i64),
    ) {
        let mut all = Vec::with_capacity(list.len());
        for mut item in list.drain(..) {
            let (major, minor) = numbers_of(&mut item);
            let guests = self.0.get(&(*major, *minor)).filter(|_| applies(&item));
            let Some(guests) = guests else {
                all.push(item);
                continue;
            };
            for guest in guests {
                let mut one = item.clone();
                let (major, minor) = numbers_of(&mut one);
                (*major, *minor) = *guest;
                all.push(one);
            }
        }
        *list = all;
    }
}

/// What our hosts tell of a device that the spec has no node for: its numbers there, as the option "host=8:16".
fn host_numbers(device: &Device) -> Option<(i64, i64)> {
    let (major, minor) = device.options.iter().find_map(|o| o.strip_prefix("host="))?.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let device = |kind: &str, id: &str| Device { type_: kind.into(), id: id.into(), ..Default::default() };
        for (kind, id) in [("blk", "zz"), ("scsi", "0"), ("scsi", "0:-1")] {
            let e = find(&device(kind, id), Duration::ZERO).unwrap_err();
            assert!(matches!(e, DeviceError::Address { .. }), "{e}");
        }
        assert!(matches!(find(&device("nvdimm", "0"), Duration::ZERO), Err(DeviceError::Kind { .. })));
        let e = find(&device("blk", "1f/1f"), Duration::ZERO).unwrap_err();
        assert!(e.to_string().contains("1f/1f"), "{e}");
    }

    #[test]
    fn the_spec_gets_the_guests_numbers_all_at_once() {
        let at = |path: &str| Device { container_path: path.into(), ..Default::default() };
        let node = |path: &str, minor| oci::LinuxDevice {
            Path: path.into(),
            Type: "b".into(),
            Major: 8,
            Minor: minor,
            ..Default::default()
        };
        let rule = |kind: &str, minor| oci::LinuxDeviceCgroup {
            Allow: true,
            Type: kind.into(),
            Major: 8,
            Minor: minor,
            ..Default::default()
        };
        let throttle = oci::LinuxThrottleDevice { Major: 8, Minor: 32, Rate: 1, ..Default::default() };
        let io = oci::LinuxBlockIO { ThrottleReadBpsDevice: vec![throttle], ..Default::default() };
        let resources = oci::LinuxResources {
            Devices: vec![rule("b", 0), rule("b", 16), rule("c", 0), rule("b", 32)],
            BlockIO: Some(io).into(),
            ..Default::default()
        };
        let linux = oci::Linux {
            Devices: vec![node("/dev/a", 0), node("/dev/b", 16)],
            Resources: Some(resources).into(),
            ..Default::default()
        };
        let mount = oci::Mount { destination: "/mnt/c".into(), ..Default::default() };
        let mut spec = oci::Spec { Linux: Some(linux).into(), Mounts: vec![mount], ..Default::default() };
        let mut c = at("/mnt/c");
        c.options.push("host=8:32".into());
        let found = |node: &str, major, minor| Found { node: node.into(), major, minor };
        // The guest's first number is the host's second.
        let there =
            [found("/dev/sdb", 8, 16), found("/dev/sda", 8, 0), found("/dev/vda", 254, 0), found("/dev/vdb", 254, 16)];
        spec.Mounts.push(oci::Mount { destination: "/mnt/d".into(), ..Default::default() });
        let mut d = at("/mnt/d");
        d.options.push("host=8:32".into());
        apply(&mut spec, &[at("/dev/a"), at("/dev/b"), c, d], &there).unwrap();
        let linux = spec.Linux.as_ref().unwrap();
        assert_eq!((linux.Devices[0].Minor, linux.Devices[1].Minor), (16, 0));
        let rules: Vec<_> = linux.Resources.Devices.iter().map(|r| (r.Major, r.Minor)).collect();
        assert_eq!(rules, [(8, 16), (8, 0), (8, 0), (254, 0), (254, 16)]);
        assert_eq!(linux.Resources.BlockIO.ThrottleReadBpsDevice[0].Major, 254);
        assert_eq!(spec.Mounts[0].source, "/dev/vda");
        assert!(matches!(apply(&mut spec, &[at("/x")], &there), Err(DeviceError::Unused { .. })));
    }
}
