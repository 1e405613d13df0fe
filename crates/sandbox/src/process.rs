//! One process of a container, as the host sees it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use kata_agent_client::{AgentClient, CallError};
use kata_oci::Status;
use kata_proto::agent as pb;
use kata_types::EXIT_LOST;
use tokio::sync::watch;

use crate::stdio::{Pumps, StdioSpec};

/// After a process has ended, its output may still be under way: its exit is told after that, but not for ever after.
const OUTPUT_GRACE: Duration = Duration::from_millis(500);
/// How long to wait for a reason after the guest was lost.
pub(crate) const REASON_WITHIN: Duration = Duration::from_secs(2);

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// As a shell says it: the exit code, or 128 plus the signal.
    pub status: i32,
    /// When.
    pub at: SystemTime,
    /// Set where the process did not end by itself: what ended it.
    pub reason: Option<String>,
}

/// A process: a container's first, or an exec.
pub struct Process {
    /// The container.
    pub container: String,
    /// Empty: the first process.
    pub exec: String,
    /// The host's process that stands for it.
    pub pid: i32,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// What the caller named as its stdio, for `state`.
    pub addresses: [String; 3],
    status: Mutex<Status>,
    exit: watch::Sender<Option<Exit>>,
    pumps: Mutex<Option<Arc<Pumps>>>,
    pending: Mutex<Option<(kata_oci::Process, StdioSpec)>>,
}

impl Process {
    /// A new one that waits to be started.
    pub fn new(container: &str, exec: &str, pid: i32, terminal: bool, addresses: [String; 3]) -> Process {
        Process {
            container: container.to_owned(),
            exec: exec.to_owned(),
            pid,
            terminal,
            addresses,
            status: Mutex::new(Status::Created),
            exit: watch::channel(None).0,
            pumps: Mutex::new(None),
            pending: Mutex::new(None),
        }
    }

    /// An exec that is registered only.
    pub fn with_pending(self, process: kata_oci::Process, stdio: StdioSpec) -> Process {
        *lock(&self.pending) = Some((process, stdio));
        self
    }

    /// Takes what an exec is to be started with; once.
    pub fn take_pending(&self) -> Option<(kata_oci::Process, StdioSpec)> {
        lock(&self.pending).take()
    }

    /// Gives an exec that is registered only its terminal's first size; false when there is no such.
    pub fn resize_pending(&self, rows: u32, columns: u32) -> bool {
        let mut pending = lock(&self.pending);
        let Some((process, _)) = pending.as_mut() else { return false };
        process.console_size = Some(kata_oci::ConsoleSize { height: rows, width: columns });
        true
    }

    /// Its state.
    pub fn status(&self) -> Status {
        *lock(&self.status)
    }

    /// Moves on; a stopped process stays stopped.
    pub fn set_status(&self, to: Status) {
        let mut s = lock(&self.status);
        if *s != Status::Stopped {
            *s = to;
        }
    }

    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        self.exit.borrow().clone()
    }

    /// Waits for its end.
    pub async fn wait(&self) -> Exit {
        let mut rx = self.exit.subscribe();
        let ended = rx.wait_for(Option::is_some).await;
        // The sender lives in `self`.
        ended.ok().and_then(|e| e.clone()).unwrap_or_else(|| Exit::lost("its sandbox was dropped"))
    }

    /// Its pumps, once it has some.
    pub fn pumps(&self) -> Option<Arc<Pumps>> {
        lock(&self.pumps).clone()
    }

    /// Hands the pumps over.
    pub fn set_pumps(&self, pumps: Pumps) {
        *lock(&self.pumps) = Some(Arc::new(pumps));
    }

    /// Records the end, if there is none yet: then true.
    pub fn finish(&self, exit: Exit) -> bool {
        *lock(&self.status) = Status::Stopped;
        self.exit.send_if_modified(|e| {
            let first = e.is_none();
            if first {
                *e = Some(exit);
            }
            first
        })
    }

    /// Follows the process in the guest to its end. `death` says why the machine ended, if it does.
    pub async fn follow(&self, agent: &AgentClient, mut death: watch::Receiver<Option<String>>) -> Exit {
        let mut request = pb::WaitProcessRequest::new();
        request.container_id.clone_from(&self.container);
        request.exec_id.clone_from(&self.exec);
        let answer = tokio::select! {
            answer = agent.calls().wait_process(request) => Some(answer),
            _ = death.wait_for(Option::is_some) => None,
        };
        match answer {
            Some(Ok(answer)) => {
                let exit = Exit { status: answer.status, at: SystemTime::now(), reason: None };
                if let Some(pumps) = self.pumps() {
                    drop(tokio::time::timeout(OUTPUT_GRACE, pumps.drained()).await);
                }
                exit
            }
            Some(Err(err @ CallError::Refused { .. })) => Exit::lost(&format!("the agent cannot tell: {err}")),
            Some(Err(err)) => {
                let reason = tokio::time::timeout(REASON_WITHIN, death.wait_for(Option::is_some)).await;
                let reason = reason.ok().and_then(|r| r.ok().and_then(|r| r.clone()));
                Exit::lost(&reason.unwrap_or_else(|| err.to_string()))
            }
            None => Exit::lost(&death.borrow().clone().unwrap_or_default()),
        }
    }
}

impl Exit {
    /// The process went down with its machine.
    pub fn lost(reason: &str) -> Exit {
        Exit { status: EXIT_LOST, at: SystemTime::now(), reason: Some(reason.to_owned()) }
    }
}

fn lock<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}
