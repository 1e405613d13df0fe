//! The container that stands for a pod's sandbox: the engine asks for it as for any other, and it does nothing. It has no process
//! in the guest and no root file system there; what the engine sees of it is made up here.

use std::sync::Arc;
use std::time::SystemTime;

use kata_oci::{Spec, Status};
use kata_types::ContainerId;

use super::{Sandbox, lock};
use crate::error::SandboxError;
use crate::process::{Exit, Process};

impl Sandbox {
    /// Whether a container only stands for the sandbox.
    pub(super) fn stands(&self, container: &str) -> bool {
        lock(&self.containers).get(container).is_some_and(|c| c.stands)
    }

    /// Refuses what needs a process in the guest.
    pub(super) fn in_guest(&self, container: &str, operation: &'static str) -> Result<(), SandboxError> {
        if self.stands(container) {
            return Err(SandboxError::Stands { operation, container: container.to_owned() });
        }
        Ok(())
    }

    /// What is done on the host for it. The machine runs.
    pub(super) async fn begin_pause(
        &self,
        id: &ContainerId,
        spec: &Spec,
        bundle: &std::path::Path,
        pid: i32,
    ) -> Result<(), SandboxError> {
        let Some(h) = &spec.hooks else { return Ok(()) };
        let state = self.oci_state(id.as_str(), Status::Creating, pid, bundle, spec);
        self.run_hooks("prestart", &h.prestart, &state).await?;
        Ok(self.run_hooks("createRuntime", &h.create_runtime, &state).await?)
    }

    /// Lets it end with its machine.
    pub(super) fn supervise_pause(self: &Arc<Self>, process: Arc<Process>) {
        let (me, mut death) = (Arc::clone(self), self.death.subscribe());
        tokio::spawn(async move {
            let reason = tokio::select! {
                _ = process.wait() => return,
                reason = death.wait_for(Option::is_some) => reason.ok().and_then(|r| r.clone()),
            };
            me.end_pause(&process, Exit::lost(&reason.unwrap_or_default()));
        });
    }

    /// What a signal does to it: the pause program ends with those that ask it to, and its kernel keeps it from all
    /// others, as any first process of a pid namespace (pid_namespaces(7)).
    pub(super) fn signal_pause(&self, process: &Process, signal: u32) {
        if matches!(signal.cast_signed(), number::KILL | number::TERM | number::INT) {
            let status = 128 + signal.cast_signed();
            self.end_pause(process, Exit { status, at: SystemTime::now(), reason: None });
        }
    }

    /// Tells its end, once.
    fn end_pause(&self, process: &Process, exit: Exit) {
        if process.finish(exit.clone()) {
            self.tell_exit(process, &exit);
        }
    }
}

/// Signal numbers as they are on the wire.
mod number {
    use nix::sys::signal::Signal;

    pub const KILL: i32 = Signal::SIGKILL as i32;
    pub const TERM: i32 = Signal::SIGTERM as i32;
    pub const INT: i32 = Signal::SIGINT as i32;
}
