//! What is found in a namespace: plain data.

use std::fmt;
use std::net::IpAddr;

use kata_types::MacAddr;

/// What an interface is (`IFLA_INFO_KIND`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// One end of a pair.
    Veth,
    /// Shares its parent's wire, with an address of its own.
    Macvlan,
    /// The same, with a file.
    Macvtap,
    /// Shares its parent's wire and address.
    Ipvlan,
    /// A tag on its parent's wire.
    Vlan,
    /// Ethernet over a file.
    Tap,
    /// A bridge.
    Bridge,
    /// A device without a kind: hardware.
    Physical,
    /// Any other, by the kernel's name.
    Other(String),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Veth => "veth",
            Kind::Macvlan => "macvlan",
            Kind::Macvtap => "macvtap",
            Kind::Ipvlan => "ipvlan",
            Kind::Vlan => "vlan",
            Kind::Tap => "tap",
            Kind::Bridge => "bridge",
            Kind::Physical => "physical",
            Kind::Other(name) => name,
        })
    }
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// How many of its bits are the network's.
    pub prefix: u8,
}

/// An interface of the engine's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its number within the namespace.
    pub index: u32,
    /// Its name, which the guest's gets too.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Its Ethernet address, if it has an Ethernet layer.
    pub mac: Option<MacAddr>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// `IFF_*` (netdevice(7)).
    pub flags: u32,
    /// Its addresses, but for those that the guest's kernel makes by itself.
    pub addresses: Vec<Address>,
    /// Another interface of the namespace is on top of it.
    pub base: bool,
}

impl Interface {
    /// Whether somebody is at its other end, or a cable in it.
    pub fn has_carrier(&self) -> bool {
        self.flags & libc::IFF_LOWER_UP.cast_unsigned() != 0
    }

    /// Whether it is switched on.
    pub fn is_up(&self) -> bool {
        self.flags & libc::IFF_UP.cast_unsigned() != 0
    }

    /// Whether the guest has a use for it. The kernel puts tunnels into every namespace (`sit0`, `gretap0`), and engines
    /// make interfaces before they set them up: what is down and without an address is not there yet.
    pub fn in_use(&self) -> bool {
        !self.addresses.is_empty() || (self.is_up() && !self.base)
    }
}

/// A route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Through which interface, by name.
    pub interface: String,
    /// Where to; `None`: everywhere.
    pub destination: Option<Address>,
    /// Whether it is of IPv6.
    pub v6: bool,
    /// Through whom.
    pub gateway: Option<IpAddr>,
    /// The address that packets have as their source.
    pub source: Option<IpAddr>,
    /// `RT_SCOPE_*` (rtnetlink(7)).
    pub scope: u8,
    /// `RTNH_F_*`, of those that a user sets: `RTNH_F_ONLINK`.
    pub flags: u32,
    /// Which of several to one destination counts: the least. 0: none was given.
    pub metric: u32,
    /// The MTU of the way, in bytes, if it has one of its own.
    pub mtu: Option<u32>,
}

/// A neighbour that somebody has set for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// Through which interface, by name.
    pub interface: String,
    /// Whose.
    pub ip: IpAddr,
    /// Its address on the wire.
    pub mac: MacAddr,
    /// `NUD_*` (rtnetlink(7)).
    pub state: u16,
    /// `NTF_*` (rtnetlink(7)).
    pub flags: u8,
}

/// What is in a namespace, but for the loopback interface and what we made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// By number.
    pub interfaces: Vec<Interface>,
    /// Those to neighbours first: a gateway must be reachable before it is named.
    pub routes: Vec<Route>,
    /// As the kernel lists them.
    pub neighbours: Vec<Neighbour>,
}
