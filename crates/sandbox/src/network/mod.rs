//! The sandbox's network: whose namespace it is, what is in it, and how that comes into the guest.
//!
//! The engine puts interfaces into the namespace before the sandbox is created (CNI, podman), in a hook while it is
//! (docker 20.10), or between create and start (docker 26), and adds and removes some while it runs (`docker network
//! connect`). So the namespace is looked into at create, at start, and whenever something changes in it; each look ends
//! with the guest having what is there:
//!
//! ```text
//!   scan ──> what has gone: card unplugged, redirection removed
//!        ──> what is new:   tap, redirection, card plugged ──> UpdateInterface
//!        ──> what differs:                                     UpdateInterface
//!        ──> routes, neighbours, if they differ:               UpdateRoutes, AddARPNeighbors
//! ```
//!
//! The name server that docker keeps in that namespace is answered for in the guest (`names`).
//!
//! Engines find the namespace of a container through the pid that stands for it. Therefore the daemon's main thread, and
//! with it `/proc/PID/ns/net`, is in the namespace from before the daemon serves, and so are its kata-shims.

mod choose;
mod error;
mod follow;
mod forward;
mod message;
mod names;
mod sync;

pub use choose::Joined;
pub use error::NetworkError;
pub(crate) use follow::follow;
pub(crate) use forward::forward;
pub(crate) use sync::Network;

use kata_network::{Attachment, Netns};
use serde::{Deserialize, Serialize};

/// What a crash leaves in a namespace of the engine's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// Where the namespace is found, if the engine has given it a name.
    pub netns: Option<std::path::PathBuf>,
    /// What is connected.
    pub attachments: Vec<Attachment>,
}

impl NetworkRecord {
    /// Takes back what is recorded. What is gone needs nothing.
    pub fn clean_up(&self) {
        let Some(path) = self.netns.as_deref().filter(|_| !self.attachments.is_empty()) else { return };
        // The engine removes its namespace in its own time.
        let Ok(netns) = Netns::open(path) else { return };
        for attachment in &self.attachments {
            if let Err(err) = kata_network::detach(&netns, attachment) {
                tracing::warn!("{err}");
            }
        }
    }
}
