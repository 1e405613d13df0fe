//! Making a container.

use std::collections::BTreeMap;
use std::sync::Arc;

use kata_oci::{Spec, Status};
use kata_proto::agent as pb;
use kata_storage::RootfsMount;
use kata_types::{ContainerId, Mib};
use kata_vmm::Unsupported;
use protobuf::MessageField;

use super::end::remove_in_guest;
use super::{Container, CreateRequest, Sandbox, lock};
use crate::error::SandboxError;
use crate::events::Event;
use crate::machine::{self, Machine};
use crate::plan::{self, RealHost};
use crate::process::Process;
use crate::state::ContainerRecord;
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
        let spec = kata_oci::load_spec(&request.bundle)?;
        let planned = plan::plan(&spec, id.as_str(), self.limits(), &RealHost)?;
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
        let memory = self.memory_with(None, planned.memory);
        let vcpus = self.vcpus_with(None, planned.vcpus);
        machine.grow(memory, vcpus).await.map_err(SandboxError::Resize)?;

        let made =
            self.create_in(machine, &id, &spec, planned, &request.bundle, &request.rootfs, stdio, request.pid).await;
        let (pumps, memory, vcpus) = match made {
            Ok(made) => made,
            Err(err) => {
                machine.unplug_disks(&id).await;
                if let Err(err) = machine.remove_volumes(&id) {
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
    ) -> Result<(Pumps, Option<Mib>, Option<u32>), SandboxError> {
        let root = spec.root.as_ref().map_or("rootfs", |r| r.path.as_str());
        machine.share.add_rootfs(id, rootfs, &bundle.join(root), false)?;
        let mut guest_spec = planned.spec;
        let mut storages = planned.storages;
        storages.extend(machine.add_binds(id, &planned.binds, &mut guest_spec)?);
        let devices = machine.plug_disks(id, &planned.disks).await?;
        if let Some(h) = &spec.hooks {
            let state = self.oci_state(id.as_str(), Status::Creating, pid, bundle, spec);
            self.run_hooks("prestart", &h.prestart, &state).await?;
            self.run_hooks("createRuntime", &h.create_runtime, &state).await?;
        }
        let mut request = pb::CreateContainerRequest::new();
        request.container_id = id.to_string();
        request.OCI = MessageField::some(guest_spec);
        (request.storages, request.devices) = (storages, devices);
        request.stdio_streams = stdio.streams;
        let agent = machine.agent.clone();
        // At once: the guest has work to do for either.
        let (created, connected) = tokio::join!(agent.calls().create_container(request), self.sync_with(machine));
        created?;
        if let Err(err) = connected {
            remove_in_guest(&agent, id.as_str()).await;
            return Err(err);
        }
        match Pumps::start(stdio, &agent, id.as_str(), "").await {
            Ok(pumps) => Ok((pumps, planned.memory, planned.vcpus)),
            Err(err) => {
                remove_in_guest(&agent, id.as_str()).await;
                Err(err.into())
            }
        }
    }
}
