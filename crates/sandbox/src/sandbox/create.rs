//! Making a container.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kata_oci::{Spec, Status};
use kata_proto::agent as pb;
use kata_storage::RootfsMount;
use kata_trace::{phase, phase_of};
use kata_types::{ContainerId, GUEST_SANDBOX_DIR, Mib};
use kata_vmm::Unsupported;
use protobuf::MessageField;

use super::end::remove_in_guest;
use super::{Container, CreateRequest, MachineState, Sandbox, lock};
use crate::cpuset::Cpuset;
use crate::error::SandboxError;
use crate::events::Event;
use crate::machine::{self, Machine};
use crate::plan::{self, RealHost};
use crate::process::Process;
use crate::role::{self, Role};
use crate::shared::{self, Neighbour};
use crate::sizing::Millicpus;
use crate::state::{ContainerRecord, ProcessRecord};
use crate::stdio::Pumps;

impl Sandbox {
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
        let mut spec = kata_oci::load_spec(&request.bundle)?;
        let role = role::role(&spec)?;
        self.is_here(&id, &role)?;
        if role == Role::Sandbox {
            return self.create_pause(&mut machine, &id, spec, request).await;
        }
        if let (Some(files), Role::Container { .. }) = (&self.options.files, &role) {
            files.give(&mut spec);
        }
        self.share(&mut spec)?;
        let limits = self.limits();
        let looked = self.options.view.look(|| plan::plan(&spec, id.as_str(), limits, &RealHost));
        let planned = looked.map_err(SandboxError::View)??;
        if !planned.disks.is_empty() && !self.options.vmm.caps().hotplug_block {
            let (operation, by) = ("plug a block device".into(), self.options.vmm.name().into());
            return Err(plan::PlanError::from(Unsupported { operation, by }).into());
        }
        for note in &planned.notes {
            tracing::warn!(container = %id, "{note}");
        }
        let stdio = request.stdio;
        let terminal = stdio.terminal;
        let stdio = stdio.open()?;
        let machine = self.boot(&mut machine).await?;
        let cpuset = planned.cpuset.clone();
        self.confine_with(Some((id.as_str(), &cpuset)))?;
        let (memory, vcpus) = self.size_with(Some((id.as_str(), planned.ask)));
        phase("machine.grow", Box::pin(machine.grow(memory, vcpus))).await.map_err(SandboxError::Resize)?;
        self.place_vcpus(machine).await?;

        let made = self.create_in(machine, &id, &spec, planned, &request.bundle, &request.rootfs, stdio, request.pid);
        let made = phase_of("container.make", id.as_str(), Box::pin(made)).await;
        let (pumps, memory, vcpus) = match made {
            Ok(made) => made,
            Err(err) => {
                machine.unplug_disks(&id).await;
                if let Err(err) = machine.remove_volumes(&id) {
                    tracing::warn!("{}", machine::chain(&err));
                }
                self.confine_again();
                self.shrink_later();
                return Err(err);
            }
        };
        let init = Arc::new(Process::new(id.as_str(), "", request.pid, terminal, request.addresses));
        init.set_pumps(pumps);
        let container = Container {
            spec,
            stands: false,
            bundle: request.bundle,
            init: Arc::clone(&init),
            execs: BTreeMap::new(),
            memory,
            vcpus,
            cpuset,
        };
        self.register(&id, container)?;
        self.supervise(init)?;
        Ok(request.pid)
    }

    /// Makes the container that stands for a pod's sandbox, which is there once its machine runs.
    async fn create_pause(
        self: &Arc<Self>,
        machine: &mut MachineState,
        id: &ContainerId,
        spec: Spec,
        request: CreateRequest,
    ) -> Result<i32, SandboxError> {
        let terminal = request.stdio.terminal;
        // Opened for whoever waits at the other end, and closed: nothing will be said.
        drop(request.stdio.open()?);
        let machine = self.boot(machine).await?;
        self.begin_pause(id, &spec, &request.bundle, request.pid).await?;
        self.sync_with(machine).await?;
        self.forward_localhost(machine.agent.clone()).await;
        let init = Arc::new(Process::new(id.as_str(), "", request.pid, terminal, request.addresses));
        let container = Container {
            spec,
            stands: true,
            bundle: request.bundle,
            init: Arc::clone(&init),
            execs: BTreeMap::new(),
            memory: None,
            vcpus: None,
            cpuset: Cpuset::default(),
        };
        self.register(id, container)?;
        self.supervise_pause(init);
        Ok(request.pid)
    }

    /// A pod's container says whose it is; nothing may come into another pod's guest.
    fn is_here(&self, id: &ContainerId, role: &Role) -> Result<(), SandboxError> {
        match role {
            Role::Container { sandbox } if *sandbox != self.options.id => Err(SandboxError::Elsewhere {
                container: id.to_string(),
                belongs: sandbox.to_string(),
                this: self.options.id.to_string(),
            }),
            _ => Ok(()),
        }
    }

    /// Finds the namespaces that a spec shares with the containers that are here.
    fn share(&self, spec: &mut Spec) -> Result<(), SandboxError> {
        let containers = lock(&self.containers);
        let neighbours = containers.iter().filter(|(_, c)| c.init.status() != Status::Stopped || c.stands);
        let neighbours: Vec<Neighbour<'_>> =
            neighbours.map(|(id, c)| Neighbour { id, pid: c.init.pid, stands: c.stands, spec: &c.spec }).collect();
        Ok(shared::resolve(spec, &neighbours)?)
    }

    fn register(&self, id: &ContainerId, container: Container) -> Result<(), SandboxError> {
        let pid = container.init.pid;
        let record = ContainerRecord {
            bundle: container.bundle.clone(),
            pid,
            start_time: ProcessRecord::of(pid).map(|p| p.start_time),
            poststop: container.spec.hooks.as_ref().map(|h| h.poststop.clone()).unwrap_or_default(),
            annotations: container.spec.annotations.clone(),
            exit_status: None,
        };
        let bundle = container.bundle.clone();
        self.used.store(true, Ordering::Relaxed);
        lock(&self.containers).insert(id.to_string(), container);
        self.save(|s| drop(s.containers.insert(id.to_string(), record)))?;
        self.emit(Event::Created { container: id.to_string(), bundle, pid });
        Ok(())
    }

    /// Shared memory that containers of one sandbox have in common is the sandbox's; returns what the guest is to have for it.
    fn shared_memory(&self, spec: &mut kata_proto::oci::Spec, shm: Option<(usize, PathBuf)>) -> Option<pb::Storage> {
        let (at, source) = shm?;
        let mount = spec.Mounts.get_mut(at)?;
        let number = {
            let mut all = lock(&self.shm);
            let next = all.len();
            *all.entry(source).or_insert(next)
        };
        let mut storage = pb::Storage::new();
        storage.driver = "ephemeral".into();
        storage.fstype = "tmpfs".into();
        storage.source = "shm".into();
        storage.mount_point = format!("{GUEST_SANDBOX_DIR}/shm-{number}");
        storage.options = std::mem::take(&mut mount.options);
        storage.shared = true;
        mount.type_ = "bind".into();
        mount.source.clone_from(&storage.mount_point);
        mount.options = ["rbind", "nosuid", "noexec", "nodev"].map(str::to_owned).to_vec();
        Some(storage)
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) async fn create_in(
        &self,
        machine: &mut Machine,
        id: &ContainerId,
        spec: &Spec,
        planned: plan::Plan,
        bundle: &std::path::Path,
        rootfs: &[RootfsMount],
        stdio: crate::stdio::Opened,
        pid: i32,
    ) -> Result<(Pumps, Option<Mib>, Option<Millicpus>), SandboxError> {
        let root = spec.root.as_ref().map_or("rootfs", |r| r.path.as_str());
        machine.share.look_in(self.options.view.clone());
        let rootfs = async { machine.share.add_rootfs(id, rootfs, &bundle.join(root), false) };
        let guest_root = phase("share.rootfs", rootfs).await?;
        let mut guest_spec = planned.spec;
        guest_spec.Root.mut_or_insert_default().Path = guest_root;
        let mut storages = planned.storages;
        storages.extend(machine.add_binds(id, &planned.binds, &mut guest_spec)?);
        let devices = machine.plug_disks(id, &planned.disks).await?;
        if let Some(h) = &spec.hooks {
            let state = self.oci_state(id.as_str(), Status::Creating, pid, bundle, spec);
            phase("hooks", async {
                self.run_hooks("prestart", &h.prestart, &state).await?;
                self.run_hooks("createRuntime", &h.create_runtime, &state).await
            })
            .await?;
        }
        let mut request = pb::CreateContainerRequest::new();
        request.container_id = id.to_string();
        storages.extend(self.shared_memory(&mut guest_spec, planned.shm));
        request.OCI = MessageField::some(guest_spec);
        (request.storages, request.devices) = (storages, devices);
        request.stdio_streams = stdio.streams;
        let agent = machine.agent.clone();
        self.look_names_up_with(spec).await;
        // At once: the guest has work to do for either.
        let (created, connected) = tokio::join!(agent.calls().create_container(request), self.sync_with(machine));
        created?;
        if let Err(err) = connected {
            remove_in_guest(&agent, id.as_str()).await;
            return Err(err);
        }
        match Pumps::start(stdio, &agent, id.as_str(), "").await {
            Ok(pumps) => Ok((pumps, planned.ask.memory, planned.ask.cpu)),
            Err(err) => {
                remove_in_guest(&agent, id.as_str()).await;
                Err(err.into())
            }
        }
    }
}
