//! A VMM that is none: the real agent as a local process, in namespaces of its own, at a socket where QEMU's would be.
//! It is the second implementation of `kata-vmm`'s traits, for tests of what stands on them.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use kata_vmm::spawn::start_time;
use kata_vmm::{
    Accel, AccelChoice, AgentAddr, Caps, Console, Device, DeviceError, DeviceId, GuestAddr, LaunchError, ResizeError,
    Resources, SaveError, Stop, Unsupported, Vm, VmExit, VmProcesses, VmRecord, VmSpec, Vmm,
};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::sync::{oneshot, watch};

const NAME: &str = "fake";
/// How often a socket is looked for that the agent is about to make.
const STEP: Duration = Duration::from_millis(5);

/// What was asked of a fake, in order.
#[derive(Debug, Clone, Default)]
pub struct Calls(Arc<Mutex<Vec<String>>>);

impl Calls {
    fn add(&self, call: impl Into<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(call.into());
    }

    /// Until now.
    pub fn all(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The VMM.
#[derive(Debug)]
pub struct FakeVmm {
    agent: Vec<OsString>,
    caps: Caps,
    calls: Calls,
}

impl FakeVmm {
    /// `agent`: the program and its first words; `--serial-unix PATH --share DIR` is added.
    pub fn new(agent: impl IntoIterator<Item = impl Into<OsString>>) -> FakeVmm {
        let accel = AccelChoice { accel: Accel::Tcg, reason: "there is no machine".into(), forced: true };
        let caps = Caps {
            hotplug_fs: true,
            hotplug_block: false,
            hotplug_nic: false,
            hotplug_memory: true,
            hotplug_cpu: false,
            snapshots: false,
            vsock: false,
            accel,
        };
        FakeVmm { agent: agent.into_iter().map(Into::into).collect(), caps, calls: Calls::default() }
    }

    /// What is asked of it and of its VMs.
    pub fn calls(&self) -> Calls {
        self.calls.clone()
    }
}

#[async_trait]
impl Vmm for FakeVmm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn shape(&self, _: &VmSpec) -> Result<Option<String>, LaunchError> {
        Ok(None)
    }

    async fn launch(&self, spec: VmSpec, deadline: Instant) -> Result<Box<dyn Vm>, LaunchError> {
        self.calls.add(format!("launch with {} MiB", spec.memory.0));
        let socket = spec.run_dir.join("agent.sock");
        // The share's mounts, which come later, must arrive in the agent's mount namespace; its own must stay there.
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "slave", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.args(&self.agent).arg("--serial-unix").arg(&socket).arg("--share").arg(spec.run_dir.join("share"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let os = |source| LaunchError::Os { what: "start the agent".into(), source };
        let mut child = command.spawn().map_err(os)?;
        let pid = child.id().map_or(0, u32::cast_signed);
        let started = start_time(pid).map_err(os)?;
        let console = Console::default();
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(read(stderr, console.clone()));
        }
        let (kill, killed) = oneshot::channel();
        let (tell, mut exited) = watch::channel(None);
        tokio::spawn(wait(child, killed, tell));
        let exit = tokio::select! {
            () = appears(&socket) => None,
            exit = exited.wait_for(Option::is_some) => Some(exit.ok().and_then(|e| e.clone())),
            () = tokio::time::sleep_until(deadline.into()) => return Err(LaunchError::Deadline { stage: "listen" }),
        };
        if let Some(exit) = exit.flatten() {
            return Err(LaunchError::Died { stage: "start", exit });
        }
        let record = VmRecord { driver: NAME.into(), pid, start_time: started, uid: None };
        let (agent, calls) = (AgentAddr::Serial { path: socket }, self.calls.clone());
        Ok(Box::new(FakeVm { kill: Some(kill), exited, agent, console, record, calls, plugged: Vec::new() }))
    }
}

async fn appears(path: &Path) {
    while !path.exists() {
        tokio::time::sleep(STEP).await;
    }
}

async fn read(mut stderr: tokio::process::ChildStderr, into: Console) {
    let mut buffer = [0; 1024];
    while let Ok(n @ 1..) = stderr.read(&mut buffer).await {
        into.push_and(&buffer[..n], |line| println!("agent: {line}"));
    }
}

/// Until it ends; kills it when told to, or when nobody is left who could tell.
async fn wait(mut child: Child, killed: oneshot::Receiver<()>, tell: watch::Sender<Option<VmExit>>) {
    let (status, expected) = tokio::select! {
        status = child.wait() => (status, false),
        _ = killed => {
            drop(child.start_kill());
            (child.wait().await, true)
        }
    };
    use std::os::unix::process::ExitStatusExt;
    let (code, signal) = status.map_or((None, None), |s| (s.code(), s.signal()));
    tell.send_replace(Some(VmExit { code, signal, expected, stderr_tail: String::new() }));
}

struct FakeVm {
    /// Dropped, it kills too.
    kill: Option<oneshot::Sender<()>>,
    exited: watch::Receiver<Option<VmExit>>,
    agent: AgentAddr,
    console: Console,
    record: VmRecord,
    calls: Calls,
    /// The file daemon ends when its connection does.
    plugged: Vec<(DeviceId, OwnedFd)>,
}

fn unsupported(operation: &str) -> Unsupported {
    Unsupported { operation: operation.into(), by: NAME.into() }
}

#[async_trait]
impl Vm for FakeVm {
    fn agent_addr(&self) -> &AgentAddr {
        &self.agent
    }

    fn processes(&self) -> VmProcesses {
        VmProcesses { vmm: self.record.pid }
    }

    fn exited(&self) -> watch::Receiver<Option<VmExit>> {
        self.exited.clone()
    }

    fn console(&self) -> Console {
        self.console.clone()
    }

    async fn vcpu_threads(&mut self) -> Result<Vec<i32>, DeviceError> {
        Err(unsupported("tell its CPUs' threads").into())
    }

    async fn attach(&mut self, device: Device) -> Result<GuestAddr, DeviceError> {
        match device {
            Device::VhostUserFs { id, tag, socket } => {
                self.calls.add(format!("attach {}", id.0));
                self.plugged.push((id, socket));
                Ok(GuestAddr::FsTag(tag))
            }
            Device::Block { .. } => Err(unsupported("plug a block device").into()),
            Device::Nic { .. } => Err(unsupported("plug a network card").into()),
        }
    }

    async fn detach(&mut self, id: &DeviceId) -> Result<(), DeviceError> {
        self.calls.add(format!("detach {}", id.0));
        let before = self.plugged.len();
        self.plugged.retain(|(plugged, _)| plugged != id);
        if self.plugged.len() == before {
            return Err(DeviceError::Id { id: id.0.clone(), reason: "it is not plugged".into() });
        }
        Ok(())
    }

    async fn resize(&mut self, to: Resources) -> Result<Resources, ResizeError> {
        self.calls.add(format!("resize to {} MiB, {} vCPUs", to.memory.0, to.vcpus));
        Ok(to)
    }

    async fn pause(&mut self) -> Result<(), DeviceError> {
        Err(unsupported("pause").into())
    }

    /// The agent has been running all along: it waits for its host.
    async fn resume(&mut self) -> Result<(), DeviceError> {
        self.calls.add("resume");
        Ok(())
    }

    async fn save(&mut self, _: File, _: File) -> Result<(), SaveError> {
        Err(Unsupported { operation: "save a process".into(), by: NAME.into() }.into())
    }

    fn record(&self) -> VmRecord {
        self.record.clone()
    }

    async fn stop(&mut self, _: Stop, deadline: Instant) -> VmExit {
        self.calls.add("stop");
        drop(self.kill.take());
        let exit = tokio::time::timeout_at(deadline.into(), self.exited.wait_for(Option::is_some)).await;
        let exit = exit.ok().and_then(Result::ok).and_then(|exit| exit.clone());
        exit.unwrap_or(VmExit { code: None, signal: None, expected: true, stderr_tail: String::new() })
    }
}
