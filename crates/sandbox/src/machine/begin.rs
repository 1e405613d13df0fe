//! How a machine begins: from a template of its shape where there is one, else from its kernel's first instruction. The
//! result is the same; the log says which it was, and why.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kata_agent_client::Endpoint;
use kata_config::Config;
use kata_storage::{FsDaemon, Share};
use kata_trace::phase;
use kata_types::{SHARE_TAG, SandboxId};
use kata_vmm::{Accel, AgentAddr, Begin, Boot, Device, DeviceId, LaunchError, Resources, Vm, VmExit, VmSpec, Vmm};

use super::error::{BootError, chain};
use super::{AgentClient, Machine, nonce};
use crate::template::Templates;

/// A guest looks up some 10,000 files a second without KVM, and up to 100,000 with it. A second was too long (25,000 files
/// were seen short).
const INODE_PAUSE_TCG: Duration = Duration::from_millis(500);
const INODE_PAUSE_KVM: Duration = Duration::from_millis(100);
/// A restored guest that does not answer within this is booted instead. It takes 0.2 s, and five with twenty at once on two
/// CPUs.
const RESTORED_WITHIN: Duration = Duration::from_secs(20);
/// How soon a VMM's exit is seen after its connections have broken.
const EXIT_SEEN_WITHIN: Duration = Duration::from_millis(300);

/// What is needed for a machine.
#[derive(Debug, Clone)]
pub struct BeginSpec {
    /// Whose.
    pub sandbox: SandboxId,
    /// The sandbox's directory.
    pub run_dir: PathBuf,
    /// The configuration.
    pub config: Config,
    /// Host cgroup directories that VMM and file daemon join.
    pub cgroups: Vec<PathBuf>,
    /// Who the guest is to be; none: it waits to be told.
    pub identity: Option<Identity>,
}

/// Who a guest is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The sandbox's id.
    pub sandbox: SandboxId,
    /// Its host name.
    pub hostname: String,
}

/// The generic VM that a configuration means: nothing of a sandbox's is in it.
pub fn vm_spec(config: &Config, sandbox: &SandboxId, run_dir: &Path, cgroups: &[PathBuf]) -> VmSpec {
    let qemu = &config.hypervisor.qemu;
    let mut params: Vec<String> = qemu.kernel_params.split_whitespace().map(str::to_owned).collect();
    if config.agent.kata.debug_console_enabled {
        params.push("agent.debug_console".into());
    }
    VmSpec {
        sandbox: sandbox.clone(),
        run_dir: run_dir.to_owned(),
        binary: qemu.path.clone(),
        boot: Boot { kernel: qemu.kernel.clone(), initrd: qemu.initrd.clone(), params },
        memory: qemu.default_memory,
        max_memory: qemu.max_memory(),
        vcpus: qemu.vcpus(),
        max_vcpus: qemu.max_vcpus(),
        debug: qemu.enable_debug || config.agent.kata.enable_debug,
        cgroups: cgroups.to_owned(),
        // The memory is the VM's own: the file daemon has to share it.
        free_page_reporting: true,
        begin: Begin::Boot,
    }
}

/// The shape of that VM, which is the name of its template; `None`: this VMM has no templates.
///
/// # Errors
/// When a file that shapes it cannot be read.
pub fn vm_shape(config: &Config, vmm: &dyn Vmm) -> Result<Option<String>, LaunchError> {
    // Whose it is and where it runs are no part of it.
    let nobody = SandboxId::new("nobody").unwrap_or_else(|_| unreachable!("a valid id"));
    vmm.shape(&vm_spec(config, &nobody, Path::new("/"), &[]))
}

/// A machine with the sandbox's share plugged into it.
///
/// # Errors
/// [`BootError`]; nothing is left running.
pub async fn begin(spec: &BeginSpec, vmm: &dyn Vmm) -> Result<Machine, BootError> {
    let vm = || vm_spec(&spec.config, &spec.sandbox, &spec.run_dir, &spec.cgroups);
    match find_template(&spec.config, vmm) {
        Ok((templates, template)) => {
            let mut restored = vm();
            let done = match template.open() {
                Ok(snapshot) => {
                    restored.begin = Begin::Restore(snapshot);
                    Box::pin(bring_up(spec, vmm, restored, "template")).await
                }
                Err(source) => Err(LaunchError::Os { what: "open the template".into(), source }.into()),
            };
            match done {
                Err(err) if blames_template(&err) => {
                    tracing::warn!(
                        "the template cannot be used, and is removed; the machine boots instead: {}",
                        chain(&err)
                    );
                    if let Err(err) = templates.remove(template.shape()) {
                        tracing::warn!("{err}");
                    }
                    Box::pin(bring_up(spec, vmm, vm(), "boot")).await
                }
                done => done,
            }
        }
        Err(why) => {
            tracing::info!("the machine boots its kernel: {why}");
            Box::pin(bring_up(spec, vmm, vm(), "boot")).await
        }
    }
}

/// The template for a VM, or why there is none.
fn find_template(config: &Config, vmm: &dyn Vmm) -> Result<(Templates, crate::template::Template), String> {
    let factory = &config.factory;
    if !factory.enable_template {
        return Err("factory.enable_template is false".into());
    }
    let shape = vm_shape(config, vmm).map_err(|e| e.to_string())?;
    let shape = shape.ok_or_else(|| format!("{} has no templates", vmm.name()))?;
    let templates = Templates::at(&factory.template_path);
    match templates.find(&shape) {
        Ok(Some(template)) => Ok((templates, template)),
        Ok(None) => Err("there is no template of its shape yet".into()),
        Err(err) => Err(err.to_string()),
    }
}

/// Whether a machine that did not come up from a template may come up without it. One that was killed was not the
/// template's fault.
fn blames_template(err: &BootError) -> bool {
    match err {
        BootError::Launch(LaunchError::Died { exit, .. }) | BootError::Died { exit, .. } => exit.signal.is_none(),
        BootError::Launch(LaunchError::Spawn { .. } | LaunchError::Input { .. }) => false,
        BootError::Launch(_) | BootError::Agent { .. } | BootError::Plug(_) | BootError::Prepare { .. } => true,
        _ => false,
    }
}

async fn bring_up(spec: &BeginSpec, vmm: &dyn Vmm, vm_spec: VmSpec, from: &str) -> Result<Machine, BootError> {
    let begun = Instant::now();
    let boots_within = Duration::from_secs(spec.config.hypervisor.qemu.boot_timeout.into());
    let restored = matches!(vm_spec.begin, Begin::Restore(_));
    let deadline = begun + if restored { boots_within.min(RESTORED_WITHIN) } else { boots_within };
    let share = Share::create(&spec.run_dir)?;
    let has = Resources { memory: vm_spec.memory, vcpus: vm_spec.vcpus };
    let debug = spec.config.runtime.enable_debug;
    let (vm, fs) = tokio::join!(
        phase("vmm.launch", vmm.launch(vm_spec, deadline)),
        phase("filedaemon.start", FsDaemon::start(&share, &spec.run_dir, &spec.cgroups, debug))
    );
    let (mut vm, fs) = (vm?, fs?);
    let launched = begun.elapsed();
    // Before the guest runs, which costs nothing: the file daemon starts while the VMM does.
    let device = Device::VhostUserFs {
        id: DeviceId("share".into()),
        tag: SHARE_TAG.into(),
        socket: fs.connect().map_err(BootError::FsSocket)?,
    };
    let begins = phase("share.plug", async {
        vm.attach(device).await?;
        vm.resume().await.map_err(BootError::Run)
    });
    if let Err(err) = begins.await {
        return Err(died_or(vm.as_ref(), err).await);
    }
    let began = if restored { "guest.restore" } else { "guest.boot" };
    let agent = phase(began, connect(vm.as_mut(), deadline)).await?;
    let booted = begun.elapsed() - launched;
    let inode_pause = match vmm.caps().accel.accel {
        Accel::Kvm => INODE_PAUSE_KVM,
        Accel::Tcg => INODE_PAUSE_TCG,
    };
    let (disks, follower, least) = (Default::default(), None, has);
    let mut machine = Machine { vm, fs, share, agent, has, least, online_vcpus: 1, disks, follower, inode_pause };
    match phase("guest.prepare", Box::pin(machine.prepare(spec))).await {
        Ok(()) => {
            let prepared = begun.elapsed() - launched - booted;
            tracing::info!(from, ?launched, ?booted, ?prepared, "the machine is up");
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

/// The agent of a guest that runs.
///
/// # Errors
/// [`BootError`], with the console's last lines.
pub async fn connect(vm: &mut dyn Vm, deadline: Instant) -> Result<AgentClient, BootError> {
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
