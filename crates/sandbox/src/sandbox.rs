//! The engine: one sandbox, its machine, its containers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use kata_agent_client::{AgentClient, CallError};
use kata_config::Config;
use kata_oci::{Spec, State, Status};
use kata_proto::agent as pb;
use kata_storage::RootfsMount;
use kata_types::{ContainerId, ExecId, Mib, SandboxId};
use kata_vmm::Vmm;
use protobuf::MessageField;
use tokio::sync::{Mutex as AsyncMutex, watch};

use crate::error::SandboxError;
use crate::events::{Event, Events};
use crate::hostcgroup::HostCgroup;
use crate::machine::{self, BootSpec, Machine};
use crate::plan::{self, Limits, RealHost};
use crate::process::{Exit, Process, REASON_WITHIN};
use crate::state::{ContainerRecord, ProcessRecord, StateFile};
use crate::stdio::{Pumps, StdioSpec};
use crate::{convert, guest_log, hooks};

/// How long output that nobody reads holds up a deletion.
const OUTPUT_PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// How long a killed VMM may take to go.
const KILLED_WITHIN: std::time::Duration = std::time::Duration::from_secs(2);

/// What a sandbox is made with.
pub struct Options {
    /// Its id.
    pub id: SandboxId,
    /// Its directory; exists, mode 0700.
    pub run_dir: PathBuf,
    /// The configuration.
    pub config: Config,
    /// The driver.
    pub vmm: Arc<dyn Vmm>,
    /// The host's cgroup, made already.
    pub cgroup: HostCgroup,
    /// Host name in the guest.
    pub hostname: String,
    /// Where events go.
    pub events: Events,
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
    Running(Box<Machine>),
    Failed(String),
    Gone,
}

struct Container {
    spec: Spec,
    bundle: PathBuf,
    init: Arc<Process>,
    execs: BTreeMap<String, Arc<Process>>,
    memory: Option<Mib>,
    vcpus: Option<u32>,
}

/// One sandbox. All methods may be called at once; what must not overlap waits for each other inside.
pub struct Sandbox {
    options: Options,
    machine: AsyncMutex<MachineState>,
    agent: watch::Sender<Option<AgentClient>>,
    death: watch::Sender<Option<String>>,
    containers: Mutex<BTreeMap<String, Container>>,
    state: Mutex<StateFile>,
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
        let mut state = StateFile::new(options.id.as_str());
        state.cgroups.clone_from(&options.cgroup.dirs);
        state.save(&options.run_dir)?;
        let sandbox = Arc::new(Sandbox {
            options,
            machine: AsyncMutex::new(MachineState::Cold),
            agent: watch::channel(None).0,
            death: watch::channel(None).0,
            containers: Mutex::new(BTreeMap::new()),
            state: Mutex::new(state),
        });
        let early = Arc::clone(&sandbox);
        // The boot overlaps with whatever the engine still does before it asks for a container.
        tokio::spawn(async move { drop(early.boot(&mut *early.machine.lock().await).await) });
        Ok(sandbox)
    }

    /// The sandbox's id.
    pub fn id(&self) -> &SandboxId {
        &self.options.id
    }

    /// Boots if need be; afterwards the state is Running, or this fails.
    async fn boot<'a>(self: &Arc<Self>, state: &'a mut MachineState) -> Result<&'a mut Machine, SandboxError> {
        if matches!(state, MachineState::Cold) {
            let spec = BootSpec {
                sandbox: self.options.id.clone(),
                run_dir: self.options.run_dir.clone(),
                config: self.options.config.clone(),
                cgroups: self.options.cgroup.dirs.clone(),
                hostname: self.options.hostname.clone(),
            };
            match machine::boot(&spec, self.options.vmm.as_ref()).await {
                Ok(machine) => {
                    self.booted(&machine)?;
                    *state = MachineState::Running(Box::new(machine));
                }
                Err(err) => {
                    let text = err.to_string();
                    tracing::error!("{text}");
                    *state = MachineState::Failed(text);
                }
            }
        }
        match state {
            MachineState::Running(machine) => match self.death.borrow().clone() {
                Some(reason) => Err(SandboxError::Dead(reason)),
                None => Ok(machine),
            },
            MachineState::Failed(text) => Err(SandboxError::Boot(text.clone())),
            MachineState::Cold | MachineState::Gone => {
                let reason = self.death.borrow().clone();
                Err(SandboxError::Dead(reason.unwrap_or_else(|| "it has been shut down".into())))
            }
        }
    }

    fn booted(self: &Arc<Self>, machine: &Machine) -> Result<(), SandboxError> {
        self.agent.send_replace(Some(machine.agent.clone()));
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
        tokio::spawn(guest_log::follow(machine.agent.clone()));
        tokio::spawn(follow_oom(machine.agent.clone(), self.options.events.clone()));
        Ok(())
    }

    fn save(&self, change: impl FnOnce(&mut StateFile)) -> Result<(), SandboxError> {
        let mut state = lock(&self.state);
        change(&mut state);
        Ok(state.save(&self.options.run_dir)?)
    }

    fn limits(&self) -> Limits {
        let q = &self.options.config.hypervisor.qemu;
        Limits {
            max_memory: q.max_memory(),
            max_vcpus: q.max_vcpus(),
            overhead: q.overhead_memory,
            drop_seccomp: self.options.config.runtime.disable_guest_seccomp,
        }
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
        if !matches!(err, SandboxError::Agent(CallError::Lost { .. })) {
            return err;
        }
        let mut death = self.death.subscribe();
        match tokio::time::timeout(REASON_WITHIN, death.wait_for(Option::is_some)).await {
            Ok(Ok(reason)) => SandboxError::Dead(reason.clone().unwrap_or_default()),
            _ => err,
        }
    }

    /// Makes a container whose process waits to be started. Returns the pid that stands for it.
    ///
    /// # Errors
    /// [`SandboxError`]; nothing of the container is left.
    pub async fn create(self: &Arc<Self>, request: CreateRequest) -> Result<i32, SandboxError> {
        let id = ContainerId::new(&request.id)?;
        let mut machine = self.machine.lock().await;
        if lock(&self.containers).contains_key(id.as_str()) {
            return Err(SandboxError::Exists(format!("container {id}")));
        }
        let spec = kata_oci::load_spec(&request.bundle)?;
        let planned = plan::plan(&spec, id.as_str(), self.limits(), &RealHost)?;
        for note in &planned.notes {
            tracing::warn!(container = %id, "{note}");
        }
        let stdio = request.stdio;
        let terminal = stdio.terminal;
        let stdio = stdio.open()?;
        let machine = self.boot(&mut machine).await?;
        let memory = self.memory_with(None, planned.memory);
        let vcpus = self.vcpus_with(None, planned.vcpus);
        machine.grow(memory, vcpus).await.map_err(SandboxError::Resize)?;

        let made =
            self.create_in(machine, &id, &spec, planned, &request.bundle, &request.rootfs, stdio, request.pid).await;
        let (pumps, memory, vcpus) = match made {
            Ok(made) => made,
            Err(err) => {
                if let Err(err) = machine.share.remove_container(&id) {
                    tracing::warn!("{}", machine::chain(&err));
                }
                return Err(err);
            }
        };
        let init = Arc::new(Process::new(id.as_str(), "", request.pid, terminal, request.addresses));
        init.set_pumps(pumps);
        let poststop = spec.hooks.as_ref().map(|h| h.poststop.clone()).unwrap_or_default();
        let annotations = spec.annotations.clone();
        let container = Container {
            spec,
            bundle: request.bundle.clone(),
            init: Arc::clone(&init),
            execs: BTreeMap::new(),
            memory,
            vcpus,
        };
        lock(&self.containers).insert(id.to_string(), container);
        self.save(|s| {
            let record = ContainerRecord {
                bundle: request.bundle.clone(),
                pid: request.pid,
                poststop,
                annotations,
                exit_status: None,
            };
            s.containers.insert(id.to_string(), record);
        })?;
        self.emit(Event::Created { container: id.to_string(), bundle: request.bundle, pid: request.pid });
        self.supervise(init)?;
        Ok(request.pid)
    }

    #[allow(clippy::too_many_arguments)]
    async fn create_in(
        &self,
        machine: &mut Machine,
        id: &ContainerId,
        spec: &Spec,
        planned: plan::Plan,
        bundle: &std::path::Path,
        rootfs: &[RootfsMount],
        stdio: crate::stdio::Opened,
        pid: i32,
    ) -> Result<(Pumps, Option<Mib>, Option<u32>), SandboxError> {
        let root = spec.root.as_ref().map_or("rootfs", |r| r.path.as_str());
        machine.share.add_rootfs(id, rootfs, &bundle.join(root), false)?;
        let mut guest_spec = planned.spec;
        for bind in &planned.binds {
            let guest_path = machine.share.add_bind(id, &bind.source, bind.read_only, bind.recursive)?;
            if let Some(mount) = guest_spec.Mounts.get_mut(bind.mount) {
                mount.source = guest_path;
            }
        }
        if let Some(h) = &spec.hooks {
            let state = self.oci_state(id.as_str(), Status::Creating, pid, bundle, spec);
            hooks::run("prestart", &h.prestart, &state).await?;
            hooks::run("createRuntime", &h.create_runtime, &state).await?;
        }
        let mut request = pb::CreateContainerRequest::new();
        request.container_id = id.to_string();
        request.OCI = MessageField::some(guest_spec);
        request.stdio_streams = stdio.streams;
        machine.agent.calls().create_container(request).await?;
        match Pumps::start(stdio, &machine.agent, id.as_str(), "").await {
            Ok(pumps) => Ok((pumps, planned.memory, planned.vcpus)),
            Err(err) => {
                remove_in_guest(&machine.agent, id.as_str()).await;
                Err(err.into())
            }
        }
    }

    /// Memory that the machine needs with this container's share changed.
    fn memory_with(&self, replacing: Option<&str>, new: Option<Mib>) -> Mib {
        let q = &self.options.config.hypervisor.qemu;
        let containers = lock(&self.containers);
        let mut limits: Vec<Mib> =
            containers.iter().filter(|(id, _)| Some(id.as_str()) != replacing).filter_map(|(_, c)| c.memory).collect();
        limits.extend(new);
        // Each planned size holds the overhead once; one is enough.
        let sum: u64 = limits.iter().map(|m| m.0.saturating_sub(q.overhead_memory.0)).sum();
        if limits.is_empty() { Mib(0) } else { Mib(sum + q.overhead_memory.0).min(q.max_memory()) }
    }

    fn vcpus_with(&self, replacing: Option<&str>, new: Option<u32>) -> u32 {
        let q = &self.options.config.hypervisor.qemu;
        let containers = lock(&self.containers);
        let others: u32 =
            containers.iter().filter(|(id, _)| Some(id.as_str()) != replacing).filter_map(|(_, c)| c.vcpus).sum();
        (others + new.unwrap_or(0)).min(q.max_vcpus())
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
            if process.exec.is_empty() {
                let saved = me.save(|s| {
                    if let Some(c) = s.containers.get_mut(&process.container) {
                        c.exit_status = Some(exit.status);
                    }
                });
                if let Err(err) = saved {
                    tracing::warn!("{err}");
                }
            }
            me.emit(Event::Exited {
                container: process.container.clone(),
                exec: process.exec.clone(),
                pid: process.pid,
                status: exit.status,
                at: exit.at,
            });
        });
        Ok(())
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

    /// Starts a container's first process, or a registered exec. Returns the pid that stands for it.
    ///
    /// # Errors
    /// [`SandboxError`]; where the program cannot be run, the text is runc's.
    pub async fn start_process(self: &Arc<Self>, container: &str, exec: &str) -> Result<i32, SandboxError> {
        let process = self.process(container, exec)?;
        let what = || if exec.is_empty() { format!("container {container}") } else { format!("exec {exec}") };
        if process.status() != Status::Created {
            let is = process.status().to_string();
            return Err(SandboxError::State { operation: "start", what: what(), is });
        }
        let agent = self.agent()?;
        if exec.is_empty() {
            let mut request = pb::StartContainerRequest::new();
            request.container_id = container.to_owned();
            agent.calls().start_container(request).await?;
            process.set_status(Status::Running);
            self.emit(Event::Started { container: container.to_owned(), pid: process.pid });
            self.poststart(container, &process).await;
            return Ok(process.pid);
        }
        let Some((spec, stdio)) = process.take_pending() else {
            return Err(SandboxError::State { operation: "start", what: what(), is: "being started".into() });
        };
        let started = async {
            let stdio = stdio.open()?;
            let mut request = pb::ExecProcessRequest::new();
            request.container_id = container.to_owned();
            request.exec_id = exec.to_owned();
            request.process = MessageField::some(convert::process(&spec));
            request.stdio_streams = stdio.streams;
            agent.calls().exec_process(request).await?;
            Ok::<_, SandboxError>(Pumps::start(stdio, &agent, container, exec).await?)
        };
        match started.await {
            Ok(pumps) => process.set_pumps(pumps),
            Err(err) => {
                // It never ran; the caller gets the error itself. 127 is what a shell says of such a command.
                process.finish(Exit { status: 127, at: std::time::SystemTime::now(), reason: None });
                return Err(err);
            }
        }
        process.set_status(Status::Running);
        self.emit(Event::ExecStarted { container: container.to_owned(), exec: exec.to_owned(), pid: process.pid });
        self.supervise(Arc::clone(&process))?;
        Ok(process.pid)
    }

    async fn poststart(&self, container: &str, process: &Process) {
        let found = lock(&self.containers).get(container).map(|c| (c.spec.clone(), c.bundle.clone()));
        let Some((spec, bundle)) = found else { return };
        let Some(h) = &spec.hooks else { return };
        let state = self.oci_state(container, Status::Running, process.pid, &bundle, &spec);
        // The process runs already: a failing hook is told, not undone (runtime.md, "Lifecycle" 9).
        if let Err(err) = hooks::run("poststart", &h.poststart, &state).await {
            tracing::error!("{err}");
        }
    }

    /// Registers an exec.
    ///
    /// # Errors
    /// The container is not there or not running, or the id is in use.
    pub fn add_exec(
        &self,
        container: &str,
        exec: &str,
        process: kata_oci::Process,
        stdio: StdioSpec,
        addresses: [String; 3],
        pid: i32,
    ) -> Result<(), SandboxError> {
        let exec_id = ExecId::new(exec)?;
        let mut containers = lock(&self.containers);
        let c = containers.get_mut(container);
        let c = c.ok_or_else(|| SandboxError::NotFound(format!("container {container}")))?;
        if c.init.status() == Status::Stopped {
            let what = format!("container {container}");
            return Err(SandboxError::State { operation: "exec in", what, is: "stopped".into() });
        }
        if c.execs.contains_key(exec) {
            return Err(SandboxError::Exists(format!("exec {exec_id}")));
        }
        let p = Process::new(container, exec, pid, stdio.terminal, addresses).with_pending(process, stdio);
        c.execs.insert(exec.to_owned(), Arc::new(p));
        drop(containers);
        self.emit(Event::ExecAdded { container: container.to_owned(), exec: exec.to_owned() });
        Ok(())
    }

    /// Sends a signal to one process, or with `all` to every process of the container.
    ///
    /// # Errors
    /// [`SandboxError::Finished`] when it has ended already.
    pub async fn kill(&self, container: &str, exec: &str, signal: u32, all: bool) -> Result<(), SandboxError> {
        let process = self.process(container, exec)?;
        if process.exit().is_some() && !all {
            return Err(SandboxError::Finished);
        }
        if !exec.is_empty() && process.status() == Status::Created {
            process.finish(Exit { status: 128 + signal.cast_signed(), ..Exit::lost("killed before it was started") });
            return Ok(());
        }
        let agent = match self.agent() {
            Ok(agent) => agent,
            // It went down with its machine: that is as killed as can be.
            Err(SandboxError::Dead(_)) if all => return Ok(()),
            Err(SandboxError::Dead(_)) => return Err(SandboxError::Finished),
            Err(err) => return Err(err),
        };
        let mut targets = vec![exec.to_owned()];
        if all && let Some(c) = lock(&self.containers).get(container) {
            targets.extend(c.execs.keys().cloned());
        }
        for target in targets {
            let mut request = pb::SignalProcessRequest::new();
            request.container_id = container.to_owned();
            request.exec_id = target;
            request.signal = signal;
            match agent.calls().signal_process(request).await {
                Ok(_) => {}
                Err(CallError::Refused { not_found: true, .. }) if all => {}
                Err(CallError::Refused { not_found: true, .. }) => {
                    return Err(SandboxError::Finished);
                }
                Err(err) => return Err(err.into()),
            }
        }
        Ok(())
    }

    /// Removes an exec, or a container with all it has; with its last container the sandbox's machine ends too.
    ///
    /// # Errors
    /// [`SandboxError::State`] when it still runs.
    pub async fn delete(self: &Arc<Self>, container: &str, exec: &str) -> Result<(i32, Exit), SandboxError> {
        let process = self.process(container, exec)?;
        if process.exit().is_none() {
            match process.status() {
                Status::Created if exec.is_empty() => {
                    // Never started: deleting it ends it.
                    self.kill(container, "", 9, false).await.or_else(ignore_finished)?;
                    process.wait().await;
                }
                Status::Created => process.finish(Exit { status: 0, ..Exit::lost("never started") }),
                other => {
                    let what = if exec.is_empty() { format!("container {container}") } else { format!("exec {exec}") };
                    return Err(SandboxError::State { operation: "delete", what, is: other.to_string() });
                }
            }
        }
        let exit = process.wait().await;
        if let Some(pumps) = process.pumps() {
            if self.death.borrow().is_none() {
                pumps.drained_or_stalled(OUTPUT_PATIENCE).await;
            }
            pumps.abort();
        }
        if !exec.is_empty() {
            if let Some(c) = lock(&self.containers).get_mut(container) {
                c.execs.remove(exec);
            }
            return Ok((process.pid, exit));
        }
        self.delete_container(container).await?;
        self.emit(Event::Deleted {
            container: container.to_owned(),
            pid: process.pid,
            status: exit.status,
            at: exit.at,
        });
        Ok((process.pid, exit))
    }

    async fn delete_container(self: &Arc<Self>, container: &str) -> Result<(), SandboxError> {
        let id = ContainerId::new(container)?;
        let mut machine = self.machine.lock().await;
        let Some(c) = lock(&self.containers).remove(container) else {
            return Err(SandboxError::NotFound(format!("container {container}")));
        };
        let last = lock(&self.containers).is_empty();
        if let MachineState::Running(m) = &mut *machine {
            // The last one goes with its machine, which ends whatever is left in the guest.
            if !last && self.death.borrow().is_none() {
                remove_in_guest(&m.agent, container).await;
            }
            if let Err(err) = m.share.remove_container(&id) {
                tracing::warn!("{}", machine::chain(&err));
            }
        }
        if last {
            self.stop_machine(&mut machine).await;
        }
        self.save(|s| drop(s.containers.remove(container)))?;
        if let Some(h) = &c.spec.hooks {
            let state = self.oci_state(container, Status::Stopped, 0, &c.bundle, &c.spec);
            // The container is gone: a failing hook is told, and the next one runs (runtime.md, "Lifecycle" 13).
            for hook in &h.poststop {
                if let Err(err) = hooks::run("poststop", std::slice::from_ref(hook), &state).await {
                    tracing::error!("{err}");
                }
            }
        }
        Ok(())
    }

    async fn stop_machine(&self, state: &mut MachineState) {
        let MachineState::Running(machine) = std::mem::replace(state, MachineState::Gone) else { return };
        if self.death.borrow().is_none() {
            self.death.send_replace(Some("it has been shut down".into()));
            // What the workload wrote through a mapping is still in the guest's page cache: this syncs it.
            let bye = machine.agent.calls().destroy_sandbox(pb::DestroySandboxRequest::new());
            if let Err(err) = bye.await {
                tracing::warn!("the guest could not be told to finish: {err}");
            }
        }
        if let Err(err) = machine.stop().await {
            tracing::warn!("{}", machine::chain(&err));
        }
        let gone = self.save(|s| (s.vm, s.fs) = (None, None));
        if let Err(err) = gone {
            tracing::warn!("{err}");
        }
    }

    /// Ends everything: what still runs is killed.
    pub async fn shutdown(self: &Arc<Self>) {
        let mut machine = self.machine.lock().await;
        self.stop_machine(&mut machine).await;
        self.options.cgroup.remove();
    }

    /// Whether containers are left.
    pub fn is_empty(&self) -> bool {
        lock(&self.containers).is_empty()
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

    /// Every process of a container that runs, by the host's pid that stands for it: `(pid, exec id)`.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`].
    pub fn processes(&self, container: &str) -> Result<Vec<(i32, String)>, SandboxError> {
        let containers = lock(&self.containers);
        let c = containers.get(container).ok_or_else(|| SandboxError::NotFound(format!("container {container}")))?;
        let all = std::iter::once(&c.init).chain(c.execs.values());
        Ok(all.filter(|p| p.exit().is_none()).map(|p| (p.pid, p.exec.clone())).collect())
    }

    /// The guest's own list of a container's processes; `format` is "table" or "json".
    ///
    /// # Errors
    /// [`SandboxError`].
    pub async fn guest_processes(
        &self,
        container: &str,
        format: &str,
        args: Vec<String>,
    ) -> Result<Vec<u8>, SandboxError> {
        self.process(container, "")?;
        let mut request = pb::ListProcessesRequest::new();
        request.container_id = container.to_owned();
        request.format = format.to_owned();
        request.args = args;
        Ok(self.agent()?.calls().list_processes(request).await?.process_list)
    }

    /// Freezes a container.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub async fn pause(&self, container: &str) -> Result<(), SandboxError> {
        self.freeze(container, true).await
    }

    /// Thaws it.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub async fn resume(&self, container: &str) -> Result<(), SandboxError> {
        self.freeze(container, false).await
    }

    async fn freeze(&self, container: &str, freeze: bool) -> Result<(), SandboxError> {
        let process = self.process(container, "")?;
        let (operation, from, to) = if freeze {
            ("pause", Status::Running, Status::Paused)
        } else {
            ("resume", Status::Paused, Status::Running)
        };
        // runc pauses a created container too.
        if process.status() != from && !(freeze && process.status() == Status::Created) {
            let (what, is) = (format!("container {container}"), process.status().to_string());
            return Err(SandboxError::State { operation, what, is });
        }
        let agent = self.agent()?;
        let container = container.to_owned();
        if freeze {
            let mut request = pb::PauseContainerRequest::new();
            request.container_id.clone_from(&container);
            agent.calls().pause_container(request).await?;
            process.set_status(to);
            self.emit(Event::Paused { container });
        } else {
            let mut request = pb::ResumeContainerRequest::new();
            request.container_id.clone_from(&container);
            agent.calls().resume_container(request).await?;
            process.set_status(to);
            self.emit(Event::Resumed { container });
        }
        Ok(())
    }

    /// Changes a container's limits, and the machine's size if they need it.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub async fn update(
        self: &Arc<Self>,
        container: &str,
        resources: &kata_oci::Resources,
    ) -> Result<(), SandboxError> {
        self.process(container, "")?;
        let (memory, vcpus) = plan::sizes(resources, self.limits())?;
        {
            let mut machine = self.machine.lock().await;
            let machine = self.boot(&mut machine).await?;
            let (memory, vcpus) = (self.memory_with(Some(container), memory), self.vcpus_with(Some(container), vcpus));
            machine.grow(memory, vcpus).await.map_err(SandboxError::Resize)?;
        }
        let mut request = pb::UpdateContainerRequest::new();
        request.container_id = container.to_owned();
        request.resources = MessageField::some(convert::resources(resources));
        self.agent()?.calls().update_container(request).await?;
        if let Some(c) = lock(&self.containers).get_mut(container) {
            c.memory = memory.or(c.memory);
            c.vcpus = vcpus.or(c.vcpus);
        }
        Ok(())
    }

    /// What the container's cgroup counts.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub async fn stats(&self, container: &str) -> Result<pb::StatsContainerResponse, SandboxError> {
        self.process(container, "")?;
        let mut request = pb::StatsContainerRequest::new();
        request.container_id = container.to_owned();
        Ok(self.agent()?.calls().stats_container(request).await?)
    }

    /// Tells a terminal's size, in characters.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub async fn resize(&self, container: &str, exec: &str, rows: u32, columns: u32) -> Result<(), SandboxError> {
        let process = self.process(container, exec)?;
        if process.status() == Status::Stopped || process.resize_pending(rows, columns) {
            return Ok(());
        }
        let mut request = pb::TtyWinResizeRequest::new();
        request.container_id = container.to_owned();
        request.exec_id = exec.to_owned();
        (request.row, request.column) = (rows, columns);
        self.agent()?.calls().tty_win_resize(request).await?;
        Ok(())
    }

    /// Ends a process's stdin.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub async fn close_stdin(&self, container: &str, exec: &str) -> Result<(), SandboxError> {
        let process = self.process(container, exec)?;
        // Through the stream, behind what was written to it: a call would overtake that.
        if process.pumps().is_some_and(|pumps| pumps.close_stdin()) || process.exit().is_some() {
            return Ok(());
        }
        let mut request = pb::CloseStdinRequest::new();
        request.container_id = container.to_owned();
        request.exec_id = exec.to_owned();
        match self.agent()?.calls().close_stdin(request).await {
            Ok(_) | Err(CallError::Refused { not_found: true, .. }) => Ok(()),
            Err(err) => Err(err.into()),
        }
    }
}

fn ignore_finished(err: SandboxError) -> Result<(), SandboxError> {
    if matches!(err, SandboxError::Finished) { Ok(()) } else { Err(err) }
}

async fn remove_in_guest(agent: &AgentClient, container: &str) {
    let mut request = pb::RemoveContainerRequest::new();
    request.container_id = container.to_owned();
    if let Err(err) = agent.calls().remove_container(request).await {
        tracing::warn!(container, "the guest could not remove the container: {err}");
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
