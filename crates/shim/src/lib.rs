//! containerd's door to the engine: the Task service, the shim protocol, the events; and the daemon that serves them
//! for both doors.

mod attach;
mod convert;
pub mod daemon;
pub mod door;
mod engine;
pub mod factory;
mod logging;
mod management;
mod observed;
mod options;
mod pod;
mod publish;
mod remove;
mod service;
mod stats;

pub use attach::{AttachHello, AttachReply, ConsoleQuery, FromDaemon, ListAnswer, ListQuery, ToDaemon};

/// The value of a task's `stdin` field that says: the stdio came over the attach socket. A process of the host that
/// attached there stands for the task.
pub const ATTACHED: &str = "kata-attach:";
