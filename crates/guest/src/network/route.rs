//! One route: as messages to the host write it, and as the kernel does (rtnetlink(7), `struct rtmsg`).

use std::fmt;
use std::net::IpAddr;

use kata_proto::types::{self, IPFamily};
use libc::{
    RT_SCOPE_UNIVERSE, RT_TABLE_MAIN, RTA_DST, RTA_GATEWAY, RTA_METRICS, RTA_OIF, RTA_PREFSRC, RTA_PRIORITY, RTA_SRC,
    RTA_TABLE, RTN_UNICAST,
};

use super::error::NetworkError;
use super::link::Link;
use super::netlink::{attributes, u32_at};
use super::text::{Net, family, from_octets, kernel_family, octets};

/// The length of `struct rtmsg`.
pub const BODY: usize = 12;
/// The gateway is at the interface whatever the addresses say (linux/rtnetlink.h).
const RTNH_F_ONLINK: u32 = 4;
/// The metric of IPv6 routes that name none (`IP6_RT_PRIO_USER`, net/ip6_fib.h).
const IP6_METRIC: u32 = 1024;
/// A gateway with its family, `struct rtvia` (linux/rtnetlink.h).
const RTA_VIA: u16 = 18;
/// Of `RTA_METRICS`: the path's MTU (linux/rtnetlink.h).
const RTAX_MTU: u16 = 2;
/// Who made a route (linux/rtnetlink.h).
const RTPROT_REDIRECT: u8 = 1;
const RTPROT_KERNEL: u8 = 2;
const RTPROT_BOOT: u8 = 3;
const RTPROT_RA: u8 = 9;

/// A unicast route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// To where.
    pub dest: Net,
    /// By whom; an IPv4 route may have an IPv6 one.
    pub gateway: Option<IpAddr>,
    /// The interface's number; the kernel finds one for a gateway without.
    pub device: Option<u32>,
    /// The sender's address where a program chooses none.
    pub preferred: Option<IpAddr>,
    /// Only for senders of this network (IPv6).
    pub from: Option<Net>,
    /// `RT_SCOPE_...`; has no meaning for IPv6.
    pub scope: u8,
    /// Whether the gateway need not be in a network of the interface.
    pub onlink: bool,
    /// In bytes; 0 is the interface's.
    pub mtu: u32,
    /// The least wins; 0 is the family's default.
    pub metric: u32,
}

/// A route that is there.
#[derive(Debug, Clone)]
pub struct Installed {
    /// What messages can say of it.
    pub route: Route,
    /// Whether the kernel made it by itself: for an address, or as a router said.
    pub automatic: bool,
    /// The kernel's own words, with which it is removed.
    pub message: Vec<u8>,
}

impl Route {
    /// Reads a request.
    ///
    /// # Errors
    /// [`NetworkError`] naming the route and what is wrong.
    pub fn parse(request: &types::Route, links: &[Link]) -> Result<Self, NetworkError> {
        let invalid = |why: &str| NetworkError::invalid(format!("route {}", words(request)), why);
        let address = |text: &str, why: &str| match text {
            "" => Ok(None),
            text => text.parse::<IpAddr>().map(Some).map_err(|_| invalid(why)),
        };
        let gateway = address(&request.gateway, "its gateway is no address")?;
        let v6 = request.family.enum_value_or_default() == IPFamily::v6;
        let dest = match request.dest.as_str() {
            "" | "default" => Net::all(v6),
            // As upstream's agent lists what goes through a gateway.
            "0.0.0.0" | "::" => Net::all(request.dest == "::"),
            text => Net::parse(text).ok_or_else(|| invalid("its destination is no network"))?.masked(),
        };
        let v6 = dest.address.is_ipv6();
        if v6 && gateway.is_some_and(|g| g.is_ipv4()) {
            return Err(invalid("an IPv4 gateway cannot take IPv6"));
        }
        let (preferred, from) = source(&request.source, v6).ok_or_else(|| invalid("its source is of no use"))?;
        let device = match request.device.as_str() {
            "" if gateway.is_some() => None,
            "" => return Err(invalid("it has neither interface nor gateway")),
            name => Some(links.iter().find(|l| l.name == name).map(|l| l.index).ok_or_else(|| {
                NetworkError::NoDevice { what: format!("the route {}", words(request)), device: name.to_owned() }
            })?),
        };
        let scope = u8::try_from(request.scope).map_err(|_| invalid("there is no such scope"))?;
        let onlink = request.flags & RTNH_F_ONLINK != 0;
        Ok(Route { dest, gateway, device, preferred, from, scope, onlink, mtu: request.mtu, metric: request.metric }
            .normal())
    }

    /// In the form in which the kernel tells it.
    fn normal(mut self) -> Self {
        if self.is_ipv6() {
            self.scope = RT_SCOPE_UNIVERSE;
            if self.metric == 0 {
                self.metric = IP6_METRIC;
            }
        }
        self
    }

    /// Whether it is of IPv6.
    pub fn is_ipv6(&self) -> bool {
        self.dest.address.is_ipv6()
    }

    /// Whether `there` makes this route needless.
    pub fn is_met_by(&self, there: &Installed) -> bool {
        let mut same = there.route.clone();
        if self.device.is_none() {
            same.device = None;
        }
        if there.automatic {
            // What the kernel derives from an address it knows better.
            same.preferred = self.preferred.and(same.preferred);
            same.scope = self.scope;
            if self.metric == 0 || self.is_ipv6() && self.metric == IP6_METRIC {
                same.metric = self.metric;
            }
        }
        *self == same
    }

    /// The body of a message, and its attributes.
    pub fn encode(&self) -> (Vec<u8>, Vec<(u16, Vec<u8>)>) {
        let mut body = vec![kernel_family(self.is_ipv6()), self.dest.prefix, self.from.map_or(0, |n| n.prefix), 0];
        body.extend([RT_TABLE_MAIN, RTPROT_BOOT, self.scope, RTN_UNICAST]);
        body.extend((if self.onlink { RTNH_F_ONLINK } else { 0 }).to_ne_bytes());
        let mut all = Vec::new();
        if self.dest.prefix > 0 {
            all.push((RTA_DST, octets(self.dest.address)));
        }
        if let Some(from) = self.from {
            all.push((RTA_SRC, octets(from.address)));
        }
        match self.gateway {
            Some(gateway) if gateway.is_ipv6() != self.is_ipv6() => {
                let mut via = u16::from(kernel_family(true)).to_ne_bytes().to_vec();
                via.extend(octets(gateway));
                all.push((RTA_VIA, via));
            }
            Some(gateway) => all.push((RTA_GATEWAY, octets(gateway))),
            None => {}
        }
        if let Some(preferred) = self.preferred {
            all.push((RTA_PREFSRC, octets(preferred)));
        }
        if let Some(device) = self.device {
            all.push((RTA_OIF, device.to_ne_bytes().to_vec()));
        }
        if self.metric != 0 {
            all.push((RTA_PRIORITY, self.metric.to_ne_bytes().to_vec()));
        }
        if self.mtu != 0 {
            // One attribute within: its length, its kind, its value.
            let mut nested = 8u16.to_ne_bytes().to_vec();
            nested.extend(RTAX_MTU.to_ne_bytes());
            nested.extend(self.mtu.to_ne_bytes());
            all.push((RTA_METRICS, nested));
        }
        (body, all)
    }

    /// As messages to the host write it. A device that has gone meanwhile has no name.
    pub fn message(&self, links: &[Link]) -> types::Route {
        let name = |index| links.iter().find(|l| l.index == index).map(|l| l.name.clone());
        types::Route {
            dest: self.dest.to_string(),
            gateway: self.gateway.map(|g| g.to_string()).unwrap_or_default(),
            device: self.device.and_then(name).unwrap_or_default(),
            source: match (self.preferred, self.from) {
                (Some(address), _) => address.to_string(),
                (None, Some(net)) => net.to_string(),
                (None, None) => String::new(),
            },
            scope: self.scope.into(),
            family: family(self.dest.address).into(),
            flags: if self.onlink { RTNH_F_ONLINK } else { 0 },
            mtu: self.mtu,
            metric: self.metric,
            ..Default::default()
        }
    }
}

/// "address" or "address/0": the sender's address. "network/length": only for those senders, which IPv4 has not.
#[allow(clippy::type_complexity)]
fn source(text: &str, v6: bool) -> Option<(Option<IpAddr>, Option<Net>)> {
    if text.is_empty() {
        return Some((None, None));
    }
    let net = Net::parse(text)?;
    if net.address.is_ipv6() != v6 {
        return None;
    }
    if net.prefix == 0 || net == Net::host(net.address) {
        return Some((Some(net.address), None));
    }
    v6.then(|| (None, Some(net.masked())))
}

/// A requested route in ip-route(8)'s words.
pub fn words(request: &types::Route) -> String {
    let dest = if request.dest.is_empty() { "default" } else { &request.dest };
    let mut text = dest.to_owned();
    for (word, value) in [("via", &request.gateway), ("dev", &request.device), ("src", &request.source)] {
        if !value.is_empty() {
            text.push_str(&format!(" {word} {value}"));
        }
    }
    if request.metric != 0 {
        text.push_str(&format!(" metric {}", request.metric));
    }
    text
}

impl Installed {
    /// Reads a route of the main table that is unicast and goes by one way; `None` for all others.
    pub fn parse(message: &[u8]) -> Option<Installed> {
        let &[family, dest_len, src_len, _, table, protocol, scope, kind] = message.first_chunk::<8>()?;
        let v6 = family == kernel_family(true);
        let mut table = u32::from(table);
        let mut route = Route {
            dest: Net::all(v6),
            gateway: None,
            device: None,
            preferred: None,
            from: None,
            scope,
            onlink: u32_at(message, 8)? & RTNH_F_ONLINK != 0,
            mtu: 0,
            metric: 0,
        };
        for (kind, value) in attributes(message, BODY) {
            match kind {
                RTA_TABLE => table = u32_at(value, 0)?,
                RTA_DST => route.dest = Net::new(from_octets(value)?, dest_len)?,
                RTA_SRC => route.from = Some(Net::new(from_octets(value)?, src_len)?),
                RTA_GATEWAY => route.gateway = Some(from_octets(value)?),
                RTA_VIA => route.gateway = Some(from_octets(value.get(2..)?)?),
                RTA_OIF => route.device = Some(u32_at(value, 0)?),
                RTA_PREFSRC => route.preferred = Some(from_octets(value)?),
                RTA_PRIORITY => route.metric = u32_at(value, 0)?,
                RTA_METRICS => {
                    let mtu = attributes(value, 0).find(|(k, _)| *k == RTAX_MTU);
                    route.mtu = mtu.and_then(|(_, v)| u32_at(v, 0)).unwrap_or(0);
                }
                _ => {}
            }
        }
        if table != u32::from(RT_TABLE_MAIN) || kind != RTN_UNICAST {
            return None;
        }
        let automatic = [RTPROT_REDIRECT, RTPROT_KERNEL, RTPROT_RA].contains(&protocol);
        Some(Installed { route: route.normal(), automatic, message: message.to_owned() })
    }
}

impl fmt::Display for Installed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&words(&self.route.message(&[])))
    }
}
