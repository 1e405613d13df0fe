//! The addresses of an interface (rtnetlink(7), `struct ifaddrmsg`).

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use kata_proto::types::IPAddress;
use libc::{
    IFA_ADDRESS, IFA_BROADCAST, IFA_F_NODAD, IFA_F_PERMANENT, IFA_FLAGS, IFA_LOCAL, RTM_DELADDR, RTM_GETADDR,
    RTM_NEWADDR,
};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use nix::errno::Errno;

use super::error::NetworkError;
use super::link::Link;
use super::netlink::{Netlink, NetlinkError, Request, attributes, u32_at};
use super::text::{Net, family, from_octets, kernel_family, octets};

/// The length of `struct ifaddrmsg`.
const BODY: usize = 8;
/// Who made an address (linux/if_addr.h).
const IFA_PROTO: u16 = 11;
/// The kernel did, from a router's advertisement, or as an interface's link-local one (linux/if_addr.h; since Linux 5.18).
const IFAPROT_KERNEL: [u8; 2] = [2, 3];

/// An address that an interface has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Whose.
    pub index: u32,
    /// The address, and the network that it is in.
    pub net: Net,
    /// Whether the kernel made it by itself: link-local, or from a router's advertisement, whose lifetime it has.
    pub automatic: bool,
}

impl Address {
    fn parse(message: &[u8]) -> Option<Address> {
        let (prefix, index) = (*message.get(1)?, u32_at(message, 4)?);
        let (mut local, mut address) = (None, None);
        let (mut flags, mut made_by) = (u32::from(*message.get(2)?), 0);
        for (kind, value) in attributes(message, BODY) {
            match kind {
                IFA_LOCAL => local = from_octets(value),
                IFA_ADDRESS => address = from_octets(value),
                IFA_FLAGS => flags = u32_at(value, 0)?,
                IFA_PROTO => made_by = *value.first()?,
                _ => {}
            }
        }
        // Of a point-to-point interface the other one is the peer's.
        let net = Net::new(local.or(address)?, prefix)?;
        let automatic = net.address.is_ipv6() && (IFAPROT_KERNEL.contains(&made_by) || flags & IFA_F_PERMANENT == 0);
        Some(Address { index, net, automatic })
    }

    /// As messages to the host write it.
    pub fn message(&self) -> IPAddress {
        IPAddress {
            family: family(self.net.address).into(),
            address: self.net.address.to_string(),
            mask: self.net.prefix.to_string(),
            ..Default::default()
        }
    }
}

/// The addresses of a request. The family is the text's.
///
/// # Errors
/// [`NetworkError::Invalid`] naming the first that is none.
pub fn wanted(list: &[IPAddress]) -> Result<Vec<Net>, NetworkError> {
    let mut nets: Vec<Net> = Vec::new();
    for one in list {
        let net = || Net::new(one.address.parse().ok()?, one.mask.parse().ok()?);
        let Some(net) = net().filter(|n| !n.address.is_unspecified() && !n.address.is_multicast()) else {
            let what = format!("address {:?} with mask {:?}", one.address, one.mask);
            return Err(NetworkError::invalid(what, "an interface has an address and the length of its prefix"));
        };
        if !nets.contains(&net) {
            nets.push(net);
        }
    }
    Ok(nets)
}

/// Every address of every interface.
///
/// # Errors
/// [`NetworkError::List`].
pub fn all(netlink: &mut Netlink) -> Result<Vec<Address>, NetworkError> {
    let request = Request::new(RTM_GETADDR, 0, vec![0; BODY]);
    netlink.dump(&request, RTM_NEWADDR, Address::parse).map_err(NetworkError::list("addresses"))
}

/// The addresses of an interface.
///
/// # Errors
/// [`NetworkError::List`].
pub fn of(netlink: &mut Netlink, link: &Link) -> Result<Vec<Address>, NetworkError> {
    Ok(all(netlink)?.into_iter().filter(|a| a.index == link.index).collect())
}

/// Gives an interface these addresses and no others, but for those that the kernel makes by itself.
///
/// # Errors
/// [`NetworkError`] naming the address.
pub fn replace(netlink: &mut Netlink, link: &Link, wanted: &[Net]) -> Result<(), NetworkError> {
    if wanted.iter().any(|n| n.address.is_ipv6()) {
        allow_ipv6(link)?;
    }
    for there in of(netlink, link)? {
        if !there.automatic && !wanted.contains(&there.net) {
            remove(netlink, link, there.net)?;
        }
    }
    // Anew: with a network's first IPv4 address the kernel removes its others.
    let there = of(netlink, link)?;
    for net in wanted.iter().filter(|net| !there.iter().any(|a| a.net == **net)) {
        add(netlink, link, *net)?;
    }
    Ok(())
}

fn request(kind: u16, flags: u16, link: &Link, net: Net) -> Request {
    let mut body = vec![kernel_family(net.address.is_ipv6()), net.prefix, 0, 0];
    body.extend(link.index.to_ne_bytes());
    Request::new(kind, flags, body).with(IFA_LOCAL, octets(net.address))
}

fn remove(netlink: &mut Netlink, link: &Link, net: Net) -> Result<(), NetworkError> {
    match netlink.change(&request(RTM_DELADDR, 0, link, net)) {
        // It went with another.
        Err(e) if e.is(Errno::EADDRNOTAVAIL) => Ok(()),
        other => other.map_err(|source| failed("remove", "from", link, net, source)),
    }
}

fn add(netlink: &mut Netlink, link: &Link, net: Net) -> Result<(), NetworkError> {
    let mut request = request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, link, net).with(IFA_ADDRESS, octets(net.address));
    if let Some(broadcast) = net.broadcast() {
        request = request.with(IFA_BROADCAST, broadcast.octets());
    }
    if net.address.is_ipv6() {
        // The network gave it to this sandbox alone; asking around would only hold it back for a second or two.
        request = request.with_u32(IFA_FLAGS, IFA_F_NODAD);
    }
    match netlink.change(&request) {
        Err(e) if e.is(Errno::EEXIST) && is_link_local(net.address) => Ok(()),
        other => other.map_err(|source| failed("add", "to", link, net, source)),
    }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(a) if a.is_unicast_link_local())
}

fn failed(verb: &str, preposition: &str, link: &Link, net: Net, source: NetlinkError) -> NetworkError {
    let what = format!("{verb} the address {net} {preposition}");
    NetworkError::Interface { what, name: link.name.clone(), source }
}

/// An interface for IPv6 addresses must have IPv6, and its own link-local one at once as well (ip-sysctl.rst).
fn allow_ipv6(link: &Link) -> Result<(), NetworkError> {
    for (name, value) in [("accept_dad", "0"), ("disable_ipv6", "0")] {
        let path = PathBuf::from(format!("/proc/sys/net/ipv6/conf/{}/{name}", link.name));
        let there = fs::read_to_string(&path).unwrap_or_default();
        if there.trim() != value {
            fs::write(&path, value).map_err(|source| NetworkError::Parameter { value, path, source })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requested_addresses_are_checked_and_told_apart() {
        let one =
            |address: &str, mask: &str| IPAddress { address: address.into(), mask: mask.into(), ..Default::default() };
        let nets = wanted(&[one("10.0.0.2", "24"), one("fd00::2", "64"), one("10.0.0.2", "24")]).unwrap();
        assert_eq!(nets.iter().map(Net::to_string).collect::<Vec<_>>(), ["10.0.0.2/24", "fd00::2/64"]);
        for (address, mask) in [("10.0.0.2", "33"), ("10.0.0.2", ""), ("", "24"), ("x", "8"), ("0.0.0.0", "0")] {
            assert!(wanted(&[one(address, mask)]).is_err(), "{address:?} {mask:?}");
        }
    }

    #[test]
    fn what_the_kernel_made_is_known() {
        let net = Net::parse("fe80::1/64").unwrap();
        let message = |flags: u8, extra: &[u8]| {
            let mut bytes = vec![kernel_family(true), net.prefix, flags, 253, 7, 0, 0, 0, 20, 0, 1, 0];
            bytes.extend(octets(net.address));
            bytes.extend(extra);
            Address::parse(&bytes).unwrap()
        };
        let permanent = IFA_F_PERMANENT as u8;
        assert_eq!(message(permanent, &[]), Address { index: u32::from_ne_bytes([7, 0, 0, 0]), net, automatic: false });
        assert!(message(permanent, &[5, 0, IFA_PROTO as u8, 0, 3, 0, 0, 0]).automatic);
        assert!(message(0, &[]).automatic, "it ends some day");
        assert_eq!(Address::parse(&[2, 33, 0, 0, 1, 0, 0, 0]), None);
    }
}
