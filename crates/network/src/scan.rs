//! Looking into a namespace.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kata_types::MacAddr;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressProtocol};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteNextHopFlags, RouteProtocol,
    RouteType,
};

use crate::netlink::Netlink;
use crate::{Address, Found, Interface, Kind, Neighbour, Netns, Route, ScanError, is_ours};

/// What is in the namespace.
///
/// # Errors
/// [`ScanError`].
pub fn scan(netns: &Netns) -> Result<Found, ScanError> {
    let list = |what| move |source| ScanError::List { what, netns: netns.name().to_owned(), source };
    let mut netlink = netns.run(Netlink::new)?.map_err(list("interfaces"))?;
    let links = netlink.list(&Message::GetLink(LinkMessage::default())).map_err(list("interfaces"))?;
    let mut interfaces = interfaces(links);
    if interfaces.is_empty() {
        return Ok(Found::default());
    }
    let all = netlink.list(&Message::GetAddress(AddressMessage::default())).map_err(list("addresses"))?;
    add_addresses(&mut interfaces, all);
    let names: HashMap<u32, &str> = interfaces.iter().map(|i| (i.index, i.name.as_str())).collect();
    let all = netlink.list(&Message::GetRoute(RouteMessage::default())).map_err(list("routes"))?;
    let routes = routes(&names, all);
    let all = netlink.list(&Message::GetNeighbour(NeighbourMessage::default())).map_err(list("neighbours"))?;
    let neighbours = all.into_iter().filter_map(|m| neighbour(&names, m)).collect();
    Ok(Found { interfaces, routes, neighbours })
}

/// The engine's, by number.
fn interfaces(links: Vec<Message>) -> Vec<Interface> {
    let (mut found, mut bases) = (Vec::new(), HashSet::new());
    for message in links {
        let Message::NewLink(link) = message else { continue };
        let Some(seen) = interface(&link) else { continue };
        bases.extend(seen.1);
        found.extend(seen.0);
    }
    for interface in &mut found {
        interface.base = bases.contains(&interface.index);
    }
    found.sort_by_key(|i: &Interface| i.index);
    found
}

/// One interface, unless it belongs to another one; and the number of the one that it stands on.
fn interface(link: &LinkMessage) -> Option<(Option<Interface>, Option<u32>)> {
    let layer = link.header.link_layer_type;
    if layer == LinkLayerType::Loopback {
        return None;
    }
    let mut found = Interface {
        index: link.header.index,
        name: String::new(),
        kind: Kind::Physical,
        mac: None,
        mtu: 0,
        flags: link.header.flags.bits(),
        addresses: Vec::new(),
        base: false,
    };
    let (mut below, mut elsewhere, mut port) = (None, false, false);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
            LinkAttribute::Address(bytes) if layer == LinkLayerType::Ether => {
                found.mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().filter(|mac| *mac != [0; 6]).map(MacAddr);
            }
            LinkAttribute::Link(index) => below = Some(*index),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::Controller(_) => port = true,
            LinkAttribute::LinkInfo(infos) => {
                let kind = infos.iter().find_map(|i| if let LinkInfo::Kind(kind) = i { Some(kind) } else { None });
                found.kind = kind.map_or(Kind::Physical, |kind| self::kind(kind, layer));
            }
            _ => {}
        }
    }
    // A pair's other end is not below it.
    let below = below.filter(|_| !elsewhere && found.kind != Kind::Veth && !is_ours(&found.name));
    let engines = !port && !found.name.is_empty() && !is_ours(&found.name);
    Some((engines.then_some(found), below))
}

fn kind(kind: &InfoKind, layer: LinkLayerType) -> Kind {
    match kind {
        InfoKind::Veth => Kind::Veth,
        InfoKind::MacVlan => Kind::Macvlan,
        InfoKind::MacVtap => Kind::Macvtap,
        InfoKind::IpVlan => Kind::Ipvlan,
        InfoKind::Vlan => Kind::Vlan,
        InfoKind::Bridge => Kind::Bridge,
        InfoKind::Tun if layer == LinkLayerType::Ether => Kind::Tap,
        other => Kind::Other(other.to_string()),
    }
}

fn add_addresses(interfaces: &mut [Interface], all: Vec<Message>) {
    for message in all {
        let Message::NewAddress(address) = message else { continue };
        let Some(interface) = interfaces.iter_mut().find(|i| i.index == address.header.index) else { continue };
        let (mut local, mut other, mut kernels) = (None, None, false);
        for attribute in &address.attributes {
            match attribute {
                // With a peer, `Address` is the peer's.
                AddressAttribute::Local(ip) => local = Some(*ip),
                AddressAttribute::Address(ip) => other = Some(*ip),
                AddressAttribute::Protocol(p) => kernels = *p == AddressProtocol::LinkLocal,
                _ => {}
            }
        }
        let Some(ip) = local.or(other) else { continue };
        if kernels || interface.mac.is_some_and(|mac| ip == IpAddr::V6(link_local(mac))) {
            continue;
        }
        interface.addresses.push(Address { ip, prefix: address.header.prefix_len });
    }
}

/// The address that a kernel gives an interface by itself (RFC 4291, appendix A); the guest's does so too.
fn link_local(mac: MacAddr) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    let pair = |x, y| u16::from_be_bytes([x, y]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, pair(a ^ 2, b), pair(c, 0xff), pair(0xfe, d), pair(e, f))
}

fn routes(names: &HashMap<u32, &str>, all: Vec<Message>) -> Vec<Route> {
    let mut found: Vec<Route> = all.into_iter().filter_map(|m| route(names, m)).collect();
    found.sort_by_key(|r| (r.gateway.is_some(), r.destination.is_none(), r.metric));
    found
}

/// A route that somebody has set. What the kernel made, the guest's makes with the addresses.
fn route(names: &HashMap<u32, &str>, message: Message) -> Option<Route> {
    let Message::NewRoute(message) = message else { return None };
    let header = &message.header;
    let ordinary = header.kind == RouteType::Unicast
        && header.protocol != RouteProtocol::Kernel
        && !header.flags.contains(RouteFlags::Cloned);
    if !ordinary {
        return None;
    }
    let v6 = header.address_family == netlink_packet_route::AddressFamily::Inet6;
    let (mut oif, mut table) = (None, u32::from(header.table));
    let mut found = Route {
        interface: String::new(),
        destination: None,
        v6,
        gateway: None,
        source: None,
        scope: header.scope.into(),
        flags: 0,
        metric: 0,
        mtu: None,
    };
    if header.flags.contains(RouteFlags::Onlink) {
        found.flags = RouteNextHopFlags::Onlink.bits().into();
    }
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(t) => table = *t,
            RouteAttribute::Oif(index) => oif = Some(*index),
            RouteAttribute::Priority(p) => found.metric = *p,
            RouteAttribute::Destination(to) => {
                found.destination = ip(to).map(|ip| Address { ip, prefix: header.destination_prefix_length });
            }
            RouteAttribute::Gateway(via) => found.gateway = ip(via),
            RouteAttribute::PrefSource(from) => found.source = ip(from),
            RouteAttribute::Metrics(metrics) => {
                found.mtu = metrics.iter().find_map(|m| if let RouteMetric::Mtu(mtu) = m { Some(*mtu) } else { None });
            }
            // The agent's protocol has one way for a route: the first.
            RouteAttribute::MultiPath(hops) => {
                let hop = hops.first()?;
                oif = Some(hop.interface_index);
                found.gateway = hop.attributes.iter().find_map(|a| match a {
                    RouteAttribute::Gateway(via) => ip(via),
                    _ => None,
                });
                found.flags = (hop.flags & RouteNextHopFlags::Onlink).bits().into();
            }
            _ => {}
        }
    }
    if table != u32::from(RouteHeader::RT_TABLE_MAIN)
        || (found.destination.is_none() && header.destination_prefix_length > 0)
    {
        return None;
    }
    found.interface = (*names.get(&oif?)?).to_owned();
    Some(found)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

/// A neighbour that was set for good, with an address on the wire.
fn neighbour(names: &HashMap<u32, &str>, message: Message) -> Option<Neighbour> {
    let Message::NewNeighbour(message) = message else { return None };
    let header = &message.header;
    if header.state != NeighbourState::Permanent {
        return None;
    }
    let (mut to, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => to = Some(IpAddr::V4(*ip)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => to = Some(IpAddr::V6(*ip)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = <[u8; 6]>::try_from(bytes.as_slice()).ok(),
            _ => {}
        }
    }
    let multicast = matches!(to, Some(IpAddr::V4(ip)) if ip == Ipv4Addr::BROADCAST || ip.is_multicast())
        || matches!(to, Some(IpAddr::V6(ip)) if ip.is_multicast());
    if multicast {
        return None;
    }
    Some(Neighbour {
        interface: (*names.get(&header.ifindex)?).to_owned(),
        ip: to?,
        mac: MacAddr(mac?),
        state: header.state.into(),
        flags: header.flags.bits(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_address_is_known() {
        let mac = MacAddr([0x02, 0x42, 0xac, 0x11, 0x00, 0x02]);
        assert_eq!(link_local(mac).to_string(), "fe80::42:acff:fe11:2");
    }
}
