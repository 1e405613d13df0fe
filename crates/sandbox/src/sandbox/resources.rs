//! What containers may use, what they have used, and freezing them; and the machine's size that follows.

use std::sync::Arc;

use kata_oci::Status;
use kata_proto::agent as pb;
use protobuf::MessageField;

use super::{Sandbox, lock};
use crate::convert;
use crate::cpuset::Cpuset;
use crate::error::SandboxError;
use crate::events::Event;
use crate::plan::Limits;

impl Sandbox {
    pub(super) fn limits(&self) -> Limits {
        Limits {
            max_vcpus: self.options.config.hypervisor.qemu.max_vcpus(),
            drop_seccomp: self.options.config.runtime.disable_guest_seccomp,
        }
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

    pub(super) async fn freeze(&self, container: &str, freeze: bool) -> Result<(), SandboxError> {
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
        let stands = self.stands(container);
        let container = container.to_owned();
        if stands {
            // There is nothing to freeze.
            process.set_status(to);
            self.emit(if freeze { Event::Paused { container } } else { Event::Resumed { container } });
        } else if freeze {
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

    /// Changes a container's limits, and the machine's size if they need it: larger before, smaller afterwards.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub async fn update(
        self: &Arc<Self>,
        container: &str,
        resources: &kata_oci::Resources,
    ) -> Result<(), SandboxError> {
        self.process(container, "")?;
        self.in_guest(container, "change the limits of")?;
        let ask = self.asked_after(container, resources)?;
        let changed = Cpuset::of(resources).map_err(crate::plan::PlanError::from)?;
        let before = lock(&self.containers).get(container).map(|c| c.cpuset.clone()).unwrap_or_default();
        let cpuset = changed.or(&before);
        {
            let mut machine = self.machine.lock().await;
            let machine = self.boot(&mut machine).await?;
            let (memory, vcpus) = self.size_with(Some((container, ask)));
            machine.grow(memory, vcpus).await.map_err(SandboxError::Resize)?;
            self.place_vcpus(machine).await?;
        }
        self.confine_with(Some((container, &cpuset)))?;
        let mut request = pb::UpdateContainerRequest::new();
        request.container_id = container.to_owned();
        let cpus = cpuset.in_guest(self.limits().max_vcpus);
        request.resources = MessageField::some(convert::resources(resources, cpus));
        let updated = async { self.agent()?.calls().update_container(request).await.map_err(SandboxError::from) };
        if let Err(err) = updated.await {
            self.confine_again();
            return Err(err);
        }
        if let Some(c) = lock(&self.containers).get_mut(container) {
            (c.memory, c.vcpus, c.cpuset) = (ask.memory, ask.cpu, cpuset);
        }
        self.shrink_later();
        Ok(())
    }

    /// What the container's cgroup counts; for one that stands for the sandbox, what those of all containers do.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub async fn stats(&self, container: &str) -> Result<pb::StatsContainerResponse, SandboxError> {
        self.process(container, "")?;
        let mut request = pb::StatsContainerRequest::new();
        request.container_id = if self.stands(container) { self.options.id.to_string() } else { container.to_owned() };
        Ok(self.agent()?.calls().stats_container(request).await?)
    }
}
