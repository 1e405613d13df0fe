//! The guest's network as the host arranges it: interfaces, addresses, routes, neighbours, packet filter.
//!
//! ```text
//! UpdateInterface ─> card (wait for it) ─> link, names, address ┐
//! UpdateRoutes ────> routes ─> route                            ├─> netlink ─> the kernel
//! AddARPNeighbors ─> neighbour                                  ┘
//! Get/SetIPTables ─> iptables ─> the guest's iptables programs
//! ```
//! It is the network namespace of the agent, which is that of the containers. Nothing is remembered between two calls: the
//! kernel is asked each time, so a card that was unplugged leaves nothing behind here. Calls block.

mod address;
mod card;
mod error;
pub mod iptables;
mod link;
mod names;
mod neighbour;
mod netlink;
mod route;
mod routes;
mod text;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kata_proto::types::{ARPNeighbor, Interface, Route};

pub use error::NetworkError;

use address::Address;
use card::Place;
use link::Link;
use neighbour::Neighbour;
use netlink::Netlink;

/// The network. One change at a time.
pub struct Network {
    changing: Mutex<()>,
    hotplug: Duration,
    /// Whether /sys shows this network's devices.
    has_machine: bool,
}

impl Network {
    /// `hotplug`: how long a card may take to appear; `has_machine`: whether it is the network of a machine of its own,
    /// where a card can be told by its place.
    pub fn new(hotplug: Duration, has_machine: bool) -> Self {
        Network { changing: Mutex::default(), hotplug, has_machine }
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes an interface what the request says, and returns it as it then is. Done twice, it changes nothing.
    ///
    /// # Errors
    /// [`NetworkError`]. A request that makes no sense changes nothing.
    pub fn update_interface(&self, request: &Interface) -> Result<Interface, NetworkError> {
        let (place, mac) = (Place::of(request)?, card::mac(request)?);
        if matches!(place, Place::Pci(_)) && !self.has_machine {
            return Err(NetworkError::Unsupported(format!(
                "an interface {place}, for this agent runs as an ordinary process"
            )));
        }
        let addresses = address::wanted(&request.IPAddresses)?;
        let what = || format!("MTU {} of interface {:?}", request.mtu, request.name);
        let mtu = u32::try_from(request.mtu).map_err(|_| NetworkError::invalid(what(), "it is too large"))?;
        if !request.name.is_empty() {
            link::check_name(&request.name)?;
        }
        // Others may be changed while this one is waited for.
        let index = place.wait(self.hotplug)?;
        let _one = self.changing();
        let mut netlink = Netlink::open()?;
        let mut link = by_index(&mut netlink, index, &place)?;
        if !request.name.is_empty() {
            names::give(&mut netlink, &mut link, &request.name)?;
        }
        if let Some(mac) = mac.filter(|mac| link.mac != Some(*mac)) {
            link::set_mac(&mut netlink, &mut link, mac)?;
        }
        if mtu != 0 && mtu != link.mtu {
            link::set_mtu(&mut netlink, &mut link, mtu)?;
        }
        let noarp = libc::IFF_NOARP as u32;
        if (request.raw_flags ^ link.flags) & noarp != 0 {
            link::set_arp(&mut netlink, &mut link, request.raw_flags & noarp == 0)?;
        }
        address::replace(&mut netlink, &link, &addresses)?;
        if !link.is_up() {
            link::set_up(&mut netlink, &mut link, true)?;
        }
        let link = by_index(&mut netlink, index, &place)?;
        Ok(message(&link, &address::all(&mut netlink)?))
    }

    /// Makes the routes of the main table what the list says, besides those that the kernel makes by itself, and returns
    /// all of them.
    ///
    /// # Errors
    /// [`NetworkError`] naming the route.
    pub fn update_routes(&self, list: &[Route]) -> Result<Vec<Route>, NetworkError> {
        let _one = self.changing();
        let mut netlink = Netlink::open()?;
        routes::replace(&mut netlink, list)?;
        routes::messages(&mut netlink)
    }

    /// All interfaces, with the loopback.
    ///
    /// # Errors
    /// [`NetworkError::List`].
    pub fn interfaces(&self) -> Result<Vec<Interface>, NetworkError> {
        let mut netlink = Netlink::open()?;
        let addresses = address::all(&mut netlink)?;
        Ok(link::all(&mut netlink)?.iter().map(|link| message(link, &addresses)).collect())
    }

    /// The unicast routes of the main table.
    ///
    /// # Errors
    /// [`NetworkError::List`].
    pub fn routes(&self) -> Result<Vec<Route>, NetworkError> {
        routes::messages(&mut Netlink::open()?)
    }

    /// Adds neighbours, or changes those that are there.
    ///
    /// # Errors
    /// [`NetworkError`] naming the neighbour. A request that makes no sense changes nothing.
    pub fn add_neighbours(&self, list: &[ARPNeighbor]) -> Result<(), NetworkError> {
        let all = list.iter().map(Neighbour::parse).collect::<Result<Vec<_>, _>>()?;
        let _one = self.changing();
        neighbour::add_all(&mut Netlink::open()?, &all)
    }
}

fn by_index(netlink: &mut Netlink, index: u32, place: &Place) -> Result<Link, NetworkError> {
    let gone = || NetworkError::NoCard { wanted: place.to_string(), waited: Duration::ZERO };
    link::all(netlink)?.into_iter().find(|l| l.index == index).ok_or_else(gone)
}

/// An interface as messages to the host write it.
fn message(link: &Link, addresses: &[Address]) -> Interface {
    Interface {
        device: link.name.clone(),
        name: link.name.clone(),
        IPAddresses: addresses.iter().filter(|a| a.index == link.index).map(Address::message).collect(),
        mtu: link.mtu.into(),
        hwAddr: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        type_: link.kind.clone(),
        raw_flags: link.flags,
        ..Default::default()
    }
}
