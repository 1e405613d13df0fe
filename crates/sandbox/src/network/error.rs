//! What goes wrong with a sandbox's network.

use kata_agent_client::CallError;
use kata_network::{AttachError, NetnsError, ScanError};
use kata_vmm::DeviceError;
use thiserror::Error;

/// Why a sandbox has no network.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// The namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The spec has no network namespace: the host's network is asked for.
    #[error(
        "host network: the sandbox's VM cannot share the host's network; use a network of the engine's and publish ports, or \
         none (with runtime.internetworking_model = \"none\" and runtime.disable_new_netns = true the VM gets no network \
         instead)"
    )]
    Host,
    /// The namespace of another process.
    #[error(
        "cannot join the network of another container ({path}): its interfaces belong to it; containers can share a network \
         only within one sandbox (a pod)"
    )]
    Another {
        /// As the spec says it.
        path: String,
    },
    /// What is in it is not known.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// An interface.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The VM's card.
    #[error("interface {interface} cannot be plugged into the VM: {}", crate::machine::chain(.source))]
    Plug {
        /// The engine's interface.
        interface: String,
        /// Why not.
        #[source]
        source: DeviceError,
    },
    /// The guest.
    #[error("the guest could not {what}: {source}")]
    Guest {
        /// What was asked: "set interface eth0".
        what: String,
        /// Its answer.
        #[source]
        source: CallError,
    },
}
