//! containerd's Sandbox API (`containerd.runtime.sandbox.v1`): pods whose sandbox is asked for as one, and not by a container
//! that stands for it.
//!
//! In the engine there is such a container all the same, of the sandbox's id: whoever makes it decides nothing about how a pod
//! lives and ends. Its spec, made here of what the API says, is left in the bundle, so that what cleans up after a crash finds
//! there what it finds with every other sandbox.

mod service;
mod spec;

use async_trait::async_trait;
use kata_oci::Spec;
use kata_sandbox::PodNames;

pub use service::SandboxService;

/// Makes the daemon's sandbox, once.
#[async_trait]
pub trait Make: Send + Sync {
    /// Makes it, of the container that stands for it and what containers get from it.
    ///
    /// # Errors
    /// A text; nothing of it is left.
    async fn make(self: Box<Self>, spec: &Spec, names: &PodNames) -> Result<(), String>;

    /// Lets go of what was there for it.
    async fn abandon(self: Box<Self>);
}
