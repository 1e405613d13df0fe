//! The end of execs, containers, and the machine.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kata_agent_client::AgentClient;
use kata_oci::Status;
use kata_proto::agent as pb;
use kata_types::ContainerId;

use super::{MachineState, Sandbox, lock};
use crate::error::SandboxError;
use crate::events::Event;
use crate::machine;
use crate::process::Exit;

const KILL: u32 = nix::sys::signal::Signal::SIGKILL as u32;

/// How long output that nobody reads holds up a deletion.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(10);

impl Sandbox {
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
                    self.kill(container, "", KILL, false).await.or_else(ignore_finished)?;
                    process.wait().await;
                }
                Status::Created => {
                    process.finish(Exit { status: 0, ..Exit::lost("never started") });
                }
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

    pub(super) async fn delete_container(self: &Arc<Self>, container: &str) -> Result<(), SandboxError> {
        let id = ContainerId::new(container)?;
        let mut machine = self.machine.lock().await;
        let Some(c) = lock(&self.containers).remove(container) else {
            return Err(SandboxError::NotFound(format!("container {container}")));
        };
        let last = lock(&self.containers).is_empty();
        if let MachineState::Running(m) = &mut *machine {
            // The last one goes with its machine, which ends whatever is left in the guest.
            if !last && !c.stands && self.death.borrow().is_none() {
                remove_in_guest(&m.agent, container).await;
                m.unplug_disks(&id).await;
            }
            if let Err(err) = m.remove_volumes(&id) {
                tracing::warn!("{}", machine::chain(&err));
            }
        }
        if last && self.death.borrow().is_none() && leaves_nothing_behind(&c.spec) {
            self.leave_machine(&mut machine).await;
        } else if last {
            self.stop_machine(&mut machine).await;
        } else {
            self.confine_again();
            self.shrink_later();
        }
        self.save(|s| drop(s.containers.remove(container)))?;
        if let Some(h) = &c.spec.hooks {
            let state = self.oci_state(container, Status::Stopped, 0, &c.bundle, &c.spec);
            // The container is gone: a failing hook is told, and the next one runs (runtime.md, "Lifecycle" 13).
            for hook in &h.poststop {
                if let Err(err) = self.run_hooks("poststop", std::slice::from_ref(hook), &state).await {
                    tracing::error!("{err}");
                }
            }
        }
        Ok(())
    }

    /// Ends a machine in which nothing runs any more: there is nothing to wait for but the files.
    async fn leave_machine(&self, state: &mut MachineState) {
        let MachineState::Running(machine) = std::mem::replace(state, MachineState::Gone) else { return };
        self.death.send_replace(Some("it has been shut down".into()));
        let (left, going) = machine.leave().await;
        if let Err(err) = left {
            tracing::warn!("{}", machine::chain(&err));
        }
        *lock(&self.going) = Some(going);
    }

    pub(super) async fn stop_machine(&self, state: &mut MachineState) {
        let (MachineState::Running(machine) | MachineState::Nameless(machine)) =
            std::mem::replace(state, MachineState::Gone)
        else {
            return;
        };
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

    /// Ends the sandbox if nothing is left in it; whether it did. `by` is the container or sandbox on whose behalf that is
    /// asked: a sandbox that still waits for its first container ends by its own id only.
    pub async fn shutdown_if_empty(self: &Arc<Self>, by: &str) -> bool {
        // A container that is being made holds this.
        let mut machine = self.machine.lock().await;
        let unused = !self.used.load(Ordering::Relaxed);
        if !lock(&self.containers).is_empty() || (unused && by != self.options.id.as_str()) {
            return false;
        }
        self.stop_machine(&mut machine).await;
        true
    }

    /// Ends a pod's processes and its machine: containers are killed first, then what stands for the pod. How they ended can be
    /// asked until they are deleted. `within`: how long the containers may take.
    pub async fn stop(self: &Arc<Self>, within: Duration) {
        let ids = |stands: bool| -> Vec<String> {
            lock(&self.containers).iter().filter(|(_, c)| c.stands == stands).map(|(id, _)| id.clone()).collect()
        };
        let containers = async {
            for id in ids(false) {
                if let Err(err) = self.kill(&id, "", KILL, true).await.or_else(ignore_finished) {
                    tracing::warn!("container {id} goes with its machine, and could not be killed before: {err}");
                }
                if let Ok(process) = self.process(&id, "") {
                    process.wait().await;
                }
            }
        };
        if tokio::time::timeout(within, containers).await.is_err() {
            tracing::warn!("containers go with their machine: they did not end within {within:?}");
        }
        for id in ids(true) {
            // It ends by this, whatever the machine does.
            drop(self.kill(&id, "", KILL, false).await);
        }
        self.shutdown().await;
        self.leave_network().await;
    }

    /// Ends everything: what still runs is killed.
    pub async fn shutdown(self: &Arc<Self>) {
        let mut machine = self.machine.lock().await;
        self.stop_machine(&mut machine).await;
    }
}

/// Whether all that a container's processes have written has reached the host when its first process has ended. The others
/// ended before it, if they are in a pid namespace of its own (pid_namespaces(7)), and the guest's kernel writes to the
/// share at once, or, what was written through a mapping, when that is unmapped (fs/fuse/file.c, `fuse_vma_close`).
fn leaves_nothing_behind(spec: &kata_oci::Spec) -> bool {
    let namespaces = spec.linux.iter().flat_map(|l| &l.namespaces);
    namespaces.into_iter().any(|ns| ns.kind == "pid" && ns.path.is_empty())
}

fn ignore_finished(err: SandboxError) -> Result<(), SandboxError> {
    if matches!(err, SandboxError::Finished) { Ok(()) } else { Err(err) }
}

pub(super) async fn remove_in_guest(agent: &AgentClient, container: &str) {
    let mut request = pb::RemoveContainerRequest::new();
    request.container_id = container.to_owned();
    if let Err(err) = agent.calls().remove_container(request).await {
        tracing::warn!(container, "the guest could not remove the container: {err}");
    }
}
