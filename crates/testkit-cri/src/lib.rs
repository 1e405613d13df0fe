//! A kubelet for tests: a containerd that serves the Kubernetes container runtime interface (CRI) in directories of its
//! own, and what drives it as a node's kubelet would. Everything here panics with what it saw.
//!
//! - [`api`], [`client`]: the interface and its calls, each with a deadline
//! - [`node`]: the containerd, its network and its clean-up
//! - [`pod`], [`container`]: pods and what runs in them, as the kubelet makes them
//! - [`volume`]: the kubelet's volumes: directories that are replaced atomically, tmpfs, sub-paths
//! - [`stream`]: exec, attach and port-forward, over [`spdy`]
//! - [`log`]: containers' logs in the kubelet's format

/// The interface's messages and clients.
#[allow(missing_docs, clippy::doc_markdown)]
pub mod api {
    tonic::include_proto!("runtime.v1");
}

pub mod client;
mod config;
pub mod container;
pub mod log;
mod network;
pub mod node;
pub mod pod;
pub mod spdy;
pub mod stream;
pub mod volume;

pub use container::{Container, ContainerSpec};
pub use node::Node;
pub use pod::{Pod, PodSpec};
