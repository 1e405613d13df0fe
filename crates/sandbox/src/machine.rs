//! A sandbox's machine: VM, file daemon, share and agent, brought up together and ended together.

mod begin;
mod disks;
mod error;
mod exercise;
mod follow;
mod size;
mod volumes;

use std::path::Path;
use std::time::{Duration, Instant};

use kata_agent_client::{AgentClient, CallError};
use kata_proto::agent as pb;
use kata_storage::{FsDaemon, Share, ShareError};
use kata_types::{GUEST_SHARE_DIR, SHARE_TAG};
use kata_vmm::{AgentAddr, Device, DeviceError, DeviceId, GuestAddr, Resources, Stop, Vm, VmExit};
use tokio::sync::watch;

pub use begin::{BeginSpec, Identity, begin, connect, vm_shape, vm_spec};
pub use disks::DiskError;
use error::last_words;
pub use error::{BootError, chain};
pub use exercise::ExerciseError;

/// How long after the agent's channel has closed the exit of whatever closed it may take to be seen.
const EXIT_WITHIN: Duration = Duration::from_secs(1);
/// How long a killed VMM may take to end.
const STOP: Duration = Duration::from_secs(5);
/// Processes of a machine that end because one of them did, end this soon.
const TOGETHER: Duration = Duration::from_millis(100);

/// A running machine.
pub struct Machine {
    vm: Box<dyn Vm>,
    fs: FsDaemon,
    /// What the guest sees of the host.
    pub share: Share,
    /// The guest.
    pub agent: AgentClient,
    has: Resources,
    /// What it began with, and never falls below.
    least: Resources,
    online_vcpus: u32,
    disks: disks::Disks,
    /// Made with the first volume that is followed.
    follower: Option<follow::Follower>,
    /// How long the guest may not look at how many files it remembers.
    inode_pause: Duration,
}

/// A connection's random name.
fn nonce() -> [u8; 16] {
    random()
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // getrandom(2) fails only before the host's generator is ready, and blocks then instead without flags.
    if let Ok(n) = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        debug_assert_eq!(n, N);
    }
    bytes
}

impl Machine {
    /// Share, memory and CPUs; and who the guest is, if that is known.
    async fn prepare(&mut self, spec: &BeginSpec) -> Result<(), CallError> {
        let mut sandbox = pb::CreateSandboxRequest::new();
        sandbox.kernel_modules = spec.config.agent.kata.kernel_modules.iter().map(|m| kernel_module(m)).collect();
        let mut storage = pb::Storage::new();
        storage.driver = "virtio-fs".into();
        storage.source = SHARE_TAG.into();
        storage.fstype = "virtiofs".into();
        storage.mount_point = GUEST_SHARE_DIR.into();
        // Ours: a guest that remembers more files than the file daemon can hold would fail.
        match self.fs.file_limit() {
            Ok(limit) => {
                let pause = format!("inode_pause={}", self.inode_pause.as_millis());
                storage.driver_options.extend([format!("inode_limit={limit}"), pause]);
            }
            Err(err) => tracing::warn!("the file daemon's limit of open files is not known: {err}"),
        }
        sandbox.storages.push(storage);
        Box::pin(self.create_sandbox(sandbox, spec.identity.as_ref())).await?;
        self.online(self.has.vcpus).await
    }

    /// Tells the guest who it is: before anything of the user's runs, and at no other time.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn identify(&mut self, identity: &Identity) -> Result<(), CallError> {
        Box::pin(self.create_sandbox(pb::CreateSandboxRequest::new(), Some(identity))).await
    }

    async fn create_sandbox(
        &self,
        mut sandbox: pb::CreateSandboxRequest,
        identity: Option<&Identity>,
    ) -> Result<(), CallError> {
        let calls = self.agent.calls();
        let Some(identity) = identity else { return calls.create_sandbox(sandbox).await.map(drop) };
        sandbox.sandbox_id = identity.sandbox.to_string();
        sandbox.hostname.clone_from(&identity.hostname);
        let mut entropy = pb::ReseedRandomDevRequest::new();
        entropy.data = random::<64>().to_vec();
        let mut clock = pb::SetGuestDateTimeRequest::new();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        clock.Sec = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        clock.Usec = i64::from(now.subsec_micros());
        let (entropy, clock, sandbox) = tokio::join!(
            calls.reseed_random_dev(entropy),
            calls.set_guest_date_time(clock),
            calls.create_sandbox(sandbox)
        );
        entropy.and(clock).and(sandbox).map(drop)
    }

    /// Moves the machine's processes into host cgroups: absolute directories of `cgroup.procs`.
    ///
    /// # Errors
    /// The first that could not be written, with its path.
    pub fn join_cgroups(&self, cgroup: &crate::HostCgroup) -> Result<(), crate::CgroupError> {
        cgroup.join(self.vm.processes().vmm)?;
        cgroup.join(self.fs.pid())
    }

    /// The threads that run the guest's CPUs.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub async fn vcpu_threads(&mut self) -> Result<Vec<i32>, DeviceError> {
        self.vm.vcpu_threads().await
    }

    /// How one of its processes has ended, if one has.
    pub fn ended(&self) -> Option<VmExit> {
        let vm = self.vm.exited().borrow().clone();
        vm.or_else(|| self.fs.exited().borrow().clone())
    }

    /// The sandbox's directory has been given another name.
    pub fn moved_to(&mut self, run_dir: &Path) {
        self.share.moved_to(run_dir);
    }

    /// Where its agent answers.
    pub fn agent_addr(&self) -> &AgentAddr {
        self.vm.agent_addr()
    }

    /// Plugs a device into the VM.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub async fn plug(&mut self, device: Device) -> Result<GuestAddr, DeviceError> {
        self.vm.attach(device).await
    }

    /// Takes a device away, which the guest lets go of.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub async fn unplug(&mut self, id: &DeviceId) -> Result<(), DeviceError> {
        self.vm.detach(id).await
    }

    /// How many vCPUs it has.
    pub fn vcpus(&self) -> u32 {
        self.has.vcpus
    }

    /// For the state file.
    pub fn record(&self) -> (kata_vmm::VmRecord, i32) {
        (self.vm.record(), self.fs.pid())
    }

    /// Resolves to a truthful reason when any part of the machine has ended.
    pub fn death(&self) -> impl Future<Output = String> + Send + 'static {
        let (mut vm, mut fs, mut agent) = (self.vm.exited(), self.fs.exited(), self.agent.closed());
        let console = self.vm.console();
        async move {
            tokio::select! {
                () = ended(&mut vm) => {}
                () = ended(&mut fs) => {}
                _ = agent.wait_for(|closed| *closed) => {}
            }
            // Parts go down together; who was first is told by who has an exit, a moment later. A guest that panics
            // closes its channel well before its VMM is gone.
            let any_exit = async {
                tokio::select! { () = ended(&mut vm) => {} () = ended(&mut fs) => {} }
            };
            drop(tokio::time::timeout(EXIT_WITHIN, any_exit).await);
            tokio::time::sleep(TOGETHER).await;
            let say =
                |rx: &watch::Receiver<Option<VmExit>>, who: &str| rx.borrow().clone().map(|e| format!("{who} {e}"));
            // The file daemon ends by itself with code 0 when the VMM has gone.
            let fs_failed = fs.borrow().as_ref().is_some_and(|e| e.code != Some(0));
            match (say(&vm, "the virtual machine"), say(&fs, "the file daemon")) {
                (_, Some(fs)) if fs_failed && vm.borrow().as_ref().is_none_or(|e| e.signal.is_none()) => fs,
                // Nobody killed it: the guest ended, and says on its console why.
                (Some(text), _) if vm.borrow().as_ref().is_some_and(|e| e.signal.is_none()) => {
                    format!("{text}{}", last_words(&console.tail()))
                }
                (Some(text), _) => text,
                (None, Some(fs)) => fs,
                (None, None) => "the agent closed its channel".into(),
            }
        }
    }

    /// Ends it when nothing in the guest has anything left to write. VMM and file daemon are killed, and go while this
    /// returns: the kernel takes a while to free what they hold. Nobody asks the file daemon for anything any more.
    pub async fn leave(self) -> (Result<(), ShareError>, tokio::task::JoinHandle<()>) {
        let Machine { mut vm, mut fs, share, .. } = self;
        let going = tokio::spawn(async move {
            tokio::join!(vm.stop(Stop::Kill, Instant::now() + STOP), fs.stop());
        });
        // Both are killed when this has run once.
        tokio::task::yield_now().await;
        (share.remove_all(), going)
    }

    /// Ends it; waits for its processes.
    pub async fn stop(mut self) -> Result<(), ShareError> {
        let deadline = Instant::now() + STOP;
        tokio::join!(self.vm.stop(Stop::Kill, deadline), self.fs.stop());
        self.share.remove_all()
    }
}

async fn ended(rx: &mut watch::Receiver<Option<VmExit>>) {
    drop(rx.wait_for(Option::is_some).await);
}

/// "name parameter=value ...", upstream's form.
fn kernel_module(text: &str) -> pb::KernelModule {
    let mut words = text.split_whitespace().map(str::to_owned);
    let mut module = pb::KernelModule::new();
    module.name = words.next().unwrap_or_default();
    module.parameters = words.collect();
    module
}
