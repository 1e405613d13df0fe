//! Finding the card that a request means, and waiting for one that is just being plugged.

use std::time::{Duration, Instant};

use kata_proto::types::Interface;

use super::error::NetworkError;
use super::link::{self, Link};
use super::netlink::{Changes, Netlink};
use super::text::Mac;
use crate::pci::{self, PciPath};

/// The longest time between two looks: what is found by its place may appear before the kernel tells of it.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// How a request names a card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// By `devicePath`; the Ethernet address is then what it shall have.
    Pci(PciPath),
    /// By `hwAddr`.
    Mac(Mac),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Pci(path) => write!(f, "at the PCI path {path}"),
            Place::Mac(mac) => write!(f, "with the address {mac}"),
        }
    }
}

/// The Ethernet address of a request, where it has one.
///
/// # Errors
/// [`NetworkError::Invalid`].
pub fn mac(request: &Interface) -> Result<Option<Mac>, NetworkError> {
    if request.hwAddr.is_empty() {
        return Ok(None);
    }
    match Mac::parse(&request.hwAddr) {
        // Neither nobody's nor everybody's.
        Some(mac) if mac.0 != [0; 6] && mac.0[0] & 1 == 0 => Ok(Some(mac)),
        _ => Err(NetworkError::invalid(format!("hwAddr {:?}", request.hwAddr), "no card can have this address")),
    }
}

impl Place {
    /// What a request says. With both, the path decides.
    ///
    /// # Errors
    /// [`NetworkError::Invalid`] where it says nothing, or what makes no sense.
    pub fn of(request: &Interface) -> Result<Self, NetworkError> {
        if !request.devicePath.is_empty() {
            let why = "a PCI path is made of slots from the root bus, as in 02/00";
            let invalid = || NetworkError::invalid(format!("devicePath {:?}", request.devicePath), why);
            return PciPath::parse(&request.devicePath).map(Place::Pci).ok_or_else(invalid);
        }
        mac(request)?.map(Place::Mac).ok_or_else(|| {
            NetworkError::invalid(format!("interface {:?}", request.name), "neither hwAddr nor devicePath says which")
        })
    }

    fn find(&self, links: &[Link]) -> Option<u32> {
        match self {
            Place::Mac(mac) => link::with_mac(links, *mac).map(|l| l.index),
            Place::Pci(path) => {
                let name = pci::interface_of(&path.find()?)?;
                links.iter().find(|l| l.name == name).map(|l| l.index)
            }
        }
    }

    /// The interface's number. Waits for it up to `limit`. Blocks.
    ///
    /// # Errors
    /// [`NetworkError::NoCard`], [`NetworkError::List`].
    pub fn wait(&self, limit: Duration) -> Result<u32, NetworkError> {
        let begun = Instant::now();
        let mut netlink = Netlink::open()?;
        if let Some(index) = self.find(&link::all(&mut netlink)?) {
            return Ok(index);
        }
        let changes = Changes::listen(LOOK_AGAIN.min(limit).max(Duration::from_millis(1)))?;
        loop {
            if let Some(index) = self.find(&link::all(&mut netlink)?) {
                log::info!("the interface {self} appeared after {} ms", begun.elapsed().as_millis());
                return Ok(index);
            }
            if begun.elapsed() >= limit {
                return Err(NetworkError::NoCard { wanted: self.to_string(), waited: limit });
            }
            changes.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(mac: &str, path: &str) -> Interface {
        Interface { name: "eth0".into(), hwAddr: mac.into(), devicePath: path.into(), ..Default::default() }
    }

    #[test]
    fn a_card_is_named_by_its_place_or_its_address() {
        let place =
            |mac: &str, path: &str| Place::of(&request(mac, path)).map(|p| p.to_string()).map_err(|e| e.to_string());
        assert_eq!(place("02:00:00:00:00:01", "").unwrap(), "with the address 02:00:00:00:00:01");
        assert_eq!(place("02:00:00:00:00:01", "02/00").unwrap(), "at the PCI path 02/00");
        for (mac, path, word) in
            [("", "", "eth0"), ("nonsense", "", "nonsense"), ("01:00:5e:00:00:01", "", "01:00"), ("", "0/x", "0/x")]
        {
            let e = place(mac, path).unwrap_err();
            assert!(e.contains(word), "{e}");
        }
        assert!(mac(&request("00:00:00:00:00:00", "02/00")).is_err());
    }
}
