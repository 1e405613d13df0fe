//! What goes wrong.

use std::io;

use thiserror::Error;

use crate::NetnsError;

/// Why what is in a namespace is not known.
#[derive(Debug, Error)]
pub enum ScanError {
    /// The namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The kernel did not tell.
    #[error("cannot list {what} of the network namespace {netns}: {source}")]
    List {
        /// "interfaces", "addresses", "routes", "neighbours".
        what: &'static str,
        /// Which namespace.
        netns: String,
        /// Why not.
        source: io::Error,
    },
    /// Changes cannot be followed.
    #[error("cannot watch the network namespace {netns}: {source}")]
    Watch {
        /// Which namespace.
        netns: String,
        /// Why not.
        source: io::Error,
    },
}

/// Why an interface cannot be connected with a VM.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// Not this interface, or not on this host.
    #[error("interface {interface} ({kind}) cannot be given to the VM: {reason}")]
    Unsupported {
        /// The engine's interface.
        interface: String,
        /// What it is.
        kind: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// Somebody else controls its traffic.
    #[error(
        "interface {interface} has an ingress queueing discipline of somebody else's, whose filters ours would replace"
    )]
    Busy {
        /// The engine's interface.
        interface: String,
    },
    /// A step failed.
    #[error("cannot {what} for interface {interface}: {source}")]
    Os {
        /// What was tried: "open a tap".
        what: &'static str,
        /// The engine's interface.
        interface: String,
        /// Why not.
        source: io::Error,
    },
}
