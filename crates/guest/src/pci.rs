//! PCI paths: where a device sits, told by the slots from the root bus down, so that it holds whatever numbers the guest
//! gave its buses. "02/00" is the device in slot 0 behind the bridge in slot 2 of the root bus; slots are hexadecimal,
//! and a function other than the first is told as in "02.3/00". Upstream's form.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the kernel lists PCI devices by their numbers.
const DEVICES: &str = "/sys/bus/pci/devices";
/// More bridges than any machine has between a device and its root.
const DEPTH: usize = 16;

/// Slot and function, one for each step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciPath(Vec<(u8, u8)>);

impl PciPath {
    /// Reads one.
    pub fn parse(text: &str) -> Option<Self> {
        let steps: Option<Vec<_>> = text.split('/').map(step).collect();
        steps.filter(|s| s.len() <= DEPTH).map(PciPath)
    }

    /// The device's directory in sysfs, once it is there.
    pub fn find(&self) -> Option<PathBuf> {
        self.find_in(Path::new(DEVICES))
    }

    fn find_in(&self, devices: &Path) -> Option<PathBuf> {
        let (&(slot, function), rest) = self.0.split_first()?;
        let mut at = devices.join(format!("0000:00:{slot:02x}.{function:x}"));
        for &(slot, function) in rest {
            let end = format!(":{slot:02x}.{function:x}");
            let is_it = |n: &str| n.len() == "0000:00:00.0".len() && n.ends_with(&end);
            let next = entries(&at).find(|p| name(p).is_some_and(is_it));
            at = next?;
        }
        at.exists().then_some(at)
    }
}

impl fmt::Display for PciPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (slot, function)) in self.0.iter().enumerate() {
            let separator = if n == 0 { "" } else { "/" };
            write!(f, "{separator}{slot:02x}")?;
            if *function != 0 {
                write!(f, ".{function:x}")?;
            }
        }
        Ok(())
    }
}

fn step(text: &str) -> Option<(u8, u8)> {
    let (slot, function) = text.split_once('.').unwrap_or((text, "0"));
    let hex = |text: &str, longest: usize| {
        let plain = !text.is_empty() && text.len() <= longest && text.bytes().all(|b| b.is_ascii_hexdigit());
        plain.then(|| u8::from_str_radix(text, 16).ok()).flatten()
    };
    let (slot, function) = (hex(slot, 2)?, hex(function, 1)?);
    (slot < 32 && function < 8).then_some((slot, function))
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

/// The directory of the virtio device that a PCI device is.
pub fn virtio_of(device: &Path) -> Option<PathBuf> {
    entries(device).find(|p| name(p).is_some_and(|n| n.starts_with("virtio")))
}

/// The network interface of a PCI device: its virtio device's, or its own.
pub fn interface_of(device: &Path) -> Option<String> {
    let net = virtio_of(device).unwrap_or_else(|| device.to_owned()).join("net");
    entries(&net).next().and_then(|p| name(&p).map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_as_upstream_writes_them() {
        for (text, same) in [("02/00", "02/00"), ("2", "02"), ("1f.7/0a.1", "1f.7/0a.1"), ("03.0", "03")] {
            assert_eq!(PciPath::parse(text).unwrap().to_string(), same);
        }
        for bad in ["", "/", "20", "02/", "02.8", "02.", "+2", "0000:00:02.0", "..", "02//00", "0x2", "02/.."] {
            assert_eq!(PciPath::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_path_is_followed_through_bridges_to_the_interface() {
        let dir = tempfile::tempdir().unwrap();
        let card = dir.path().join("0000:00:02.3/0000:05:00.0");
        fs::create_dir_all(card.join("virtio7/net/eth0")).unwrap();
        fs::create_dir_all(dir.path().join("0000:00:02.3/pci_bus:00.0")).unwrap();
        fs::create_dir_all(dir.path().join("0000:00:04.0/net/ens4")).unwrap();
        let find = |text: &str| PciPath::parse(text).unwrap().find_in(dir.path());
        assert_eq!(find("02.3/00").as_deref(), Some(&*card));
        assert_eq!(interface_of(&card).as_deref(), Some("eth0"));
        assert_eq!(interface_of(&find("04").unwrap()).as_deref(), Some("ens4"));
        assert_eq!((find("02/00"), find("02.3/01"), find("05")), (None, None, None));
    }
}
