//! What operators ask of a sandbox, beyond its containers' lives.

use kata_agent_client::{AgentClient, AgentStream};
use kata_proto::agent as pb;
use kata_vmm::AgentAddr;

use super::{MachineState, Sandbox, lock};
use crate::error::SandboxError;
use crate::machine;

/// What [`kata_types::GUEST_IPTABLES_DIR`] is called in the share.
const IPTABLES: &str = "~iptables";

/// The processes on the host that are the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MachineProcesses {
    /// The VMM.
    pub vmm: Option<i32>,
    /// The file daemon.
    pub fs: Option<i32>,
}

impl Sandbox {
    /// The machine's processes; those that there are.
    pub fn machine_processes(&self) -> MachineProcesses {
        let state = lock(&self.state);
        MachineProcesses { vmm: state.vm.as_ref().map(|vm| vm.pid), fs: state.fs.map(|fs| fs.pid) }
    }

    /// Its containers' ids.
    pub fn container_ids(&self) -> Vec<String> {
        lock(&self.containers).keys().cloned().collect()
    }

    /// The agent, if it can be reached.
    ///
    /// # Errors
    /// [`SandboxError::Dead`].
    pub fn connected_agent(&self) -> Result<AgentClient, SandboxError> {
        self.agent()
    }

    /// Where the agent is: `vsock://CID:PORT`, or `serial://PATH` for the socket of the guest's port, of which the daemon is
    /// the one client; `None` before there is one.
    pub fn agent_url(&self) -> Option<String> {
        Some(match lock(&self.address).as_ref()? {
            AgentAddr::Vsock { cid } => format!("vsock://{cid}:{}", kata_types::AGENT_VSOCK_PORT),
            // A sandbox out of the pool had another directory when its machine began.
            AgentAddr::Serial { path } => match path.file_name() {
                Some(name) => format!("serial://{}", self.options.run_dir.join(name).display()),
                None => format!("serial://{}", path.display()),
            },
        })
    }

    /// The guest's and the agent's metrics: a page in Prometheus' format, as the guest wrote it.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub async fn guest_metrics(&self) -> Result<String, SandboxError> {
        Ok(self.agent()?.calls().get_metrics(pb::GetMetricsRequest::new()).await?.metrics)
    }

    /// A debug console in the guest: text both ways, or with a command what that prints.
    ///
    /// # Errors
    /// [`SandboxError::NoConsole`] unless the configuration wants one; or the guest is gone.
    pub async fn console(&self, command: &str) -> Result<AgentStream, SandboxError> {
        if !self.options.config.agent.kata.debug_console_enabled {
            return Err(SandboxError::NoConsole);
        }
        self.agent()?.console(command).await.map_err(|e| SandboxError::Dead(e.to_string()))
    }

    /// The guest's packet filter in the words of iptables-save(8).
    ///
    /// # Errors
    /// [`SandboxError`].
    pub async fn packet_filter(&self, ipv6: bool) -> Result<Vec<u8>, SandboxError> {
        self.lend_iptables().await;
        let mut request = pb::GetIPTablesRequest::new();
        request.is_ipv6 = ipv6;
        Ok(self.agent()?.calls().get_ip_tables(request).await?.data)
    }

    /// Replaces it with what iptables-restore(8) would read; returns what that says.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub async fn set_packet_filter(&self, ipv6: bool, rules: Vec<u8>) -> Result<Vec<u8>, SandboxError> {
        self.lend_iptables().await;
        let mut request = pb::SetIPTablesRequest::new();
        request.is_ipv6 = ipv6;
        request.data = rules;
        Ok(self.agent()?.calls().set_ip_tables(request).await?.data)
    }

    /// Lends the guest the iptables of this installation: our image has none, for they would take memory in every guest and
    /// few are asked. Before the guest looks for them, because its kernel remembers for a while what was not there. An image
    /// of the user's may have its own, so it is the guest that says what is missing.
    async fn lend_iptables(&self) {
        let MachineState::Running(machine) = &mut *self.machine.lock().await else { return };
        if let Err(err) = machine.share.lend(IPTABLES, &self.options.config.agent.kata.iptables) {
            tracing::warn!("the guest gets no iptables from this installation: {}", machine::chain(&err));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lent_is_where_the_guest_looks() {
        assert_eq!(format!("{}/{IPTABLES}", kata_types::GUEST_SHARE_DIR), kata_types::GUEST_IPTABLES_DIR);
        assert!(kata_types::ContainerId::new(IPTABLES).is_err(), "no container's");
    }
}
