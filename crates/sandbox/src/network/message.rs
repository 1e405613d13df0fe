//! What the agent is told, in upstream's protocol.

use std::net::IpAddr;

use kata_network::{Address, Interface, Neighbour, Route};
use kata_proto::{agent as pb, types};
use protobuf::{EnumOrUnknown, MessageField};

/// Flags of an interface that the guest's gets too (`IFF_*`, netdevice(7)): what kind of neighbours it has.
const FLAGS: u32 = libc::IFF_NOARP.cast_unsigned();

/// `UpdateInterface` for the card that the guest finds at `pci` (upstream's form) with the interface's address.
pub(super) fn interface(i: &Interface, pci: &str) -> pb::UpdateInterfaceRequest {
    let mut out = types::Interface::new();
    out.device.clone_from(&i.name);
    out.name.clone_from(&i.name);
    out.IPAddresses = i.addresses.iter().map(|a| address(*a)).collect();
    out.mtu = i.mtu.into();
    out.hwAddr = i.mac.map(|mac| mac.to_string()).unwrap_or_default();
    pci.clone_into(&mut out.devicePath);
    out.type_ = i.kind.to_string();
    out.raw_flags = i.flags & FLAGS;
    let mut request = pb::UpdateInterfaceRequest::new();
    request.interface = MessageField::some(out);
    request
}

/// `UpdateRoutes`: all of them.
pub(super) fn routes(all: &[Route]) -> pb::UpdateRoutesRequest {
    let mut routes = pb::Routes::new();
    routes.Routes = all.iter().map(route).collect();
    let mut request = pb::UpdateRoutesRequest::new();
    request.routes = MessageField::some(routes);
    request
}

/// `AddARPNeighbors`.
pub(super) fn neighbours(all: &[Neighbour]) -> pb::AddARPNeighborsRequest {
    let mut neighbours = pb::ARPNeighbors::new();
    neighbours.ARPNeighbors = all
        .iter()
        .map(|n| {
            let mut out = types::ARPNeighbor::new();
            let whole = if n.ip.is_ipv4() { 32 } else { 128 };
            out.toIPAddress = MessageField::some(address(Address { ip: n.ip, prefix: whole }));
            out.device.clone_from(&n.interface);
            out.lladdr = n.mac.to_string();
            out.state = n.state.into();
            out.flags = n.flags.into();
            out
        })
        .collect();
    let mut request = pb::AddARPNeighborsRequest::new();
    request.neighbors = MessageField::some(neighbours);
    request
}

fn family(v6: bool) -> EnumOrUnknown<types::IPFamily> {
    EnumOrUnknown::new(if v6 { types::IPFamily::v6 } else { types::IPFamily::v4 })
}

fn address(a: Address) -> types::IPAddress {
    let mut out = types::IPAddress::new();
    out.family = family(a.ip.is_ipv6());
    out.address = a.ip.to_string();
    out.mask = a.prefix.to_string();
    out
}

fn route(r: &Route) -> types::Route {
    let text = |ip: Option<IpAddr>| ip.map(|ip| ip.to_string()).unwrap_or_default();
    let mut out = types::Route::new();
    out.dest = r.destination.map(|d| format!("{}/{}", d.ip, d.prefix)).unwrap_or_default();
    out.gateway = text(r.gateway);
    out.device.clone_from(&r.interface);
    out.source = text(r.source);
    out.scope = r.scope.into();
    out.family = family(r.v6);
    out.flags = r.flags;
    out.metric = r.metric;
    out.mtu = r.mtu.unwrap_or(0);
    out
}

#[cfg(test)]
mod tests {
    use kata_network::Kind;

    use super::*;

    #[test]
    fn an_interface_as_the_agent_is_told() {
        let i = Interface {
            index: 7,
            name: "eth0".into(),
            kind: Kind::Veth,
            mac: Some("02:42:ac:11:00:02".parse().unwrap()),
            mtu: 1500,
            flags: (libc::IFF_UP | libc::IFF_NOARP).cast_unsigned(),
            addresses: vec![
                Address { ip: "172.17.0.2".parse().unwrap(), prefix: 16 },
                Address { ip: "fd00::2".parse().unwrap(), prefix: 64 },
            ],
            base: false,
        };
        let got = interface(&i, "03/00").interface.unwrap();
        assert_eq!((got.name.as_str(), got.device.as_str(), got.devicePath.as_str()), ("eth0", "eth0", "03/00"));
        assert_eq!(
            (got.hwAddr.as_str(), got.mtu, got.type_.as_str(), got.raw_flags),
            ("02:42:ac:11:00:02", 1500, "veth", 0x80)
        );
        let ips: Vec<_> =
            got.IPAddresses.iter().map(|a| (a.family.unwrap(), a.address.as_str(), a.mask.as_str())).collect();
        assert_eq!(ips, [(types::IPFamily::v4, "172.17.0.2", "16"), (types::IPFamily::v6, "fd00::2", "64")]);
    }

    #[test]
    fn routes_and_neighbours_as_the_agent_is_told() {
        let r = Route {
            interface: "eth0".into(),
            destination: None,
            v6: true,
            gateway: Some("fd00::1".parse().unwrap()),
            source: None,
            scope: 0,
            flags: 4,
            metric: 50,
            mtu: Some(1400),
        };
        let got = routes(&[r]).routes.unwrap().Routes.remove(0);
        assert_eq!((got.dest.as_str(), got.gateway.as_str(), got.device.as_str()), ("", "fd00::1", "eth0"));
        assert_eq!((got.family.unwrap(), got.flags, got.metric, got.mtu), (types::IPFamily::v6, 4, 50, 1400));
        let n = Neighbour {
            interface: "eth0".into(),
            ip: "10.0.0.1".parse().unwrap(),
            mac: "02:00:00:00:00:01".parse().unwrap(),
            state: 0x80,
            flags: 0,
        };
        let got = neighbours(&[n]).neighbors.unwrap().ARPNeighbors.remove(0);
        let to = got.toIPAddress.unwrap();
        assert_eq!(
            (to.address.as_str(), to.mask.as_str(), got.lladdr.as_str(), got.state),
            ("10.0.0.1", "32", "02:00:00:00:00:01", 0x80)
        );
    }
}
