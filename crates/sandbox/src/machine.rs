//! A sandbox's machine: VM, file daemon, share and agent, brought up together and ended together.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use kata_agent_client::{AgentClient, CallError, ConnectError, Endpoint};
use kata_config::Config;
use kata_proto::agent as pb;
use kata_storage::{FsDaemon, FsDaemonError, Share, ShareError};
use kata_types::{GUEST_SHARE_DIR, Mib, SHARE_TAG, SandboxId};
use kata_vmm::{AgentAddr, Boot, Device, DeviceError, DeviceId, LaunchError, Resources, Stop, Vm, VmExit, VmSpec, Vmm};
use thiserror::Error;
use tokio::sync::watch;

/// How long after the agent's channel has closed the exit of whatever closed it may take to be seen.
const EXIT_WITHIN: Duration = Duration::from_secs(1);
/// Processes of a machine that end because one of them did, end this soon.
const TOGETHER: Duration = Duration::from_millis(100);

/// How soon a VMM's exit is seen after its connections have broken.
const EXIT_SEEN_WITHIN: Duration = Duration::from_millis(300);

/// What is needed to boot.
#[derive(Debug, Clone)]
pub struct BootSpec {
    /// Whose.
    pub sandbox: SandboxId,
    /// The sandbox's directory.
    pub run_dir: PathBuf,
    /// The configuration.
    pub config: Config,
    /// Host cgroup directories that VMM and file daemon join.
    pub cgroups: Vec<PathBuf>,
    /// Host name in the guest.
    pub hostname: String,
}

/// Why there is no machine. Each names its stage.
#[derive(Debug, Error)]
pub enum BootError {
    /// The share's directory.
    #[error("preparing the shared directory failed: {0}")]
    Share(#[from] ShareError),
    /// The file daemon.
    #[error("starting the file daemon failed: {}", chain(.0))]
    Fs(#[from] FsDaemonError),
    /// The VMM.
    #[error("starting the virtual machine failed: {}", chain(.0))]
    Launch(#[from] LaunchError),
    /// It ended while it booted.
    #[error("the virtual machine {exit} while the guest booted{}", last_words(.console))]
    Died {
        /// How.
        exit: VmExit,
        /// The guest's last words.
        console: Vec<String>,
    },
    /// The agent did not answer.
    #[error("the guest did not boot as far as its agent: {}{}", chain(.source), last_words(.console))]
    Agent {
        /// What happened.
        source: ConnectError,
        /// The guest's last words.
        console: Vec<String>,
    },
    /// The file system device.
    #[error("plugging the file system into the guest failed: {}", chain(.0))]
    Plug(#[from] DeviceError),
    /// The first instruction.
    #[error("the virtual machine could not be let run: {}", chain(.0))]
    Run(DeviceError),
    /// The file daemon's socket.
    #[error("the file daemon cannot be reached: {0}")]
    FsSocket(std::io::Error),
    /// The agent refused.
    #[error("the agent could not prepare the guest: {source}{}", last_words(.console))]
    Prepare {
        /// Its words.
        source: CallError,
        /// The guest's last words.
        console: Vec<String>,
    },
}

/// An error with its causes.
pub(crate) fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut at = err.source();
    while let Some(cause) = at {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        at = cause.source();
    }
    text
}

/// How many lines of a console are shown.
const LAST_WORDS: usize = 12;

/// The end of a console; of a kernel's panic its beginning, because a long trace follows it.
fn last_words(lines: &[String]) -> String {
    if lines.is_empty() {
        return "; its console said nothing".into();
    }
    let end = lines.len().saturating_sub(LAST_WORDS);
    let from = match lines.iter().rposition(|line| line.contains("Kernel panic")) {
        Some(panic) => end.min(panic.saturating_sub(LAST_WORDS / 3)),
        None => end,
    };
    let mut text = String::from("; its console's last lines:");
    for line in lines[from..].iter().take(LAST_WORDS) {
        text.push_str("\n  ");
        text.push_str(line);
    }
    text
}

/// A running machine.
pub struct Machine {
    vm: Box<dyn Vm>,
    fs: FsDaemon,
    /// What the guest sees of the host.
    pub share: Share,
    /// The guest.
    pub agent: AgentClient,
    has: Resources,
    online_vcpus: u32,
}

/// Boots a generic VM and plugs the sandbox's share into it.
///
/// # Errors
/// [`BootError`]; nothing is left running.
pub async fn boot(spec: &BootSpec, vmm: &dyn Vmm) -> Result<Machine, BootError> {
    let qemu = &spec.config.hypervisor.qemu;
    let begun = Instant::now();
    let deadline = begun + Duration::from_secs(qemu.boot_timeout.into());
    let share = Share::create(&spec.run_dir)?;
    let vm_spec = VmSpec {
        sandbox: spec.sandbox.clone(),
        run_dir: spec.run_dir.clone(),
        binary: qemu.path.clone(),
        boot: Boot {
            kernel: qemu.kernel.clone(),
            initrd: qemu.initrd.clone(),
            params: qemu.kernel_params.split_whitespace().map(str::to_owned).collect(),
        },
        memory: qemu.default_memory,
        max_memory: qemu.max_memory(),
        vcpus: qemu.vcpus(),
        max_vcpus: qemu.max_vcpus(),
        debug: qemu.enable_debug || spec.config.agent.kata.enable_debug,
        cgroups: spec.cgroups.clone(),
    };
    let (memory, vcpus) = (vm_spec.memory, vm_spec.vcpus);
    let debug = spec.config.runtime.enable_debug;
    let (vm, fs) =
        tokio::join!(vmm.launch(vm_spec, deadline), FsDaemon::start(&share, &spec.run_dir, &spec.cgroups, debug));
    let (mut vm, fs) = (vm?, fs?);
    let launched = begun.elapsed();
    // Before the guest runs, which costs nothing: the file daemon starts while the VMM does.
    let device = Device::VhostUserFs {
        id: DeviceId("share".into()),
        tag: SHARE_TAG.into(),
        socket: fs.connect().map_err(BootError::FsSocket)?,
    };
    let begins = match vm.attach(device).await {
        Ok(_) => vm.resume().await.map_err(BootError::Run),
        Err(err) => Err(err.into()),
    };
    if let Err(err) = begins {
        return Err(died_or(vm.as_ref(), err).await);
    }
    let agent = connect(vm.as_mut(), deadline).await?;
    let booted = begun.elapsed() - launched;
    let mut machine = Machine { vm, fs, share, agent, has: Resources { memory, vcpus }, online_vcpus: 1 };
    match machine.prepare(spec).await {
        Ok(()) => {
            let prepared = begun.elapsed() - launched - booted;
            tracing::info!(?launched, ?booted, ?prepared, "the machine is up");
            Ok(machine)
        }
        Err(source) => {
            let console = machine.vm.console().tail();
            Err(died_or(machine.vm.as_ref(), BootError::Prepare { source, console }).await)
        }
    }
}

/// The error as it is, or the exit of a VMM that has just died: a connection that breaks is often the first sign of that,
/// and the exit says more.
async fn died_or(vm: &dyn Vm, err: BootError) -> BootError {
    let mut exited = vm.exited();
    let exit = tokio::time::timeout(EXIT_SEEN_WITHIN, exited.wait_for(Option::is_some)).await;
    match exit.ok().and_then(Result::ok).and_then(|exit| exit.clone()) {
        Some(exit) => BootError::Died { exit, console: vm.console().tail() },
        None => err,
    }
}

async fn connect(vm: &mut dyn Vm, deadline: Instant) -> Result<AgentClient, BootError> {
    let endpoint = match vm.agent_addr() {
        AgentAddr::Vsock { cid } => Endpoint::Vsock(*cid),
        AgentAddr::Serial { path } => Endpoint::Serial(path.clone()),
    };
    let mut exited = vm.exited();
    let result = tokio::select! {
        connected = kata_agent_client::connect(&endpoint, nonce(), deadline) => connected,
        exit = exited.wait_for(Option::is_some) => {
            let exit = exit.ok().and_then(|e| e.clone());
            let exit = exit.unwrap_or(VmExit { code: None, signal: None, expected: false, stderr_tail: String::new() });
            return Err(BootError::Died { exit, console: vm.console().tail() });
        }
    };
    match result {
        Ok(client) => Ok(client),
        Err(source) => {
            let console = vm.console().tail();
            Err(died_or(vm, BootError::Agent { source, console }).await)
        }
    }
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
    /// Clock, entropy, host name, share: before anything of the user's runs.
    async fn prepare(&mut self, spec: &BootSpec) -> Result<(), CallError> {
        let calls = self.agent.calls();
        let mut entropy = pb::ReseedRandomDevRequest::new();
        entropy.data = random::<64>().to_vec();
        let mut clock = pb::SetGuestDateTimeRequest::new();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        clock.Sec = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        clock.Usec = i64::from(now.subsec_micros());
        let mut sandbox = pb::CreateSandboxRequest::new();
        sandbox.hostname.clone_from(&spec.hostname);
        sandbox.sandbox_id = spec.sandbox.to_string();
        sandbox.kernel_modules = spec.config.agent.kata.kernel_modules.iter().map(|m| kernel_module(m)).collect();
        let mut storage = pb::Storage::new();
        storage.driver = "virtio-fs".into();
        storage.source = SHARE_TAG.into();
        storage.fstype = "virtiofs".into();
        storage.mount_point = GUEST_SHARE_DIR.into();
        // Ours: a guest that remembers more files than the file daemon can hold would fail.
        match self.fs.file_limit() {
            Ok(limit) => storage.driver_options.push(format!("inode_limit={limit}")),
            Err(err) => tracing::warn!("the file daemon's limit of open files is not known: {err}"),
        }
        sandbox.storages.push(storage);
        let (a, b, c) = tokio::join!(
            calls.reseed_random_dev(entropy),
            calls.set_guest_date_time(clock),
            calls.create_sandbox(sandbox)
        );
        a.and(b).and(c)?;
        self.online(self.has.vcpus).await
    }

    async fn online(&mut self, vcpus: u32) -> Result<(), CallError> {
        if vcpus <= self.online_vcpus {
            return Ok(());
        }
        let mut request = pb::OnlineCPUMemRequest::new();
        request.cpu_only = true;
        request.nb_cpus = vcpus - self.online_vcpus;
        request.wait = true;
        self.agent.calls().online_cpu_mem(request).await?;
        self.online_vcpus = vcpus;
        Ok(())
    }

    /// Grows the machine to at least this; it never shrinks here.
    ///
    /// # Errors
    /// A text that says what is missing.
    pub async fn grow(&mut self, memory: Mib, vcpus: u32) -> Result<(), String> {
        let want = Resources { memory: memory.max(self.has.memory), vcpus: vcpus.max(self.has.vcpus) };
        if want == self.has {
            return Ok(());
        }
        let got = self.vm.resize(want).await.map_err(|e| chain(&e))?;
        self.has = got;
        if got.memory < want.memory {
            return Err(format!("the VM got {} MiB of memory, {} are needed", got.memory.0, want.memory.0));
        }
        self.online(want.vcpus).await.map_err(|e| e.to_string())
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

    /// Ends it; waits for its processes.
    pub async fn stop(mut self) -> Result<(), ShareError> {
        let deadline = Instant::now() + Duration::from_secs(5);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_shown_from_its_beginning_and_anything_else_to_its_end() {
        let lines = |n: usize| (0..n).map(|n| format!("line {n}")).collect::<Vec<_>>();
        let text = last_words(&lines(50));
        assert!(text.ends_with("line 49") && !text.contains("line 37") && text.lines().count() == LAST_WORDS + 1);
        let mut panicked = lines(20);
        panicked.push("Kernel panic - not syncing: no init".into());
        panicked.extend(lines(40));
        let text = last_words(&panicked);
        assert!(text.contains("Kernel panic") && text.contains("line 19") && text.lines().count() == LAST_WORDS + 1);
        assert_eq!(last_words(&[]), "; its console said nothing");
    }
}
