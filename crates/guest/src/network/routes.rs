//! All routes: reading them, and making them what the host says.

use kata_proto::types;
use libc::{RTM_DELROUTE, RTM_GETROUTE, RTM_NEWROUTE};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use nix::errno::Errno;

use super::error::NetworkError;
use super::link::{self, Link};
use super::netlink::{Netlink, Request};
use super::route::{BODY, Installed, Route, words};
use super::text::kernel_family;

/// The unicast routes of the main table, IPv4's first.
///
/// # Errors
/// [`NetworkError::List`].
pub fn all(netlink: &mut Netlink) -> Result<Vec<Installed>, NetworkError> {
    let mut all = Vec::new();
    for v6 in [false, true] {
        let mut body = vec![0; BODY];
        body[0] = kernel_family(v6);
        let request = Request::new(RTM_GETROUTE, 0, body);
        all.extend(netlink.dump(&request, RTM_NEWROUTE, Installed::parse).map_err(NetworkError::list("routes"))?);
    }
    Ok(all)
}

/// The same as messages to the host write them.
///
/// # Errors
/// [`NetworkError::List`].
pub fn messages(netlink: &mut Netlink) -> Result<Vec<types::Route>, NetworkError> {
    let links = link::all(netlink)?;
    Ok(all(netlink)?.iter().map(|there| there.route.message(&links)).collect())
}

/// Removes every route that is neither in the list nor the kernel's own, and adds what is missing of it: first what is
/// at an interface, then what goes by a gateway, which must be reachable by then. What is there already is not touched.
///
/// # Errors
/// [`NetworkError`] naming the first route that makes no sense, before anything was changed, or that the kernel refuses.
pub fn replace(netlink: &mut Netlink, list: &[types::Route]) -> Result<(), NetworkError> {
    let links = link::all(netlink)?;
    let mut wanted = Vec::with_capacity(list.len());
    for asked in list {
        wanted.push((Route::parse(asked, &links)?, asked));
    }
    wanted.sort_by_key(|(route, _)| route.gateway.is_some());
    let mut there = all(netlink)?;
    for old in there.extract_if(.., |old| !keep(old, &links) && !wanted.iter().any(|(route, _)| route.is_met_by(old))) {
        remove(netlink, &old)?;
    }
    for (route, asked) in &wanted {
        if !there.iter().any(|old| route.is_met_by(old)) {
            add(netlink, route, asked)?;
        }
    }
    Ok(())
}

/// Whether a route is not the host's business: the kernel's own, and the loopback's.
fn keep(old: &Installed, links: &[Link]) -> bool {
    let loopback = |index| links.iter().any(|l| l.index == index && l.loopback);
    old.automatic || old.route.device.is_some_and(loopback)
}

fn remove(netlink: &mut Netlink, old: &Installed) -> Result<(), NetworkError> {
    match netlink.change(&Request::new(RTM_DELROUTE, 0, old.message.clone())) {
        // It went with an interface, or with another route.
        Err(e) if e.is(Errno::ESRCH) => Ok(()),
        other => other.map_err(|source| NetworkError::Route { what: "remove", route: old.to_string(), source }),
    }
}

/// Puts back what went with an interface that was down for a moment.
///
/// # Errors
/// [`NetworkError::Route`].
pub fn restore(netlink: &mut Netlink, routes: &[Installed]) -> Result<(), NetworkError> {
    let (by_gateway, direct): (Vec<_>, Vec<_>) = routes.iter().partition(|there| there.route.gateway.is_some());
    for there in direct.into_iter().chain(by_gateway) {
        match netlink.change(&request(&there.route)) {
            Err(e) if e.is(Errno::EEXIST) => {}
            other => {
                let route = there.to_string();
                other.map_err(|source| NetworkError::Route { what: "put back", route, source })?;
            }
        }
    }
    Ok(())
}

fn request(route: &Route) -> Request {
    let (body, attributes) = route.encode();
    let message = Request::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, body);
    attributes.into_iter().fold(message, |message, (kind, value)| message.with(kind, value))
}

fn add(netlink: &mut Netlink, route: &Route, asked: &types::Route) -> Result<(), NetworkError> {
    match netlink.change(&request(route)) {
        // Upstream's hosts tell no metrics: of several ways to one destination the first counts, as upstream has it.
        Err(e) if e.is(Errno::EEXIST) => {
            log::warn!("the route {} is left out: there is another to the same destination", words(asked));
            Ok(())
        }
        other => other.map_err(|source| NetworkError::Route { what: "add", route: words(asked), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::netlink::attributes;
    use kata_proto::types::IPFamily;

    fn links() -> Vec<Link> {
        let link = |index, name: &str, loopback| Link {
            index,
            name: name.into(),
            mac: None,
            mtu: 1500,
            flags: 1,
            kind: String::new(),
            loopback,
        };
        vec![link(1, "lo", true), link(2, "eth0", false)]
    }

    fn request(dest: &str, gateway: &str, device: &str, source: &str) -> types::Route {
        let (dest, gateway) = (dest.into(), gateway.into());
        types::Route { dest, gateway, device: device.into(), source: source.into(), ..Default::default() }
    }

    /// As the kernel would tell of it.
    fn installed(route: &Route, protocol: u8) -> Installed {
        let (mut body, all) = route.encode();
        body[5] = protocol;
        for (kind, value) in all {
            body.extend((4 + value.len() as u16).to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(&value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        Installed::parse(&body).unwrap()
    }

    #[test]
    fn what_is_asked_for_comes_back_the_same() {
        let all = [
            request("", "10.0.0.1", "eth0", ""),
            request("10.1.0.0/16", "", "eth0", "10.0.0.2"),
            request("10.2.0.0/16", "fe80::1", "eth0", ""),
            types::Route { family: IPFamily::v6.into(), ..request("", "fd00::1", "eth0", "") },
            request("fd01::/64", "fe80::1", "eth0", "fd02::/64"),
            types::Route { scope: 253, mtu: 1400, metric: 7, flags: 4, ..request("10.3.0.0/24", "", "eth0", "") },
        ];
        for one in &all {
            let route = Route::parse(one, &links()).unwrap();
            let there = installed(&route, 3);
            assert!(route.is_met_by(&there) && !there.automatic, "{}", words(one));
            assert_eq!(there.route.message(&links()), route.message(&links()));
            assert_eq!(Route::parse(&there.route.message(&links()), &links()).unwrap(), route);
        }
        assert_eq!(Route::parse(&all[0], &links()).unwrap().message(&links()).dest, "0.0.0.0/0");
        assert_eq!(Route::parse(&all[3], &links()).unwrap().message(&links()).dest, "::/0");
        let mtu = Route::parse(&all[5], &links()).unwrap().encode().1.pop().unwrap().1;
        assert_eq!(attributes(&mtu, 0).count(), 1);
    }

    #[test]
    fn the_kernels_own_route_is_not_made_twice() {
        let mut kernels = Route::parse(&request("10.0.0.0/24", "", "eth0", "10.0.0.2"), &links()).unwrap();
        kernels.scope = 253;
        let there = installed(&kernels, 2);
        assert!(there.automatic && keep(&there, &links()));
        let met = |r: &types::Route| Route::parse(r, &links()).unwrap().is_met_by(&there);
        assert!(met(&request("10.0.0.7/24", "", "eth0", "")));
        assert!(!met(&request("10.0.0.0/24", "", "eth0", "10.0.0.3")));
        assert!(!met(&request("10.0.0.0/25", "", "eth0", "")));
        assert!(!met(&types::Route { metric: 50, ..request("10.0.0.0/24", "", "eth0", "") }));
    }

    #[test]
    fn a_wrong_route_is_named() {
        for (bad, word) in [
            (request("10.0.0.0/33", "", "eth0", ""), "10.0.0.0/33"),
            (request("10.0.0.0/8", "", "", ""), "neither"),
            (request("10.0.0.0/8", "", "eth9", ""), "\"eth9\""),
            (request("10.0.0.0/8", "x", "eth0", ""), "via x"),
            (request("fd00::/64", "10.0.0.1", "eth0", ""), "IPv4 gateway"),
            (request("10.0.0.0/8", "", "eth0", "10.0.0.0/9"), "source"),
            (request("10.0.0.0/8", "", "eth0", "fd00::1"), "source"),
            (types::Route { scope: 256, ..request("10.0.0.0/8", "", "eth0", "") }, "scope"),
        ] {
            let e = Route::parse(&bad, &links()).unwrap_err().to_string();
            assert!(e.contains(word) && e.contains("route"), "{e}");
        }
    }

    #[test]
    fn other_tables_and_kinds_are_not_ours() {
        let route = Route::parse(&request("10.1.0.0/16", "", "eth0", ""), &links()).unwrap();
        for (at, value) in [(4, 255), (7, 6)] {
            let mut message = installed(&route, 3).message;
            message[at] = value;
            assert!(Installed::parse(&message).is_none());
        }
        assert!(Installed::parse(&[0; 9]).is_none());
    }
}
