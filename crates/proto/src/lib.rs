//! The agent protocol: services, messages, and the channel they travel on.
//!
//! The messages are upstream Kata's (same names and numbers), written anew in `protos/`; what is
//! ours alone has field numbers from 100 on.

pub mod channel;
pub mod names;
pub mod peek;

/// Generated from `protos/`.
#[allow(clippy::all, missing_docs, rustdoc::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/gen/modules.inc"));
}

pub use generated::{agent, agent_ttrpc, cri, csi, health, health_ttrpc, oci, types};
