//! A client of the daemon's Task service.

use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::api;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use kata_oci::Status;
use kata_sandbox::task_socket;
use ttrpc::context::with_duration;

use crate::error::CliError;

/// Longer than anything the daemon does on request: it has deadlines of its own.
const ANSWER_WITHIN: Duration = Duration::from_secs(300);

/// A connection to a daemon.
pub struct Daemon(TaskClient);

/// What the daemon says of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskState {
    /// Where it is.
    pub status: Status,
    /// The pid that stands for it.
    pub pid: i32,
    /// Its exit status, once stopped.
    pub exit_status: i32,
}

/// A container's counters, worded as this host's cgroups are.
pub enum Stats {
    /// For v1 and hybrid hosts.
    V1(containerd_shim_protos::cgroups::metrics::Metrics),
    /// For unified hosts.
    V2(containerd_shim_protos::cgroups_v2::metrics::Metrics),
}

/// Why a call failed: whether the thing is not there matters to callers, the rest is words.
pub enum Failure {
    /// The daemon does not know it, or it has ended.
    NotFound(String),
    /// The connection has ended without an answer.
    Lost(String),
    /// Anything else.
    Other(String),
}

impl From<Failure> for CliError {
    fn from(f: Failure) -> CliError {
        match f {
            Failure::NotFound(text) | Failure::Other(text) => CliError::Daemon(text),
            Failure::Lost(text) => CliError::Lost(text),
        }
    }
}

fn failure(err: ttrpc::Error) -> Failure {
    match err {
        ttrpc::Error::RpcStatus(status) if status.code() == ttrpc::Code::NOT_FOUND => {
            Failure::NotFound(status.message().to_owned())
        }
        ttrpc::Error::RpcStatus(status) => Failure::Other(status.message().to_owned()),
        other => Failure::Lost(format!("the sandbox's daemon is gone: {other}")),
    }
}

macro_rules! request {
    ($kind:ident { $($field:ident: $value:expr),* $(,)? }) => {{
        let mut request = api::$kind::new();
        $(request.$field = $value;)*
        request
    }};
}

impl Daemon {
    /// Connects; `None` when no daemon serves there.
    pub async fn connect(run_dir: &Path) -> Option<Daemon> {
        let address = format!("unix://{}", task_socket(run_dir).display());
        Some(Daemon(TaskClient::new(Client::connect(&address).await.ok()?)))
    }

    /// The service itself, with the deadline for a call.
    pub fn task(&self) -> (&TaskClient, ttrpc::context::Context) {
        (&self.0, with_duration(ANSWER_WITHIN))
    }

    /// A process's state; an empty exec id is the container's first process.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn state(&self, id: &str, exec: &str) -> Result<TaskState, Failure> {
        use containerd_shim_protos::types::task::Status as S;
        let (task, context) = self.task();
        let r = task.state(context, &request!(StateRequest { id: id.to_owned(), exec_id: exec.to_owned() })).await;
        let r = r.map_err(failure)?;
        let status = match r.status.enum_value_or_default() {
            S::CREATED => Status::Created,
            S::RUNNING => Status::Running,
            S::PAUSED | S::PAUSING => Status::Paused,
            S::STOPPED => Status::Stopped,
            S::UNKNOWN => Status::Creating,
        };
        Ok(TaskState { status, pid: r.pid.cast_signed(), exit_status: r.exit_status.cast_signed() })
    }

    /// Creates the container, with the stdio of a shim that has attached.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn create(&self, id: &str, bundle: &Path, terminal: bool) -> Result<(), Failure> {
        let (task, context) = self.task();
        let r = request!(CreateTaskRequest {
            id: id.to_owned(),
            bundle: bundle.to_string_lossy().into_owned(),
            terminal: terminal,
            stdin: kata_shim::ATTACHED.to_owned(),
        });
        task.create(context, &r).await.map_err(failure).map(drop)
    }

    /// Registers an exec, with the stdio of a shim that has attached.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn exec(&self, id: &str, exec: &str, process: &kata_oci::Process) -> Result<(), Failure> {
        let (task, context) = self.task();
        let value = serde_json::to_vec(process).map_err(|e| Failure::Other(e.to_string()))?;
        let r = request!(ExecProcessRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            terminal: process.terminal,
            stdin: kata_shim::ATTACHED.to_owned(),
            spec: Some(json_any("types.containerd.io/opencontainers/runtime-spec/1/Process", value)).into(),
        });
        task.exec(context, &r).await.map_err(failure).map(drop)
    }

    /// Starts a created process.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn start(&self, id: &str, exec: &str) -> Result<(), Failure> {
        let (task, context) = self.task();
        let r = request!(StartRequest { id: id.to_owned(), exec_id: exec.to_owned() });
        task.start(context, &r).await.map_err(failure).map(drop)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn kill(&self, id: &str, exec: &str, signal: u32, all: bool) -> Result<(), Failure> {
        let (task, context) = self.task();
        let r = request!(KillRequest { id: id.to_owned(), exec_id: exec.to_owned(), signal: signal, all: all });
        task.kill(context, &r).await.map_err(failure).map(drop)
    }

    /// Waits for a process's end; at most `limit`.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn wait(&self, id: &str, limit: Duration) -> Result<i32, Failure> {
        let r = request!(WaitRequest { id: id.to_owned() });
        let done = self.0.wait(with_duration(limit), &r).await.map_err(failure)?;
        Ok(done.exit_status.cast_signed())
    }

    /// Removes a container or an exec.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn delete(&self, id: &str, exec: &str) -> Result<i32, Failure> {
        let (task, context) = self.task();
        let r = request!(DeleteRequest { id: id.to_owned(), exec_id: exec.to_owned() });
        Ok(task.delete(context, &r).await.map_err(failure)?.exit_status.cast_signed())
    }

    /// Ends the sandbox if no container is left in it, and this connection, which the daemon waits for. On behalf of the container
    /// `id`.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn shutdown_if_empty(self, id: &str) -> Result<(), Failure> {
        let (task, context) = self.task();
        let r = request!(ShutdownRequest { id: id.to_owned(), now: false });
        task.shutdown(context, &r).await.map_err(failure).map(drop)
    }

    /// Freezes or thaws.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn freeze(&self, id: &str, freeze: bool) -> Result<(), Failure> {
        let (task, context) = self.task();
        if freeze {
            task.pause(context, &request!(PauseRequest { id: id.to_owned() })).await.map_err(failure).map(drop)
        } else {
            task.resume(context, &request!(ResumeRequest { id: id.to_owned() })).await.map_err(failure).map(drop)
        }
    }

    /// Pids that stand for the container's processes.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn pids(&self, id: &str) -> Result<Vec<u32>, Failure> {
        let (task, context) = self.task();
        let r = task.pids(context, &request!(PidsRequest { id: id.to_owned() })).await.map_err(failure)?;
        Ok(r.processes.iter().map(|p| p.pid).collect())
    }

    /// Changes limits.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn update(&self, id: &str, resources: &kata_oci::Resources) -> Result<(), Failure> {
        let (task, context) = self.task();
        let value = serde_json::to_vec(resources).map_err(|e| Failure::Other(e.to_string()))?;
        let any = json_any("types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", value);
        let r = request!(UpdateTaskRequest { id: id.to_owned(), resources: Some(any).into() });
        task.update(context, &r).await.map_err(failure).map(drop)
    }

    /// The container's counters.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn stats(&self, id: &str) -> Result<Stats, Failure> {
        use containerd_shim_protos::protobuf::Message;
        let (task, context) = self.task();
        let r = task.stats(context, &request!(StatsRequest { id: id.to_owned() })).await.map_err(failure)?;
        let value = &r.stats.value;
        let parsed = match r.stats.type_url.as_str() {
            "io.containerd.cgroups.v1.Metrics" => Message::parse_from_bytes(value).map(Stats::V1),
            "io.containerd.cgroups.v2.Metrics" => Message::parse_from_bytes(value).map(Stats::V2),
            other => {
                return Err(Failure::Other(format!("the daemon's statistics are of a kind unknown here: {other:?}")));
            }
        };
        parsed.map_err(|e| Failure::Other(e.to_string()))
    }
}

fn json_any(name: &str, value: Vec<u8>) -> containerd_shim_protos::protobuf::well_known_types::any::Any {
    let mut any = containerd_shim_protos::protobuf::well_known_types::any::Any::new();
    name.clone_into(&mut any.type_url);
    any.value = value;
    any
}
