//! Neighbours whose addresses are known without asking (rtnetlink(7), `struct ndmsg`).

use std::net::IpAddr;

use kata_proto::types::ARPNeighbor;
use libc::{NDA_DST, NDA_LLADDR, NUD_PERMANENT, RTM_NEWNEIGH};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};

use super::error::NetworkError;
use super::link;
use super::netlink::{Netlink, Request};
use super::text::{Mac, kernel_family, octets};

/// A neighbour as requested.
#[derive(Debug, PartialEq, Eq)]
pub struct Neighbour {
    address: IpAddr,
    device: String,
    mac: Option<Mac>,
    /// `NUD_...`.
    state: u16,
    /// `NTF_...`.
    flags: u8,
}

impl Neighbour {
    /// Reads a request. A state of 0 is a permanent neighbour, as upstream has it.
    ///
    /// # Errors
    /// [`NetworkError::Invalid`] naming what is wrong.
    pub fn parse(request: &ARPNeighbor) -> Result<Self, NetworkError> {
        let text = request.toIPAddress.as_ref().map_or("", |to| to.address.as_str());
        let invalid = |why: &str| NetworkError::invalid(format!("neighbour {text:?} at {:?}", request.device), why);
        // Upstream's host sends no prefix, others the whole length.
        let address = text.split_once('/').map_or(text, |(address, _)| address);
        let mac = match request.lladdr.as_str() {
            "" => None,
            text => Some(Mac::parse(text).ok_or_else(|| invalid("its lladdr is no Ethernet address"))?),
        };
        let state = u16::try_from(request.state).map_err(|_| invalid("there is no such state"))?;
        Ok(Neighbour {
            address: address.parse().map_err(|_| invalid("it has no address"))?,
            device: request.device.clone(),
            mac,
            state: if state == 0 { NUD_PERMANENT } else { state },
            flags: u8::try_from(request.flags).map_err(|_| invalid("there are no such flags"))?,
        })
    }

    fn request(&self, index: u32) -> Request {
        let mut body = vec![kernel_family(self.address.is_ipv6()), 0, 0, 0];
        body.extend(index.to_ne_bytes());
        body.extend(self.state.to_ne_bytes());
        body.extend([self.flags, 0]);
        let request = Request::new(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body);
        let request = request.with(NDA_DST, octets(self.address));
        match self.mac {
            Some(mac) => request.with(NDA_LLADDR, mac.0),
            None => request,
        }
    }
}

/// Adds them, or changes those that are there.
///
/// # Errors
/// [`NetworkError`] naming the first neighbour that could not be had.
pub fn add_all(netlink: &mut Netlink, all: &[Neighbour]) -> Result<(), NetworkError> {
    let links = if all.is_empty() { Vec::new() } else { link::all(netlink)? };
    for one in all {
        let neighbour = format!("{} at {}", one.address, one.device);
        let Some(link) = links.iter().find(|l| l.name == one.device) else {
            return Err(NetworkError::NoDevice {
                what: format!("the neighbour {}", one.address),
                device: one.device.clone(),
            });
        };
        netlink.change(&one.request(link.index)).map_err(|source| NetworkError::Neighbour { neighbour, source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kata_proto::types::IPAddress;

    fn request(address: &str, mac: &str, state: i32, flags: i32) -> ARPNeighbor {
        let to = IPAddress { address: address.into(), ..Default::default() };
        let (device, lladdr) = ("eth0".into(), mac.into());
        ARPNeighbor { toIPAddress: Some(to).into(), device, lladdr, state, flags, ..Default::default() }
    }

    #[test]
    fn a_neighbour_is_permanent_unless_it_says_more() {
        let one = Neighbour::parse(&request("fe80::1", "02:00:00:00:00:01", 0, 0)).unwrap();
        assert_eq!((one.state, one.flags), (NUD_PERMANENT, 0));
        let other = Neighbour::parse(&request("10.0.0.1/32", "", 0x40, 8)).unwrap();
        assert_eq!((other.state, other.flags, other.mac), (0x40, 8, None));
        for bad in [
            request("", "", 0, 0),
            request("10.0.0.1", "x", 0, 0),
            request("10.0.0.1", "", -1, 0),
            request("10.0.0.1", "", 0, 256),
        ] {
            assert!(Neighbour::parse(&bad).unwrap_err().to_string().contains("eth0"));
        }
    }
}
