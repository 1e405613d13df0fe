//! Interfaces: listing them, finding one, changing it.

use libc::{
    ARPHRD_LOOPBACK, IFF_NOARP, IFF_UP, IFLA_ADDRESS, IFLA_IFNAME, IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_MTU,
    RTM_GETLINK, RTM_NEWLINK,
};
use nix::errno::Errno;

use super::error::NetworkError;
use super::netlink::{Netlink, NetlinkError, Request, attributes, u32_at};
use super::text::Mac;

/// The length of `struct ifinfomsg`.
const BODY: usize = 16;
/// How long an interface's name may be (`IFNAMSIZ` without its zero).
const NAME: usize = 15;

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number; it stays when the name changes.
    pub index: u32,
    /// What containers call it.
    pub name: String,
    /// The loopback's is zero; tunnels have none.
    pub mac: Option<Mac>,
    /// In bytes.
    pub mtu: u32,
    /// `IFF_...` (netdevice(7)).
    pub flags: u32,
    /// "veth", "bridge", ...; empty where a device is behind it.
    pub kind: String,
    /// Whether it is the loopback.
    pub loopback: bool,
}

impl Link {
    fn parse(message: &[u8]) -> Option<Link> {
        let device_type = u16::from_ne_bytes(message.get(2..4)?.try_into().ok()?);
        let mut link = Link {
            index: u32_at(message, 4)?,
            name: String::new(),
            mac: None,
            mtu: 0,
            flags: u32_at(message, 8)?,
            kind: String::new(),
            loopback: device_type == ARPHRD_LOOPBACK,
        };
        for (kind, value) in attributes(message, BODY) {
            match kind {
                IFLA_IFNAME => link.name = text(value),
                IFLA_ADDRESS => link.mac = value.try_into().ok().map(Mac),
                IFLA_MTU => link.mtu = u32_at(value, 0)?,
                IFLA_LINKINFO => {
                    link.kind = attributes(value, 0)
                        .find(|(k, _)| *k == IFLA_INFO_KIND)
                        .map(|(_, v)| text(v))
                        .unwrap_or_default();
                }
                _ => {}
            }
        }
        Some(link)
    }

    /// Whether it is up.
    pub fn is_up(&self) -> bool {
        self.flags & IFF_UP as u32 != 0
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}

/// Every interface, in the order of their numbers.
///
/// # Errors
/// [`NetworkError::List`].
pub fn all(netlink: &mut Netlink) -> Result<Vec<Link>, NetworkError> {
    let request = Request::new(RTM_GETLINK, 0, body(0, 0, 0));
    let mut links = netlink.dump(&request, RTM_NEWLINK, Link::parse).map_err(NetworkError::list("interfaces"))?;
    links.sort_by_key(|link| link.index);
    Ok(links)
}

/// The card with that Ethernet address. What is made on top of a card (a bridge, a VLAN) often has its address too;
/// the card itself is what is no such thing, or what was there first.
pub fn with_mac(links: &[Link], mac: Mac) -> Option<&Link> {
    links.iter().filter(|l| l.mac == Some(mac) && !l.loopback).min_by_key(|l| (!l.kind.is_empty(), l.index))
}

/// As the kernel's dev_valid_name (net/core/dev.c).
///
/// # Errors
/// [`NetworkError::Invalid`].
pub fn check_name(name: &str) -> Result<(), NetworkError> {
    let bad = |c: char| c == '/' || c == ':' || c.is_ascii_whitespace() || c == '\u{b}' || c == '\0' || c == '%';
    if name.is_empty() || name.len() > NAME || name == "." || name == ".." || name.contains(bad) {
        return Err(NetworkError::invalid(format!("interface name {name:?}"), "no interface can have it"));
    }
    Ok(())
}

fn body(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    for word in [index, flags, change] {
        body.extend(word.to_ne_bytes());
    }
    body
}

fn set(netlink: &mut Netlink, what: &str, link: &Link, request: &Request) -> Result<(), NetworkError> {
    netlink.change(request).map_err(|source| failed(what, link, source))
}

fn failed(what: &str, link: &Link, source: NetlinkError) -> NetworkError {
    NetworkError::Interface { what: what.to_owned(), name: link.name.clone(), source }
}

/// Takes an interface up or down.
///
/// # Errors
/// [`NetworkError::Interface`].
pub fn set_up(netlink: &mut Netlink, link: &mut Link, up: bool) -> Result<(), NetworkError> {
    let flags = if up { IFF_UP as u32 } else { 0 };
    let request = Request::new(RTM_NEWLINK, 0, body(link.index, flags, IFF_UP as u32));
    set(netlink, if up { "bring up" } else { "take down" }, link, &request)?;
    link.flags = link.flags & !(IFF_UP as u32) | flags;
    Ok(())
}

/// Whether it asks for its neighbours' addresses (`IFF_NOARP` is off).
///
/// # Errors
/// [`NetworkError::Interface`].
pub fn set_arp(netlink: &mut Netlink, link: &mut Link, arp: bool) -> Result<(), NetworkError> {
    let flags = if arp { 0 } else { IFF_NOARP as u32 };
    let request = Request::new(RTM_NEWLINK, 0, body(link.index, flags, IFF_NOARP as u32));
    set(netlink, "change IFF_NOARP of", link, &request)?;
    link.flags = link.flags & !(IFF_NOARP as u32) | flags;
    Ok(())
}

/// Sets the longest packet, in bytes.
///
/// # Errors
/// [`NetworkError::Interface`].
pub fn set_mtu(netlink: &mut Netlink, link: &mut Link, mtu: u32) -> Result<(), NetworkError> {
    let request = Request::new(RTM_NEWLINK, 0, body(link.index, 0, 0)).with_u32(IFLA_MTU, mtu);
    set(netlink, &format!("set the MTU {mtu} of"), link, &request)?;
    link.mtu = mtu;
    Ok(())
}

/// Sets the Ethernet address. The interface is then down, for its link-local address is made of that when it comes up.
///
/// # Errors
/// [`NetworkError::Interface`].
pub fn set_mac(netlink: &mut Netlink, link: &mut Link, mac: Mac) -> Result<(), NetworkError> {
    let request = Request::new(RTM_NEWLINK, 0, body(link.index, 0, 0)).with(IFLA_ADDRESS, mac.0);
    if link.is_up() {
        set_up(netlink, link, false)?;
    }
    set(netlink, &format!("set the address {mac} of"), link, &request)?;
    link.mac = Some(mac);
    Ok(())
}

/// Gives an interface a name that no other has. Before Linux 6.2 it must be down for it. It is put down only if need be,
/// for that loses routes and IPv6 addresses; then it stays down.
///
/// # Errors
/// [`NetworkError::Interface`].
pub fn set_name(netlink: &mut Netlink, link: &mut Link, name: &str) -> Result<(), NetworkError> {
    let what = format!("give the name {name} to");
    let request = Request::new(RTM_NEWLINK, 0, body(link.index, 0, 0)).with_str(IFLA_IFNAME, name);
    match netlink.change(&request) {
        Err(e) if e.is(Errno::EBUSY) && link.is_up() => {
            set_up(netlink, link, false)?;
            set(netlink, &what, link, &request)?;
        }
        other => other.map_err(|source| failed(&what, link, source))?,
    }
    name.clone_into(&mut link.name);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, mac: u8, kind: &str) -> Link {
        let mac = Some(Mac([2, 0, 0, 0, 0, mac]));
        Link { index, name: format!("l{index}"), mac, mtu: 1500, flags: 0, kind: kind.into(), loopback: false }
    }

    #[test]
    fn a_card_is_told_from_what_lies_on_it() {
        let links = [link(2, 1, "bridge"), link(3, 1, "vlan"), link(4, 1, ""), link(5, 2, "veth"), link(6, 2, "vlan")];
        let found = |mac| with_mac(&links, Mac([2, 0, 0, 0, 0, mac])).map(|l| l.index);
        assert_eq!((found(1), found(2), found(3)), (Some(4), Some(5), None));
        let lo = [Link { loopback: true, mac: Some(Mac([0; 6])), ..link(1, 0, "") }];
        assert_eq!(with_mac(&lo, Mac([0; 6])), None);
    }

    #[test]
    fn names_are_the_kernels() {
        for good in ["eth0", "a", "fifteen-letters"] {
            check_name(good).unwrap();
        }
        for bad in ["", ".", "..", "a/b", "a b", "a:b", "sixteen--letters", "eth%d", "a\nb"] {
            assert!(check_name(bad).unwrap_err().to_string().contains("interface name"), "{bad:?}");
        }
    }

    #[test]
    fn a_message_that_is_cut_off_is_no_link() {
        assert_eq!(Link::parse(&[0; 11]), None);
        assert_eq!(Link::parse(&body(7, 1, 0)).unwrap().index, 7);
    }
}
