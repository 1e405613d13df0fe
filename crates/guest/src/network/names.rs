//! Names of interfaces, which two can want.

use super::address;
use super::error::NetworkError;
use super::link::{self, Link};
use super::netlink::Netlink;
use super::routes;

/// Gives `link` a name. An interface that has it gets `link`'s old one, as upstream does, and keeps its addresses and
/// routes.
///
/// # Errors
/// [`NetworkError`]; then both have the names they had, or the log tells which has not.
pub fn give(netlink: &mut Netlink, link: &mut Link, name: &str) -> Result<(), NetworkError> {
    if link.name == name {
        return Ok(());
    }
    let Some(mut other) = link::all(netlink)?.into_iter().find(|l| l.name == name) else {
        return link::set_name(netlink, link, name);
    };
    if other.loopback {
        return Err(NetworkError::invalid(format!("interface name {name:?}"), "the loopback has it"));
    }
    let was_up = other.is_up();
    let mut addresses = address::of(netlink, &other)?;
    addresses.retain(|a| !a.automatic);
    let mut routes = routes::all(netlink)?;
    routes.retain(|r| !r.automatic && r.route.device == Some(other.index));
    let swapped = swap(netlink, link, &mut other, name);
    if was_up && !other.is_up() {
        link::set_up(netlink, &mut other, true)?;
        address::replace(netlink, &other, &addresses.iter().map(|a| a.net).collect::<Vec<_>>())?;
        routes::restore(netlink, &routes)?;
    }
    swapped
}

fn swap(netlink: &mut Netlink, link: &mut Link, other: &mut Link, name: &str) -> Result<(), NetworkError> {
    let old = link.name.clone();
    link::set_name(netlink, link, &format!("swap{}", link.index))?;
    let swapped = link::set_name(netlink, other, &old).and_then(|()| link::set_name(netlink, link, name));
    if swapped.is_err() {
        for (one, back) in [(other, name), (link, old.as_str())] {
            if one.name != back
                && let Err(e) = link::set_name(netlink, one, back)
            {
                log::error!("{}", crate::failure::chain(&e));
            }
        }
    }
    swapped
}
