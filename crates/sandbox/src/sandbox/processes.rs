//! The processes of a container: its first one and execs.

use std::sync::Arc;

use kata_agent_client::CallError;
use kata_oci::Status;
use kata_proto::agent as pb;
use kata_types::ExecId;
use protobuf::MessageField;

use super::{Sandbox, lock};
use crate::convert;
use crate::error::SandboxError;
use crate::events::Event;
use crate::process::{Exit, Process, REASON_WITHIN};
use crate::stdio::{Pumps, StdioSpec};

impl Sandbox {
    /// Starts a container's first process, or a registered exec. Returns the pid that stands for it.
    ///
    /// # Errors
    /// [`SandboxError`]; where the program cannot be run, the text is runc's.
    pub async fn start_process(self: &Arc<Self>, container: &str, exec: &str) -> Result<i32, SandboxError> {
        let err = match self.begin_process(container, exec).await {
            Ok(pid) => return Ok(pid),
            Err(err) => self.explained(err).await,
        };
        // Whoever is told of a sandbox that is gone finds the container ended.
        if exec.is_empty()
            && matches!(err, SandboxError::Dead(_))
            && let Ok(process) = self.process(container, "")
        {
            drop(tokio::time::timeout(REASON_WITHIN, process.wait()).await);
        }
        Err(err)
    }

    async fn begin_process(self: &Arc<Self>, container: &str, exec: &str) -> Result<i32, SandboxError> {
        let process = self.process(container, exec)?;
        let what = || if exec.is_empty() { format!("container {container}") } else { format!("exec {exec}") };
        if process.status() != Status::Created {
            let is = process.status().to_string();
            return Err(SandboxError::State { operation: "start", what: what(), is });
        }
        let agent = self.agent()?;
        if exec.is_empty() {
            // Engines attach networks between create and start.
            self.sync_network_if_changed().await?;
            if !self.stands(container) {
                let mut request = pb::StartContainerRequest::new();
                request.container_id = container.to_owned();
                agent.calls().start_container(request).await?;
            }
            process.set_status(Status::Running);
            self.emit(Event::Started { container: container.to_owned(), pid: process.pid });
            self.poststart(container, &process).await;
            return Ok(process.pid);
        }
        let Some((spec, stdio)) = process.take_pending() else {
            return Err(SandboxError::State { operation: "start", what: what(), is: "being started".into() });
        };
        let started = async {
            let stdio = stdio.open()?;
            let mut request = pb::ExecProcessRequest::new();
            request.container_id = container.to_owned();
            request.exec_id = exec.to_owned();
            request.process = MessageField::some(convert::process(&spec));
            request.stdio_streams = stdio.streams;
            agent.calls().exec_process(request).await?;
            Ok::<_, SandboxError>(Pumps::start(stdio, &agent, container, exec).await?)
        };
        match started.await {
            Ok(pumps) => process.set_pumps(pumps),
            Err(err) => {
                // It never ran; the caller gets the error itself. 127 is what a shell says of such a command.
                process.finish(Exit { status: 127, at: std::time::SystemTime::now(), reason: None });
                return Err(err);
            }
        }
        process.set_status(Status::Running);
        self.emit(Event::ExecStarted { container: container.to_owned(), exec: exec.to_owned(), pid: process.pid });
        self.supervise(Arc::clone(&process))?;
        Ok(process.pid)
    }

    pub(super) async fn poststart(&self, container: &str, process: &Process) {
        let found = lock(&self.containers).get(container).map(|c| (c.spec.clone(), c.bundle.clone()));
        let Some((spec, bundle)) = found else { return };
        let Some(h) = &spec.hooks else { return };
        let state = self.oci_state(container, Status::Running, process.pid, &bundle, &spec);
        // The process runs already: a failing hook is told, not undone (runtime.md, "Lifecycle" 9).
        if let Err(err) = self.run_hooks("poststart", &h.poststart, &state).await {
            tracing::error!("{err}");
        }
    }

    /// Registers an exec.
    ///
    /// # Errors
    /// The container is not there or not running, or the id is in use.
    pub fn add_exec(
        &self,
        container: &str,
        exec: &str,
        process: kata_oci::Process,
        stdio: StdioSpec,
        addresses: [String; 3],
        pid: i32,
    ) -> Result<(), SandboxError> {
        let exec_id = ExecId::new(exec)?;
        self.in_guest(container, "execute a process in")?;
        let mut containers = lock(&self.containers);
        let c = containers.get_mut(container);
        let c = c.ok_or_else(|| SandboxError::NotFound(format!("container {container}")))?;
        if c.init.status() == Status::Stopped {
            let what = format!("container {container}");
            return Err(SandboxError::State { operation: "exec in", what, is: "stopped".into() });
        }
        if c.execs.contains_key(exec) {
            return Err(SandboxError::Exists(format!("exec {exec_id}")));
        }
        let p = Process::new(container, exec, pid, stdio.terminal, addresses).with_pending(process, stdio);
        c.execs.insert(exec.to_owned(), Arc::new(p));
        drop(containers);
        self.emit(Event::ExecAdded { container: container.to_owned(), exec: exec.to_owned() });
        Ok(())
    }

    /// Sends a signal to one process, or with `all` to every process of the container.
    ///
    /// # Errors
    /// [`SandboxError::Finished`] when it has ended already.
    pub async fn kill(&self, container: &str, exec: &str, signal: u32, all: bool) -> Result<(), SandboxError> {
        let process = self.process(container, exec)?;
        if process.exit().is_some() && !all {
            return Err(SandboxError::Finished);
        }
        if !exec.is_empty() && process.status() == Status::Created {
            process.finish(Exit { status: 128 + signal.cast_signed(), ..Exit::lost("killed before it was started") });
            return Ok(());
        }
        if self.stands(container) {
            self.signal_pause(&process, signal);
            return Ok(());
        }
        let agent = match self.agent() {
            Ok(agent) => agent,
            // It went down with its machine: that is as killed as can be.
            Err(SandboxError::Dead(_)) if all => return Ok(()),
            Err(SandboxError::Dead(_)) => return Err(SandboxError::Finished),
            Err(err) => return Err(err),
        };
        let mut targets = vec![exec.to_owned()];
        if all && let Some(c) = lock(&self.containers).get(container) {
            targets.extend(c.execs.keys().cloned());
        }
        for target in targets {
            let mut request = pb::SignalProcessRequest::new();
            request.container_id = container.to_owned();
            request.exec_id = target;
            request.signal = signal;
            match agent.calls().signal_process(request).await {
                Ok(_) => {}
                Err(CallError::Refused { not_found: true, .. }) if all => {}
                Err(CallError::Refused { not_found: true, .. }) => {
                    return Err(SandboxError::Finished);
                }
                // It went down with its machine just now, which is known a moment later.
                Err(CallError::Lost { .. }) if self.known_death(REASON_WITHIN).await.is_some() => {
                    return if all { Ok(()) } else { Err(SandboxError::Finished) };
                }
                Err(err) => return Err(err.into()),
            }
        }
        Ok(())
    }

    /// Every process of a container that runs, by the host's pid that stands for it: `(pid, exec id)`.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`].
    pub fn processes(&self, container: &str) -> Result<Vec<(i32, String)>, SandboxError> {
        let containers = lock(&self.containers);
        let c = containers.get(container).ok_or_else(|| SandboxError::NotFound(format!("container {container}")))?;
        let all = std::iter::once(&c.init).chain(c.execs.values());
        Ok(all.filter(|p| p.exit().is_none()).map(|p| (p.pid, p.exec.clone())).collect())
    }

    /// The guest's own list of a container's processes; `format` is "table" or "json".
    ///
    /// # Errors
    /// [`SandboxError`].
    pub async fn guest_processes(
        &self,
        container: &str,
        format: &str,
        args: Vec<String>,
    ) -> Result<Vec<u8>, SandboxError> {
        self.process(container, "")?;
        self.in_guest(container, "list the processes of")?;
        let mut request = pb::ListProcessesRequest::new();
        request.container_id = container.to_owned();
        request.format = format.to_owned();
        request.args = args;
        Ok(self.agent()?.calls().list_processes(request).await?.process_list)
    }

    /// Tells a terminal's size, in characters.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub async fn resize(&self, container: &str, exec: &str, rows: u32, columns: u32) -> Result<(), SandboxError> {
        let process = self.process(container, exec)?;
        if process.status() == Status::Stopped || self.stands(container) || process.resize_pending(rows, columns) {
            return Ok(());
        }
        let mut request = pb::TtyWinResizeRequest::new();
        request.container_id = container.to_owned();
        request.exec_id = exec.to_owned();
        (request.row, request.column) = (rows, columns);
        self.agent()?.calls().tty_win_resize(request).await?;
        Ok(())
    }

    /// Ends a process's stdin.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub async fn close_stdin(&self, container: &str, exec: &str) -> Result<(), SandboxError> {
        let process = self.process(container, exec)?;
        if self.stands(container) {
            return Ok(());
        }
        // Through the stream, behind what was written to it: a call would overtake that.
        if process.pumps().is_some_and(|pumps| pumps.close_stdin()) || process.exit().is_some() {
            return Ok(());
        }
        let mut request = pb::CloseStdinRequest::new();
        request.container_id = container.to_owned();
        request.exec_id = exec.to_owned();
        match self.agent()?.calls().close_stdin(request).await {
            Ok(_) | Err(CallError::Refused { not_found: true, .. }) => Ok(()),
            Err(err) => Err(err.into()),
        }
    }
}
