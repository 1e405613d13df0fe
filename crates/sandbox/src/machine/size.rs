//! A running machine's memory and CPUs.

use kata_agent_client::CallError;
use kata_proto::agent as pb;
use kata_types::Mib;
use kata_vmm::Resources;

use super::{Machine, chain};

impl Machine {
    /// Has the guest use so many CPUs, which are present.
    ///
    /// # Errors
    /// [`CallError`].
    pub(super) async fn online(&mut self, vcpus: u32) -> Result<(), CallError> {
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

    /// Grows the machine to at least this; it does not shrink here.
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

    /// Takes away what is beyond this and beyond what it began with; it does not grow here. The guest gives back memory as
    /// it can; nobody waits for that, for the next container may be waiting for this machine.
    pub async fn shrink(&mut self, memory: Mib, vcpus: u32) {
        let want = Resources {
            memory: memory.max(self.least.memory).min(self.has.memory),
            vcpus: vcpus.max(self.least.vcpus).min(self.has.vcpus),
        };
        if want == self.has {
            return;
        }
        if want.vcpus < self.online_vcpus {
            let mut request = pb::OnlineCPUMemRequest::new();
            request.cpu_only = true;
            request.offline_cpus = self.online_vcpus - want.vcpus;
            match self.agent.calls().online_cpu_mem(request).await {
                Ok(_) => self.online_vcpus = want.vcpus,
                Err(err) => {
                    tracing::warn!("the guest keeps its {} CPUs: {err}", self.online_vcpus);
                    return;
                }
            }
        }
        let had = self.has;
        match self.vm.resize(want).await {
            Ok(got) => {
                self.has = got;
                tracing::info!(?had, has = ?got, "the machine shrinks");
            }
            Err(err) => tracing::warn!("the machine keeps its size: {}", chain(&err)),
        }
    }
}
