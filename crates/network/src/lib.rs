//! The host's half of a sandbox's network. The engine (docker, a CNI plugin, netavark) fills a network namespace with
//! interfaces as for any container; the container runs in a VM, so each interface is connected with a card of the VM's:
//!
//! ```text
//!   network namespace of the sandbox                           VM
//!   ┌────────────────────────────────────────┐
//!   │ eth0 (veth, macvlan, ...)              │
//!   │   ingress ──u32, mirred──> egress      │
//!   │   egress <──mirred, u32── ingress      │
//!   │                     tap0_kata ═════════╪══ fd ══> virtio-net "eth0", same address, MTU, routes
//!   └────────────────────────────────────────┘
//! ```
//!
//! The engine's interface keeps what the engine gave it; the host's own network stack in that namespace sees nothing of
//! what arrives, because the redirection takes it first. There is no VM in this crate: [`scan()`] says what is there,
//! [`attach()`] makes taps and gives their descriptors, [`Watch`] tells of changes, [`detach`] tidies up.
//!
//! Nothing here outlives the namespace, and a tap does not outlive its last descriptor, so a kill at any point leaves
//! at most a redirection to nowhere on an interface of the engine's, which the next [`attach()`] or [`detach`] removes.

mod attach;
mod error;
mod interface;
mod localhost;
mod macvtap;
mod names;
mod netlink;
mod netns;
mod nft;
mod scan;
mod tc;
mod watch;

pub use attach::{Attach, Attached, Attachment, Model, attach, detach, vhost_available};
pub use error::{AttachError, ScanError};
pub use interface::{Address, Found, Interface, Kind, Neighbour, Route};
pub use localhost::{Localhost, LocalhostError, refuse};
pub use names::hear_name_servers;
pub use netns::{Claim, Netns, NetnsError};
pub use scan::scan;
pub use watch::Watch;

/// The name of the `slot`-th interface that we make in a sandbox's namespace.
pub(crate) fn our_name(slot: u32) -> String {
    format!("tap{slot}_kata")
}

/// Whether an interface of this name is one that we make: it is no interface of the engine's.
pub(crate) fn is_ours(name: &str) -> bool {
    let slot = name.strip_prefix("tap").and_then(|n| n.strip_suffix("_kata"));
    slot.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_interfaces_are_told_by_their_names() {
        assert!(is_ours(&our_name(0)) && is_ours(&our_name(12)));
        for other in ["tap0", "tap_kata", "tapx_kata", "eth0", "tap0_katas"] {
            assert!(!is_ours(other), "{other}");
        }
    }
}
