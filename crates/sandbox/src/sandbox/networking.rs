//! The sandbox's network, from where the sandbox sees it.

use std::sync::Arc;

use kata_agent_client::AgentClient;
use kata_network::Watch;
use kata_oci::{Hook, Spec, State};
use tokio::sync::watch;

use super::{MachineState, Sandbox};
use crate::error::SandboxError;
use crate::hooks;
use crate::machine::Machine;
use crate::network::{self, NetworkError};

impl Sandbox {
    /// Begins to follow changes. What was there before them is seen by the first look.
    pub(super) fn follow_network(self: &Arc<Self>) -> Result<(), SandboxError> {
        let Some(network) = &self.network else { return Ok(()) };
        let watch = network.try_lock().map_err(|_| ()).map(|network| Watch::new(network.netns()));
        let Ok(watch) = watch else { unreachable!("nobody else knows this sandbox yet") };
        let watch = watch.map_err(NetworkError::from)?;
        tokio::spawn(network::follow(Arc::downgrade(self), watch));
        Ok(())
    }

    /// Begins to pass on what calls the pod's localhost. A sandbox of one container has nobody who would.
    pub(super) async fn forward_localhost(&self, agent: AgentClient) {
        let Some(network) = &self.network else { return };
        match network.lock().await.netns().try_clone() {
            Ok(netns) => drop(tokio::spawn(network::forward(netns, agent, self.death()))),
            Err(err) => tracing::warn!("ports of the pod's localhost cannot be forwarded: {err}"),
        }
    }

    /// Gives the guest what is in the namespace now; whether anything was to be done. Without a machine there is nobody to
    /// give it to, and with one it is given before the first container starts.
    pub(crate) async fn sync_network(&self) -> Result<bool, SandboxError> {
        match &mut *self.machine.lock().await {
            MachineState::Running(machine) if self.death.borrow().is_none() => self.sync_with(machine).await,
            _ => Ok(false),
        }
    }

    /// The same, without waiting for the machine where nothing has changed.
    pub(super) async fn sync_network_if_changed(&self) -> Result<(), SandboxError> {
        let Some(network) = &self.network else { return Ok(()) };
        let behind = network.lock().await.is_behind()?;
        if behind {
            self.sync_network().await?;
        } else if let Ok(agent) = self.agent() {
            network.lock().await.answer_names(&agent);
        }
        Ok(())
    }

    pub(super) async fn sync_with(&self, machine: &mut Machine) -> Result<bool, SandboxError> {
        let Some(network) = &self.network else { return Ok(false) };
        let mut network = network.lock().await;
        let done = network.sync(machine).await;
        network.answer_names(&machine.agent);
        if !matches!(done, Ok(false)) {
            let record = network.record();
            self.save(|s| s.network = record)?;
        }
        Ok(done?)
    }

    /// Tells the network where the sandbox's containers find their name servers.
    pub(super) async fn look_names_up_with(&self, spec: &Spec) {
        let Some(network) = &self.network else { return };
        let mount = spec.mounts.iter().find(|m| m.destination == "/etc/resolv.conf");
        network.lock().await.set_resolv_conf(mount.map(|m| m.source.clone().into()));
    }

    /// Takes back what was done to the engine's interfaces, after the machine has gone.
    pub(super) async fn leave_network(&self) {
        if let Some(network) = &self.network {
            network.lock().await.tidy();
        }
    }

    /// Hooks run where the engine is, and not where the container's network is.
    pub(super) async fn run_hooks(
        &self,
        point: &'static str,
        hooks: &[Hook],
        state: &State,
    ) -> Result<(), hooks::HookError> {
        if hooks.is_empty() {
            return Ok(());
        }
        let host = match &self.network {
            Some(network) => Some(network.lock().await.host()),
            None => None,
        };
        hooks::run(point, hooks, state, host.as_deref()).await
    }

    /// What ended the sandbox, once something has.
    pub(crate) fn death(&self) -> watch::Receiver<Option<String>> {
        self.death.subscribe()
    }
}
