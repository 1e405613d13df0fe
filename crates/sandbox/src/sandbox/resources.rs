//! What containers may use, what they have used, and freezing them; and the machine's size that follows.

use std::sync::Arc;

use kata_oci::Status;
use kata_proto::agent as pb;
use kata_types::Mib;
use protobuf::MessageField;

use super::{Sandbox, lock};
use crate::convert;
use crate::error::SandboxError;
use crate::events::Event;
use crate::plan::{self, Limits};

impl Sandbox {
    pub(super) fn limits(&self) -> Limits {
        let q = &self.options.config.hypervisor.qemu;
        Limits {
            max_memory: q.max_memory(),
            max_vcpus: q.max_vcpus(),
            overhead: q.overhead_memory,
            drop_seccomp: self.options.config.runtime.disable_guest_seccomp,
        }
    }

    /// Memory that the machine needs with this container's share changed.
    pub(super) fn memory_with(&self, replacing: Option<&str>, new: Option<Mib>) -> Mib {
        let q = &self.options.config.hypervisor.qemu;
        let containers = lock(&self.containers);
        let mut limits: Vec<Mib> =
            containers.iter().filter(|(id, _)| Some(id.as_str()) != replacing).filter_map(|(_, c)| c.memory).collect();
        limits.extend(new);
        // Each planned size holds the overhead once; one is enough.
        let sum: u64 = limits.iter().map(|m| m.0.saturating_sub(q.overhead_memory.0)).sum();
        if limits.is_empty() { Mib(0) } else { Mib(sum + q.overhead_memory.0).min(q.max_memory()) }
    }

    pub(super) fn vcpus_with(&self, replacing: Option<&str>, new: Option<u32>) -> u32 {
        let q = &self.options.config.hypervisor.qemu;
        let containers = lock(&self.containers);
        let others: u32 =
            containers.iter().filter(|(id, _)| Some(id.as_str()) != replacing).filter_map(|(_, c)| c.vcpus).sum();
        (others + new.unwrap_or(0)).min(q.max_vcpus())
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
        self.in_guest(container, "change the limits of")?;
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
