//! The machine's size, which follows its containers.

use std::collections::BTreeMap;
use std::sync::Arc;

use kata_types::Mib;

use super::{Container, MachineState, Sandbox, lock};
use crate::cpuset::Cpuset;
use crate::error::SandboxError;
use crate::machine::Machine;
use crate::plan;
use crate::sizing::{self, Ask, Policy};

impl Sandbox {
    fn policy(&self) -> Policy {
        let q = &self.options.config.hypervisor.qemu;
        Policy {
            default_memory: q.default_memory,
            default_vcpus: q.vcpus(),
            overhead: q.overhead_memory,
            max_memory: q.max_memory(),
            max_vcpus: q.max_vcpus(),
        }
    }

    /// Memory and vCPUs that the machine needs for its containers, of which one is new or asks for something else.
    pub(super) fn size_with(&self, changed: Option<(&str, Ask)>) -> (Mib, u32) {
        let policy = self.policy();
        let containers = lock(&self.containers);
        if self.options.config.runtime.static_sandbox_resource_mgmt {
            let mut fixed = lock(&self.fixed_size);
            let declared = containers.values().find_map(|c| sizing::declared(&c.spec.annotations));
            let first = declared.or(changed.map(|(_, ask)| ask)).unwrap_or_default();
            return *fixed.get_or_insert_with(|| sizing::machine(&[first], &policy));
        }
        let others = beside(&containers, changed.map(|(id, _)| id));
        let mut asks: Vec<Ask> = others.map(|c| Ask { memory: c.memory, cpu: c.vcpus }).collect();
        asks.extend(changed.map(|(_, ask)| ask));
        sizing::machine(&asks, &policy)
    }

    /// What a container asks for once its limits have been changed: what is not mentioned stays.
    pub(super) fn asked_after(&self, container: &str, new: &kata_oci::Resources) -> Result<Ask, SandboxError> {
        let mut ask = plan::sizes(new, self.limits())?;
        let containers = lock(&self.containers);
        let Some(c) = containers.get(container) else {
            return Err(SandboxError::NotFound(format!("container {container}")));
        };
        // 0 is "not given", as it is for the agent.
        if new.memory.as_ref().and_then(|m| m.limit).is_none_or(|limit| limit == 0) {
            ask.memory = c.memory;
        }
        if new.cpu.as_ref().and_then(|c| c.quota).is_none_or(|quota| quota == 0) {
            ask.cpu = c.vcpus;
        }
        Ok(ask)
    }

    /// Confines the sandbox's processes to what its containers may use of the host, of which one is new or may use something else.
    pub(super) fn confine_with(&self, changed: Option<(&str, &Cpuset)>) -> Result<(), SandboxError> {
        let containers = lock(&self.containers);
        let others = beside(&containers, changed.map(|(id, _)| id));
        let all = Cpuset::union(others.map(|c| &c.cpuset).chain(changed.map(|(_, cpuset)| cpuset)));
        let mut confined = lock(&self.confined);
        if *confined != all {
            self.options.cgroup.confine(&all)?;
            *confined = all;
        }
        Ok(())
    }

    /// Puts the threads of the guest's CPUs where the spec says, where that is not where all of the machine is.
    pub(super) async fn place_vcpus(&self, machine: &mut Machine) -> Result<(), SandboxError> {
        if !self.options.cgroup.is_split() {
            return Ok(());
        }
        let threads = machine.vcpu_threads().await.map_err(|e| SandboxError::Boot(e.to_string()))?;
        Ok(self.options.cgroup.join_vcpus(&threads)?)
    }

    /// Confines again after something was taken back or away, when there is nobody to tell of a failure.
    pub(super) fn confine_again(&self) {
        if let Err(err) = self.confine_with(None) {
            tracing::warn!("{err}");
        }
    }

    /// Gives back what the containers need no more, when nobody waits for it.
    pub(super) fn shrink_later(self: &Arc<Self>) {
        let me = Arc::clone(self);
        tokio::spawn(async move {
            let mut machine = me.machine.lock().await;
            let MachineState::Running(machine) = &mut *machine else { return };
            if me.death.borrow().is_some() {
                return;
            }
            let (memory, vcpus) = me.size_with(None);
            machine.shrink(memory, vcpus).await;
        });
    }
}

/// The containers whose limits count beside those of this one. One that stands for the sandbox has no process: that it has no limit
/// means nothing.
fn beside<'a>(
    containers: &'a BTreeMap<String, Container>,
    changed: Option<&'a str>,
) -> impl Iterator<Item = &'a Container> {
    containers.iter().filter(move |(id, c)| changed != Some(id.as_str()) && !c.stands).map(|(_, c)| c)
}
