//! Identifiers, units and names shared by host and guest; no IO.

mod id;
mod mac;
mod unit;

pub use id::{ContainerId, ExecId, IdError, SandboxId};
pub use mac::{BadMac, MacAddr};
pub use unit::Mib;

/// The vsock port on which the agent serves ttrpc (upstream's number).
pub const AGENT_VSOCK_PORT: u32 = 1024;
/// The vsock port on which the agent takes streams with a header (ours).
pub const STREAM_VSOCK_PORT: u32 = 1028;
/// The name of the virtio-serial port that carries the proxy's multiplexed channel.
pub const AGENT_SERIAL_PORT: &str = "agent.channel.0";
/// The virtio-fs tag of the sandbox's share.
pub const SHARE_TAG: &str = "kataShared";
/// Where the guest mounts the share. Below it, `<container>/rootfs` and `<container>/mounts/<n>`.
pub const GUEST_SHARE_DIR: &str = "/run/kata-containers/shared/containers";
/// Where the guest finds the iptables that the host lends it when it is asked for rules: below it `xtables-nft-multi`, its loader
/// `ld.so`, the libraries in `lib` and iptables' extensions in `xtables`. No container's id begins so.
pub const GUEST_IPTABLES_DIR: &str = "/run/kata-containers/shared/containers/~iptables";
/// Where the sandbox's shared /dev/shm and other guest-local storage lives in the guest.
pub const GUEST_SANDBOX_DIR: &str = "/run/kata-containers/sandbox";
/// Namespaces that containers share, as a spec for the guest names them: `<this>/<kind>` is the sandbox's own, and
/// `<this>/of/<container>/<kind>` is that container's. The agent knows what is meant; no such file is there.
pub const GUEST_NS_DIR: &str = "/run/kata-containers/sandbox/ns";
/// Where the host keeps what belongs to running sandboxes, one directory each.
pub const HOST_RUN_DIR: &str = "/run/kata";
/// Exit status of a process that something other than itself ended (VMM died, agent lost): 128 + SIGKILL.
pub const EXIT_LOST: i32 = 137;
