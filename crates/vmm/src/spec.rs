//! The data that crosses the driver's boundary.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use kata_types::{MacAddr, Mib, SandboxId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::AccelChoice;

/// What a VMM can do on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caps {
    /// A vhost-user file system can be plugged into a running VM.
    pub hotplug_fs: bool,
    /// Block devices can be plugged into a running VM.
    pub hotplug_block: bool,
    /// NICs can be plugged into a running VM.
    pub hotplug_nic: bool,
    /// Memory can be added to a running VM.
    pub hotplug_memory: bool,
    /// vCPUs can be added to a running VM (never under software emulation: they are all present, and onlined).
    pub hotplug_cpu: bool,
    /// A stopped VM can be saved, and others begun from what was saved.
    pub snapshots: bool,
    /// The host has vsock for guests.
    pub vsock: bool,
    /// The accelerator and why it was chosen.
    pub accel: AccelChoice,
}

/// An operation that this VMM or host does not have.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{by} cannot {operation}")]
pub struct Unsupported {
    /// What was asked: "plug a vCPU".
    pub operation: String,
    /// Who cannot: "qemu with tcg".
    pub by: String,
}

/// What the guest boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// An ELF `vmlinux` with PVH entry, or a bzImage.
    pub kernel: PathBuf,
    /// The initrd with the agent as `/init`.
    pub initrd: PathBuf,
    /// Kernel parameters of the user's, after the driver's own.
    pub params: Vec<String>,
}

/// A generic VM: it boots with nothing of its sandbox; all else is plugged in afterwards.
#[derive(Debug)]
pub struct VmSpec {
    /// Whose VM it is (process names, logs).
    pub sandbox: SandboxId,
    /// A directory of the sandbox's own, for sockets. Exists; mode 0700.
    pub run_dir: PathBuf,
    /// The VMM binary.
    pub binary: PathBuf,
    /// What boots.
    pub boot: Boot,
    /// Memory present at boot.
    pub memory: Mib,
    /// Boot memory and hot-plugged memory together at most.
    pub max_memory: Mib,
    /// vCPUs that run at boot.
    pub vcpus: u32,
    /// vCPUs that the VM may ever have.
    pub max_vcpus: u32,
    /// Print more to the guest's console, and let the agent log at debug.
    pub debug: bool,
    /// cgroups (absolute directories of cgroup.procs' parents) that the VMM's process joins before it runs.
    pub cgroups: Vec<PathBuf>,
    /// Pages that the guest frees go back to the host. Must be off where memory is [`MemorySharing::CopyOnWrite`]: giving a
    /// page back would take it from all.
    pub free_page_reporting: bool,
    /// How its guest comes to run.
    pub begin: Begin,
}

/// How a guest comes to run.
#[derive(Debug)]
pub enum Begin {
    /// From its kernel's first instruction.
    Boot,
    /// From where another one of the same shape ([`crate::Vmm::shape`]) was saved.
    Restore(Snapshot),
}

/// A saved guest.
#[derive(Debug)]
pub struct Snapshot {
    /// The state of its CPUs and devices; read from its beginning.
    pub state: File,
    /// Its memory, as long as the VM's boot memory; holes are zeros.
    pub memory: File,
    /// How the new VM gets that memory.
    pub sharing: MemorySharing,
}

/// How VMs that begin from one snapshot have its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemorySharing {
    /// Each has a copy, in which its devices' daemons can take part (vhost-user).
    Copied,
    /// All have the same pages, each until it writes to them. `memory` is a memfd sealed against writing. No other process
    /// can take part in what a VM writes.
    CopyOnWrite,
}

/// The name of a device within one VM: letters, digits, '-'; begins with a letter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeviceId(pub String);

/// Something to plug in. Plain data; the driver knows its bus and finds the slot.
#[derive(Debug)]
pub enum Device {
    /// A virtio-fs device whose daemon is at the other end of `socket` (connected vhost-user stream).
    VhostUserFs {
        /// Its name.
        id: DeviceId,
        /// The tag by which the guest mounts it.
        tag: String,
        /// A connected stream to the daemon.
        socket: OwnedFd,
    },
    /// A block device over a file or block device opened by the caller.
    Block {
        /// Its name; the guest sees it as the disk's serial (20 bytes at most).
        id: DeviceId,
        /// The opened image or device.
        file: OwnedFd,
        /// Whether the guest may write.
        read_only: bool,
    },
    /// A network card.
    Nic {
        /// Its name.
        id: DeviceId,
        /// Its address, by which the guest finds it.
        mac: MacAddr,
        /// Its queues: one at least, and no more than the VM may have vCPUs.
        queues: Vec<NicQueue>,
    },
}

/// One queue pair of a network card: what the guest sends and receives through it.
#[derive(Debug)]
pub struct NicQueue {
    /// An open queue of a tap or macvtap with `IFF_VNET_HDR` (Documentation/networking/tuntap.rst), in any network
    /// namespace.
    pub tap: OwnedFd,
    /// An open /dev/vhost-net that moves its packets in the host's kernel; without one, the VMM does. All queues of a card
    /// have one, or none has.
    pub vhost: Option<OwnedFd>,
}

/// Where the guest finds a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestAddr {
    /// PCI path in upstream's form: slots from the root, two hex digits each, "02/00".
    Pci(String),
    /// A disk behind the SCSI controller.
    Scsi {
        /// Its target.
        target: u32,
        /// Its logical unit.
        lun: u32,
    },
    /// The tag to mount.
    FsTag(String),
}

/// Where the agent answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentAddr {
    /// ttrpc on `kata_types::AGENT_VSOCK_PORT` of this CID, streams on `STREAM_VSOCK_PORT`.
    Vsock {
        /// The guest's context id.
        cid: u32,
    },
    /// A unix socket whose stream is the guest's virtio-serial port: handshake and yamux on it. One client at a time.
    Serial {
        /// The socket.
        path: PathBuf,
    },
}

/// Memory and CPUs of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// All memory, boot and hot-plugged.
    pub memory: Mib,
    /// vCPUs.
    pub vcpus: u32,
}

/// How to end a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The guest has nothing to lose any more: tell the VMM to quit.
    Quit,
    /// SIGKILL.
    Kill,
}

/// How a VMM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmExit {
    /// Exit code, if it exited.
    pub code: Option<i32>,
    /// Signal, if one killed it.
    pub signal: Option<i32>,
    /// Whether we had asked for it.
    pub expected: bool,
    /// What it wrote to stderr at last.
    pub stderr_tail: String,
}

impl std::fmt::Display for VmExit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.code, self.signal) {
            (_, Some(s)) => write!(f, "killed by signal {s}")?,
            (Some(c), _) => write!(f, "exited with code {c}")?,
            _ => write!(f, "ended")?,
        }
        if !self.stderr_tail.is_empty() {
            write!(f, "; its last words: {}", self.stderr_tail.trim_end())?;
        }
        Ok(())
    }
}

/// The processes that are a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmProcesses {
    /// The VMM's pid on the host.
    pub vmm: i32,
}

/// Enough to clean up after a crash: part of the sandbox's state file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRecord {
    /// The driver.
    pub driver: String,
    /// The VMM's pid.
    pub pid: i32,
    /// The pid's start time (field 22 of /proc/pid/stat, clock ticks since boot), so that a reused pid is not taken for it.
    pub start_time: u64,
    /// The uid it runs under, if one of its own.
    pub uid: Option<u32>,
}

/// Why a VM did not start.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// Something the user named cannot be used; says what and what to do.
    #[error("{what} {path}: {reason}; {hint}")]
    Input {
        /// "the guest kernel", "the QEMU binary".
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why not.
        reason: String,
        /// What to do.
        hint: String,
    },
    /// A size that cannot work.
    #[error("{0}")]
    Size(String),
    /// The VMM could not be spawned.
    #[error("cannot start {binary}")]
    Spawn {
        /// The binary.
        binary: PathBuf,
        /// Why.
        #[source]
        source: crate::spawn::SpawnError,
    },
    /// The VMM ended before it answered.
    #[error("the VMM ended before it answered (stage: {stage}): {exit}")]
    Died {
        /// Which stage of the launch.
        stage: &'static str,
        /// How it ended.
        exit: VmExit,
    },
    /// It does not answer as it should.
    #[error("the VMM did not {stage}: {reason}")]
    Control {
        /// What it was to do.
        stage: &'static str,
        /// What happened instead.
        reason: String,
    },
    /// The deadline passed.
    #[error("the VMM did not {stage} in time")]
    Deadline {
        /// What it was to do.
        stage: &'static str,
    },
    /// This host or VMM does not have it.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// Any other system call on the way.
    #[error("cannot {what}")]
    Os {
        /// What was tried, with its path.
        what: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// Why a device could not be plugged, unplugged, or the VM paused or resumed.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// No slot is free.
    #[error("no slot is left for device {0}")]
    NoSlot(String),
    /// The id is taken or unknown.
    #[error("device {id}: {reason}")]
    Id {
        /// The device.
        id: String,
        /// What is wrong.
        reason: String,
    },
    /// The VMM refused or is gone.
    #[error("the VMM refused to {operation}: {reason}")]
    Refused {
        /// What was asked.
        operation: String,
        /// Its words.
        reason: String,
    },
    /// Not with this VMM.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
}

/// Why a VM could not be saved.
#[derive(Debug, Error)]
pub enum SaveError {
    /// The VMM refused or is gone.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// It did not finish, or what it wrote cannot be kept.
    #[error("cannot {what}: {reason}")]
    Write {
        /// What was tried.
        what: &'static str,
        /// Why not.
        reason: String,
    },
    /// Not with this VMM.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
}

/// Why a VM could not be resized.
#[derive(Debug, Error)]
pub enum ResizeError {
    /// More than the VM was made for.
    #[error("{asked} of {what} is over the VM's maximum of {max}")]
    OverMaximum {
        /// "memory" or "vCPUs".
        what: &'static str,
        /// What was asked.
        asked: String,
        /// The most it can have.
        max: String,
    },
    /// The VMM refused or is gone.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Not with this VMM.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
}
