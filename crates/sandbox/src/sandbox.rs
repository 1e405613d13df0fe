//! The engine: one sandbox, its machine, its containers. What can be asked of it is in the modules below, by what it is
//! about; here is what they share, and the machine's beginning.

mod create;
mod end;
mod networking;
mod observe;
mod pause;
mod processes;
mod resources;
mod size;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use kata_agent_client::{AgentClient, CallError};
use kata_config::Config;
use kata_oci::{Spec, State, Status};
use kata_proto::agent as pb;
use kata_storage::{RootfsMount, View};
use kata_types::{Mib, SandboxId};
use kata_vmm::{AgentAddr, Vmm};
use tokio::sync::{Mutex as AsyncMutex, watch};

use crate::cpuset::Cpuset;
use crate::error::SandboxError;
use crate::events::{Event, Events};
use crate::guest_log;
use crate::hostcgroup::HostCgroup;
use crate::machine::{self, BeginSpec, Identity, Machine};
use crate::network::{Joined as JoinedNetwork, Network};
use crate::origin::Origin;
use crate::pod_files::PodFiles;
use crate::process::{Exit, Process, REASON_WITHIN};
use crate::sizing::Millicpus;
use crate::state::{ProcessRecord, StateFile};
use crate::stdio::StdioSpec;

pub use observe::MachineProcesses;

/// How long a killed VMM may take to go.
const KILLED_WITHIN: std::time::Duration = std::time::Duration::from_secs(2);

/// How long an error waits that may be about a machine that has just died.
const DOUBT_WITHIN: std::time::Duration = std::time::Duration::from_millis(300);

/// What a sandbox is made with.
pub struct Options {
    /// Its id.
    pub id: SandboxId,
    /// What it is made for.
    pub origin: Origin,
    /// Its directory; exists, mode 0700.
    pub run_dir: PathBuf,
    /// The configuration.
    pub config: Config,
    /// The driver.
    pub vmm: Arc<dyn Vmm>,
    /// The host's cgroup, made already.
    pub cgroup: HostCgroup,
    /// Its network namespace, which the thread that runs the sandbox is in; `None`: networks are not its business.
    pub network: Option<JoinedNetwork>,
    /// Host name in the guest.
    pub hostname: String,
    /// Where events go.
    pub events: Events,
    /// Where what bundles name is looked for.
    pub view: View,
    /// What its containers get from it where the engine gives them nothing.
    pub files: Option<PodFiles>,
}

/// A container to make.
pub struct CreateRequest {
    /// Its id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// The engine's root file system mounts; none: the spec's own root directory.
    pub rootfs: Vec<RootfsMount>,
    /// Its stdio.
    pub stdio: StdioSpec,
    /// What the caller calls its stdio.
    pub addresses: [String; 3],
    /// The host's process that stands for it.
    pub pid: i32,
}

enum MachineState {
    /// Not yet asked for.
    Cold,
    /// Out of the pool: it does not know yet whose it is.
    Nameless(Box<Machine>),
    Running(Box<Machine>),
    Failed(String),
    Gone,
}

struct Container {
    /// Resolved: what it shares is named in the guest's terms.
    spec: Spec,
    /// It stands for the sandbox and has no process in the guest.
    stands: bool,
    bundle: PathBuf,
    init: Arc<Process>,
    execs: BTreeMap<String, Arc<Process>>,
    /// The limit alone.
    memory: Option<Mib>,
    vcpus: Option<Millicpus>,
    cpuset: Cpuset,
}

/// One sandbox. All methods may be called at once; what must not overlap waits for each other inside.
pub struct Sandbox {
    options: Options,
    /// Locked after the machine.
    network: Option<AsyncMutex<Network>>,
    machine: AsyncMutex<MachineState>,
    agent: watch::Sender<Option<AgentClient>>,
    death: watch::Sender<Option<String>>,
    /// Where its agent is, once there is one.
    address: Mutex<Option<AgentAddr>>,
    containers: Mutex<BTreeMap<String, Container>>,
    state: Mutex<StateFile>,
    /// Shared memory that engines have made on the host, and the number of what stands for it in the guest.
    shm: Mutex<BTreeMap<PathBuf, usize>>,
    /// It has had a container.
    used: AtomicBool,
    /// The machine's size for ever, once that is known, if it does not follow its containers.
    fixed_size: Mutex<Option<(Mib, u32)>>,
    /// What the host's cgroup is confined to.
    confined: Mutex<Cpuset>,
    /// A VMM that has been killed and is going.
    going: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sandbox {
    /// Makes a sandbox and begins to boot its machine. Must be called within the runtime.
    ///
    /// # Errors
    /// When its state file cannot be written.
    pub fn start(options: Options) -> Result<Arc<Sandbox>, SandboxError> {
        let sandbox = Sandbox::new(options)?;
        sandbox.follow_network()?;
        let early = Arc::clone(&sandbox);
        // The boot overlaps with whatever the engine still does before it asks for a container.
        tokio::spawn(kata_trace::carried(async move { drop(early.boot(&mut *early.machine.lock().await).await) }));
        Ok(sandbox)
    }

    fn new(mut options: Options) -> Result<Arc<Sandbox>, SandboxError> {
        let network = options.network.take().map(|joined| AsyncMutex::new(Network::new(joined, &options.config)));
        let mut state = StateFile::new(options.id.as_str());
        state.origin = Some(options.origin.clone());
        state.cgroups.clone_from(&options.cgroup.dirs);
        state.vcpu_cgroups.clone_from(&options.cgroup.vcpus);
        state.save(&options.run_dir)?;
        Ok(Arc::new(Sandbox {
            options,
            network,
            machine: AsyncMutex::new(MachineState::Cold),
            agent: watch::channel(None).0,
            death: watch::channel(None).0,
            address: Mutex::new(None),
            containers: Mutex::new(BTreeMap::new()),
            state: Mutex::new(state),
            shm: Mutex::new(BTreeMap::new()),
            used: AtomicBool::new(false),
            fixed_size: Mutex::new(None),
            confined: Mutex::new(Cpuset::default()),
            going: Mutex::new(None),
        }))
    }

    /// Makes a sandbox of a machine that has waited for one, and begins to tell the guest who it is. Must be called within
    /// the runtime.
    ///
    /// # Errors
    /// When the machine's processes cannot join the cgroup, or the state file cannot be written; the machine is stopped.
    pub async fn adopt(options: Options, mut machine: Machine) -> Result<Arc<Sandbox>, SandboxError> {
        machine.moved_to(&options.run_dir);
        let cgroup = options.cgroup.clone();
        let made = Sandbox::new(options);
        let joined = made.and_then(|sandbox| {
            machine.join_cgroups(&cgroup).map_err(|e| SandboxError::Boot(e.to_string()))?;
            sandbox.follow_network()?;
            sandbox.booted(&machine)?;
            Ok(sandbox)
        });
        let joined = match joined {
            Ok(sandbox) => sandbox.place_vcpus(&mut machine).await.map(|()| sandbox),
            Err(err) => Err(err),
        };
        let sandbox = match joined {
            Ok(sandbox) => sandbox,
            Err(err) => {
                if let Err(err) = machine.stop().await {
                    tracing::warn!("{}", machine::chain(&err));
                }
                return Err(err);
            }
        };
        *sandbox.machine.lock().await = MachineState::Nameless(Box::new(machine));
        let early = Arc::clone(&sandbox);
        tokio::spawn(kata_trace::carried(async move { drop(early.boot(&mut *early.machine.lock().await).await) }));
        Ok(sandbox)
    }

    fn identity(&self) -> Identity {
        Identity { sandbox: self.options.id.clone(), hostname: self.options.hostname.clone() }
    }

    /// Waits until what was killed has gone, and removes the cgroup that held it: the last thing before the daemon ends.
    pub async fn gone(&self) {
        let going = lock(&self.going).take();
        if let Some(going) = going {
            drop(going.await);
        }
        self.leave_network().await;
        self.options.cgroup.leave();
        self.options.cgroup.remove();
    }

    /// The sandbox's id.
    pub fn id(&self) -> &SandboxId {
        &self.options.id
    }

    /// Tells a machine out of the pool whose it is. One that cannot be told is dead: nothing may run in it.
    async fn name(&self, machine: &mut Machine) {
        let begun = Instant::now();
        let identity = self.identity();
        let Err(err) = kata_trace::phase("machine.identify", machine.identify(&identity)).await else {
            tracing::info!(from = "pool", identified = ?begun.elapsed(), "the machine is up");
            return;
        };
        // What ended it, if something did, says more.
        if self.known_death(REASON_WITHIN).await.is_none() {
            tracing::error!("the guest could not be told who it is: {err}");
            self.death.send_replace(Some(format!("the guest could not be told who it is: {err}")));
        }
    }

    /// Boots if need be; afterwards the state is Running, or this fails.
    async fn boot<'a>(self: &Arc<Self>, state: &'a mut MachineState) -> Result<&'a mut Machine, SandboxError> {
        if matches!(state, MachineState::Cold) {
            let spec = BeginSpec {
                sandbox: self.options.id.clone(),
                run_dir: self.options.run_dir.clone(),
                config: self.options.config.clone(),
                cgroups: self.options.cgroup.dirs.clone(),
                identity: Some(self.identity()),
            };
            // On the heap while it is on its way: in place it would make every future around it, and the stack, 200 KB larger.
            let begun = Box::pin(machine::begin(&spec, self.options.vmm.as_ref()));
            match kata_trace::phase("machine", begun).await {
                Ok(mut machine) => {
                    self.booted(&machine)?;
                    *state = match self.place_vcpus(&mut machine).await {
                        Ok(()) => MachineState::Running(Box::new(machine)),
                        // Its end is told as any machine's.
                        Err(err) => {
                            if let Err(err) = machine.stop().await {
                                tracing::warn!("{}", machine::chain(&err));
                            }
                            MachineState::Failed(err.to_string())
                        }
                    };
                }
                Err(err) => {
                    let text = err.to_string();
                    tracing::error!("{text}");
                    *state = MachineState::Failed(text);
                }
            }
        }
        if let MachineState::Nameless(machine) = state {
            self.name(machine).await;
            if let MachineState::Nameless(machine) = std::mem::replace(state, MachineState::Gone) {
                *state = MachineState::Running(machine);
            }
        }
        match state {
            MachineState::Running(machine) => match self.death.borrow().clone() {
                Some(reason) => Err(SandboxError::Dead(reason)),
                None => Ok(machine),
            },
            MachineState::Failed(text) => Err(SandboxError::Boot(text.clone())),
            MachineState::Cold | MachineState::Nameless(_) | MachineState::Gone => {
                let reason = self.death.borrow().clone();
                Err(SandboxError::Dead(reason.unwrap_or_else(|| "it has been shut down".into())))
            }
        }
    }

    fn booted(self: &Arc<Self>, machine: &Machine) -> Result<(), SandboxError> {
        self.agent.send_replace(Some(machine.agent.clone()));
        *lock(&self.address) = Some(machine.agent_addr().clone());
        let (vm, fs) = machine.record();
        let vmm = (vm.pid, vm.start_time);
        self.save(|s| {
            s.vm = Some(vm);
            s.fs = ProcessRecord::of(fs);
        })?;
        let death = machine.death();
        let me = Arc::downgrade(self);
        tokio::spawn(async move {
            let reason = death.await;
            let Some(me) = me.upgrade().filter(|me| me.death.borrow().is_none()) else { return };
            tracing::error!("the sandbox is gone: {reason}");
            me.death.send_replace(Some(reason));
            // What is told as dead must not go on. The VMM first, and not through the machine: whoever holds that may
            // be waiting for an answer of the guest's that will never come.
            if let Err(err) = kata_vmm::spawn::kill_recorded(vmm.0, vmm.1, Instant::now() + KILLED_WITHIN) {
                tracing::error!("the VMM {} does not die: {err}", vmm.0);
            }
            me.stop_machine(&mut *me.machine.lock().await).await;
        });
        tokio::spawn(guest_log::follow(machine.agent.clone(), kata_trace::current()));
        tokio::spawn(follow_oom(machine.agent.clone(), self.options.events.clone()));
        Ok(())
    }

    fn save(&self, change: impl FnOnce(&mut StateFile)) -> Result<(), SandboxError> {
        let mut state = lock(&self.state);
        change(&mut state);
        Ok(state.save(&self.options.run_dir)?)
    }

    /// The agent, if it can be reached.
    fn agent(&self) -> Result<AgentClient, SandboxError> {
        if let Some(reason) = self.death.borrow().clone() {
            return Err(SandboxError::Dead(reason));
        }
        self.agent.borrow().clone().ok_or_else(|| SandboxError::Dead("it has no machine".into()))
    }

    /// An error as it is; where it says no more than that the guest was lost, what ended it, which is known a moment
    /// later.
    pub async fn explained(&self, err: SandboxError) -> SandboxError {
        let within = match err {
            SandboxError::Agent(CallError::Lost { .. }) => REASON_WITHIN,
            // A machine that has just died refuses everything, and one that is well some things.
            SandboxError::Network(_) | SandboxError::Resize(_) => DOUBT_WITHIN,
            _ => return err,
        };
        self.known_death(within).await.map_or(err, SandboxError::Dead)
    }

    /// What has ended the sandbox, which is known a moment after the guest was lost; `None`: nothing has.
    async fn known_death(&self, within: std::time::Duration) -> Option<String> {
        let mut death = self.death.subscribe();
        let known = tokio::time::timeout(within, death.wait_for(Option::is_some)).await;
        known.ok()?.ok()?.clone()
    }

    fn oci_state(&self, id: &str, status: Status, pid: i32, bundle: &std::path::Path, spec: &Spec) -> State {
        State {
            oci_version: kata_oci::OCI_VERSION.into(),
            id: id.to_owned(),
            status,
            pid,
            bundle: bundle.to_string_lossy().into_owned(),
            annotations: spec.annotations.clone(),
        }
    }

    /// Follows a process to its end and tells of it.
    fn supervise(self: &Arc<Self>, process: Arc<Process>) -> Result<(), SandboxError> {
        let agent = self.agent()?;
        let me = Arc::clone(self);
        tokio::spawn(async move {
            let exit = process.follow(&agent, me.death.subscribe()).await;
            if let Some(reason) = &exit.reason {
                tracing::error!(container = process.container, exec = process.exec, "a process was lost: {reason}");
            }
            process.finish(exit.clone());
            if let Some(pumps) = process.pumps() {
                pumps.stop_stdin();
            }
            me.tell_exit(&process, &exit);
        });
        Ok(())
    }

    /// Records and tells a process's end.
    fn tell_exit(&self, process: &Process, exit: &Exit) {
        if process.exec.is_empty() {
            let saved = self.save(|s| {
                if let Some(c) = s.containers.get_mut(&process.container) {
                    c.exit_status = Some(exit.status);
                }
            });
            if let Err(err) = saved {
                tracing::warn!("{err}");
            }
        }
        self.emit(Event::Exited {
            container: process.container.clone(),
            exec: process.exec.clone(),
            pid: process.pid,
            status: exit.status,
            at: exit.at,
        });
    }

    fn emit(&self, event: Event) {
        // Nobody listens any more once the daemon is on its way out.
        drop(self.options.events.send(event));
    }

    /// A process of a container; an empty exec id is its first.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`].
    pub fn process(&self, container: &str, exec: &str) -> Result<Arc<Process>, SandboxError> {
        let containers = lock(&self.containers);
        let c = containers.get(container).ok_or_else(|| SandboxError::NotFound(format!("container {container}")))?;
        if exec.is_empty() {
            return Ok(Arc::clone(&c.init));
        }
        let process = c.execs.get(exec);
        process.cloned().ok_or_else(|| SandboxError::NotFound(format!("exec {exec} in container {container}")))
    }

    /// The bundle of a container.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`].
    pub fn bundle(&self, container: &str) -> Result<PathBuf, SandboxError> {
        let containers = lock(&self.containers);
        let c = containers.get(container).ok_or_else(|| SandboxError::NotFound(format!("container {container}")))?;
        Ok(c.bundle.clone())
    }
}

async fn follow_oom(agent: AgentClient, events: Events) {
    while let Ok(event) = agent.calls().get_oom_event(pb::GetOOMEventRequest::new()).await {
        tracing::warn!(container = event.container_id, "the guest's kernel killed a process for want of memory");
        if events.send(Event::OutOfMemory { container: event.container_id }).is_err() {
            return;
        }
    }
}
