//! What a hypervisor driver is; the accelerator probe; the only spawner.
//!
//! A driver is two small traits. [`Vmm::launch`] turns a [`VmSpec`] into a running [`Vm`]; everything else exists
//! only on a running VM, so "before boot" and "after boot" cannot be mixed up. What a VMM cannot do is in its
//! [`Caps`], asked before anything is planned, and answered with [`Unsupported`] if asked all the same.

mod console;
mod identity;
mod probe;
pub mod snapshot;
pub mod spawn;
mod spec;
mod tsc;

use std::fs::File;
use std::time::Instant;

use async_trait::async_trait;
use tokio::sync::watch;

pub use console::{Console, ConsoleRing};
pub use identity::{content_digest, content_digest_in};
pub use probe::{Accel, AccelChoice, AccelVerdict, choose_accel, probe_kvm};
pub use spec::{
    AgentAddr, Begin, Boot, Caps, Device, DeviceError, DeviceId, GuestAddr, LaunchError, MemorySharing, NicQueue,
    ResizeError, Resources, SaveError, Snapshot, Stop, Unsupported, VmExit, VmProcesses, VmRecord, VmSpec,
};
pub use tsc::host_tsc_khz;

/// Something that can start a virtual machine: QEMU, or a fake that runs the agent as a local process.
#[async_trait]
pub trait Vmm: Send + Sync {
    /// Its name as configuration and messages give it: "qemu".
    fn name(&self) -> &'static str;

    /// What it can do on this host. Asked once, before the plan is made.
    fn caps(&self) -> &Caps;

    /// What a saved guest is good for: a digest of all that shapes the VM of `spec` (binary, kernel, initrd and firmware
    /// by their content, machine, CPU, sizes, parameters), and of nothing else. VMs of one shape can begin from the
    /// same snapshot. `None`: this VMM has no snapshots.
    ///
    /// # Errors
    /// [`LaunchError::Input`] for a file that cannot be read.
    fn shape(&self, spec: &VmSpec) -> Result<Option<String>, LaunchError>;

    /// Starts the process; returns once the VMM answers its control channel, with the guest stopped before its first
    /// instruction, or where it was saved. What is plugged now is simply there when the guest looks at its buses; [`Vm::resume`] lets it run.
    /// On error or drop nothing is left behind: process, sockets, uid.
    async fn launch(&self, spec: VmSpec, deadline: Instant) -> Result<Box<dyn Vm>, LaunchError>;
}

/// A guest that is stopped, running, or has exited. Dropping it kills the VMM and waits for it.
#[async_trait]
pub trait Vm: Send + Sync {
    /// Where the agent answers.
    fn agent_addr(&self) -> &AgentAddr;

    /// The processes that are this VM, for cgroups, statistics and state files.
    fn processes(&self) -> VmProcesses;

    /// How the VMM ended; level-triggered, never missed. Clones may be awaited by anyone.
    fn exited(&self) -> watch::Receiver<Option<VmExit>>;

    /// The guest's console, for messages about a boot that failed or a guest that died.
    fn console(&self) -> Console;

    /// Plugs a device; returns where the guest finds it.
    async fn attach(&mut self, device: Device) -> Result<GuestAddr, DeviceError>;

    /// Unplugs a device. Waits until the guest has let go of it.
    async fn detach(&mut self, id: &DeviceId) -> Result<(), DeviceError>;

    /// Changes memory and CPUs; returns what the VM has afterwards (it may be less than asked for, never an error
    /// for that reason alone). CPUs that must still be onlined by the agent count as present. Memory that the guest is to give
    /// back comes when the guest can do without it, and counts as given.
    async fn resize(&mut self, to: Resources) -> Result<Resources, ResizeError>;

    /// The VMM's threads that run the guest's CPUs, by the ids that they have for this process.
    async fn vcpu_threads(&mut self) -> Result<Vec<i32>, DeviceError>;

    /// Stops all vCPUs.
    async fn pause(&mut self) -> Result<(), DeviceError>;

    /// Lets them go on, or begin.
    async fn resume(&mut self) -> Result<(), DeviceError>;

    /// Stops the guest and writes what [`Begin::Restore`] takes into two empty files. The VM is of no further use.
    async fn save(&mut self, state: File, memory: File) -> Result<(), SaveError>;

    /// What a later process needs to clean this VM up after a crash.
    fn record(&self) -> VmRecord;

    /// Ends the VM and waits for its process. Never leaves it running: at the deadline it is killed.
    async fn stop(&mut self, how: Stop, deadline: Instant) -> VmExit;
}
