//! containerd's Task service (v2 and v3: the same messages) over the engine.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::EnumOrUnknown;
use containerd_shim_protos::shim_async::Task;
use containerd_shim_protos::types::task::{ProcessInfo, Status as TaskStatus};
use kata_oci::Status;
use kata_sandbox::{CreateRequest, Sandbox, StdioSpec};
use tokio::sync::Notify;
use ttrpc::r#async::TtrpcContext;
use ttrpc::{Code, Result};

use crate::attach::{Attached, Attachments};
use crate::engine::{Engine, failed};
use crate::{convert, stats};

/// The service.
pub struct TaskService {
    engine: Arc<Engine>,
    attachments: Attachments,
    exit: Arc<Notify>,
    pid: i32,
}

impl TaskService {
    /// Over this engine; `exit` is notified when the daemon should end.
    pub fn new(engine: Arc<Engine>, attachments: Attachments, exit: Arc<Notify>) -> TaskService {
        TaskService { engine, attachments, exit, pid: std::process::id().cast_signed() }
    }

    /// stdio from addresses, or from a shim that has attached; and the pid that stands for the process.
    fn stdio(
        &self,
        ids: (&str, &str),
        terminal: bool,
        addresses: &[String; 3],
    ) -> Result<(StdioSpec, i32, Option<Attached>)> {
        if addresses[0].starts_with(crate::ATTACHED) {
            let mut attached = self
                .attachments
                .take(ids.0, ids.1)
                .ok_or_else(|| convert::status(Code::FAILED_PRECONDITION, "no shim has attached for this process"))?;
            let stdio = std::mem::take(&mut attached.stdio);
            let pid = attached.pid;
            return Ok((stdio, pid, Some(attached)));
        }
        let [stdin, stdout, stderr] = addresses;
        let stdio = StdioSpec::from_addresses(terminal, stdin, stdout, stderr)
            .map_err(|e| convert::status(Code::INVALID_ARGUMENT, e.to_string()))?;
        Ok((stdio, self.pid, None))
    }

    fn sandbox(&self) -> Result<&Arc<Sandbox>> {
        self.engine.sandbox()
    }

    fn bind(&self, attached: Option<Attached>, container: &str, exec: &str) {
        if let Some(attached) = attached
            && let Ok(process) = self.sandbox().and_then(|sandbox| sandbox.process(container, exec).map_err(failed))
        {
            // The shim may have died meanwhile; its connection's task then sees to the process.
            drop(attached.bound.send(process));
        }
    }
}

fn task_status(status: Status) -> TaskStatus {
    match status {
        Status::Creating => TaskStatus::UNKNOWN,
        Status::Created => TaskStatus::CREATED,
        Status::Running => TaskStatus::RUNNING,
        Status::Paused => TaskStatus::PAUSED,
        Status::Stopped => TaskStatus::STOPPED,
    }
}

#[async_trait]
impl Task for TaskService {
    async fn state(&self, _: &TtrpcContext, r: api::StateRequest) -> Result<api::StateResponse> {
        let process = self.sandbox()?.process(&r.id, &r.exec_id).map_err(failed)?;
        let mut out = api::StateResponse::new();
        out.id = r.id.clone();
        out.exec_id = r.exec_id;
        out.bundle = self.sandbox()?.bundle(&r.id).map_err(failed)?.to_string_lossy().into_owned();
        out.pid = process.pid.cast_unsigned();
        let mut status = process.status();
        if !out.exec_id.is_empty() && status == Status::Running {
            // An exec is frozen with its container.
            status = self.sandbox()?.process(&r.id, "").map_or(status, |init| match init.status() {
                Status::Paused => Status::Paused,
                _ => status,
            });
        }
        out.status = EnumOrUnknown::new(task_status(status));
        let [stdin, stdout, stderr] = process.addresses.clone();
        (out.stdin, out.stdout, out.stderr) = (stdin, stdout, stderr);
        out.terminal = process.terminal;
        if let Some(exit) = process.exit() {
            out.exit_status = exit.status.cast_unsigned();
            out.exited_at = convert::timestamp(exit.at);
        }
        Ok(out)
    }

    async fn create(&self, _: &TtrpcContext, r: api::CreateTaskRequest) -> Result<api::CreateTaskResponse> {
        if !r.checkpoint.is_empty() {
            return Err(convert::status(Code::UNIMPLEMENTED, "this version's sandbox cannot restore a checkpoint"));
        }
        let addresses = [r.stdin.clone(), r.stdout.clone(), r.stderr.clone()];
        let (stdio, pid, attached) = self.stdio((&r.id, ""), r.terminal, &addresses)?;
        let rootfs = r
            .rootfs
            .iter()
            .map(|m| kata_storage::RootfsMount {
                fstype: m.type_.clone(),
                source: m.source.clone(),
                options: m.options.clone(),
            })
            .collect();
        let request =
            CreateRequest { id: r.id.clone(), bundle: PathBuf::from(&r.bundle), rootfs, stdio, addresses, pid };
        let pid = self.engine.explained(self.sandbox()?.create(request).await).await?;
        self.bind(attached, &r.id, "");
        let mut out = api::CreateTaskResponse::new();
        out.pid = pid.cast_unsigned();
        Ok(out)
    }

    async fn start(&self, _: &TtrpcContext, r: api::StartRequest) -> Result<api::StartResponse> {
        let pid = self.sandbox()?.start_process(&r.id, &r.exec_id).await.map_err(failed)?;
        let mut out = api::StartResponse::new();
        out.pid = pid.cast_unsigned();
        Ok(out)
    }

    async fn delete(&self, _: &TtrpcContext, r: api::DeleteRequest) -> Result<api::DeleteResponse> {
        let (pid, exit) = self.engine.explained(self.sandbox()?.delete(&r.id, &r.exec_id).await).await?;
        let mut out = api::DeleteResponse::new();
        out.pid = pid.cast_unsigned();
        out.exit_status = exit.status.cast_unsigned();
        out.exited_at = convert::timestamp(exit.at);
        Ok(out)
    }

    async fn pids(&self, _: &TtrpcContext, r: api::PidsRequest) -> Result<api::PidsResponse> {
        let mut out = api::PidsResponse::new();
        for (pid, _) in self.sandbox()?.processes(&r.id).map_err(failed)? {
            let mut info = ProcessInfo::new();
            info.pid = pid.cast_unsigned();
            out.processes.push(info);
        }
        Ok(out)
    }

    async fn pause(&self, _: &TtrpcContext, r: api::PauseRequest) -> Result<api::Empty> {
        self.engine.explained(self.sandbox()?.pause(&r.id).await).await?;
        Ok(api::Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, r: api::ResumeRequest) -> Result<api::Empty> {
        self.engine.explained(self.sandbox()?.resume(&r.id).await).await?;
        Ok(api::Empty::new())
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: api::CheckpointTaskRequest) -> Result<api::Empty> {
        Err(convert::status(Code::UNIMPLEMENTED, "this version's sandbox cannot checkpoint a container"))
    }

    async fn kill(&self, _: &TtrpcContext, r: api::KillRequest) -> Result<api::Empty> {
        self.engine.explained(self.sandbox()?.kill(&r.id, &r.exec_id, r.signal, r.all).await).await?;
        Ok(api::Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, r: api::ExecProcessRequest) -> Result<api::Empty> {
        let process: kata_oci::Process = serde_json::from_slice(&r.spec.value).map_err(|e| {
            convert::status(Code::INVALID_ARGUMENT, format!("the process of exec {} is not valid: {e}", r.exec_id))
        })?;
        let addresses = [r.stdin.clone(), r.stdout.clone(), r.stderr.clone()];
        let (stdio, pid, attached) = self.stdio((&r.id, &r.exec_id), r.terminal, &addresses)?;
        let process = kata_oci::Process { terminal: r.terminal, ..process };
        self.sandbox()?.add_exec(&r.id, &r.exec_id, process, stdio, addresses, pid).map_err(failed)?;
        self.bind(attached, &r.id, &r.exec_id);
        Ok(api::Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, r: api::ResizePtyRequest) -> Result<api::Empty> {
        self.engine.explained(self.sandbox()?.resize(&r.id, &r.exec_id, r.height, r.width).await).await?;
        Ok(api::Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, r: api::CloseIORequest) -> Result<api::Empty> {
        if r.stdin {
            self.engine.explained(self.sandbox()?.close_stdin(&r.id, &r.exec_id).await).await?;
        }
        Ok(api::Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, r: api::UpdateTaskRequest) -> Result<api::Empty> {
        let resources: kata_oci::Resources = serde_json::from_slice(&r.resources.value)
            .map_err(|e| convert::status(Code::INVALID_ARGUMENT, format!("the resources are not valid: {e}")))?;
        self.engine.explained(self.sandbox()?.update(&r.id, &resources).await).await?;
        Ok(api::Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, r: api::WaitRequest) -> Result<api::WaitResponse> {
        let exit = self.sandbox()?.process(&r.id, &r.exec_id).map_err(failed)?.wait().await;
        let mut out = api::WaitResponse::new();
        out.exit_status = exit.status.cast_unsigned();
        out.exited_at = convert::timestamp(exit.at);
        Ok(out)
    }

    async fn stats(&self, _: &TtrpcContext, r: api::StatsRequest) -> Result<api::StatsResponse> {
        let counted = self.engine.explained(self.sandbox()?.stats(&r.id).await).await?;
        let mut out = api::StatsResponse::new();
        out.stats = Some(stats::metrics(&counted, stats::Shape::of_host())?).into();
        Ok(out)
    }

    async fn connect(&self, _: &TtrpcContext, r: api::ConnectRequest) -> Result<api::ConnectResponse> {
        let mut out = api::ConnectResponse::new();
        out.shim_pid = self.pid.cast_unsigned();
        if let Ok(process) = self.sandbox().and_then(|sandbox| sandbox.process(&r.id, "").map_err(failed)) {
            out.task_pid = process.pid.cast_unsigned();
        }
        out.version = env!("CARGO_PKG_VERSION").into();
        Ok(out)
    }

    async fn shutdown(&self, _: &TtrpcContext, r: api::ShutdownRequest) -> Result<api::Empty> {
        // containerd asks after every container of a pod; only the last one ends the sandbox.
        if r.now {
            self.sandbox()?.shutdown().await;
            self.exit.notify_one();
        } else if self.sandbox()?.shutdown_if_empty(&r.id).await {
            self.exit.notify_one();
        }
        Ok(api::Empty::new())
    }
}
