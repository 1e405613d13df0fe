//! Turns a process into a container.
//!
//! [`Container`] is what the agent holds: it makes a cgroup, starts a helper process ([`helper_main`]) that makes the
//! container around itself, and later reads and writes the cgroup. See `helper` for what happens in there.

mod cgroup;
mod channel;
mod container;
mod error;
mod helper;
mod hold;
mod job;
mod launch;
mod mounts;
mod namespaces;
mod process;
mod report;
mod rootfs;
mod sysctl;

pub use cgroup::set_cgroup_root;
pub use cgroup::stats_of_all;
pub use container::Container;
pub use error::JailError;
pub use helper::helper_main;
pub use hold::PidNamespace;
pub use launch::{Child, ProcessIo, set_self_exe};
