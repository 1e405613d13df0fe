//! The engine of a daemon, which a sandbox of containerd's Sandbox API gets only when it is created.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use kata_sandbox::{Sandbox, SandboxError};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use ttrpc::{Code, Result};

use crate::convert;

/// How long a daemon's end waits for its last events to be taken.
const LAST_EVENTS_WITHIN: Duration = Duration::from_secs(2);

/// The sandbox that a daemon serves, and the way of its events.
#[derive(Default)]
pub struct Engine {
    sandbox: OnceLock<Arc<Sandbox>>,
    events: Mutex<Option<Publishing>>,
}

/// Events on their way.
pub struct Publishing {
    /// Runs until it is stopped or the sandbox is gone.
    pub task: JoinHandle<()>,
    /// Stops it behind what is queued.
    pub stop: oneshot::Sender<()>,
}

impl Engine {
    /// Serves this sandbox from now on. There is one in a daemon's life.
    pub fn serve(&self, sandbox: Arc<Sandbox>, events: Publishing) {
        if self.sandbox.set(sandbox).is_ok() {
            *self.events.lock().unwrap_or_else(PoisonError::into_inner) = Some(events);
        }
    }

    /// The sandbox.
    ///
    /// # Errors
    /// That it has not been created yet, in ttrpc's terms.
    pub fn sandbox(&self) -> Result<&Arc<Sandbox>> {
        self.sandbox.get().ok_or_else(|| {
            convert::status(
                Code::FAILED_PRECONDITION,
                "there is no sandbox yet: CreateSandbox of the Sandbox API comes first",
            )
        })
    }

    /// The engine's result in ttrpc's terms; where the guest was lost, with the reason for that.
    ///
    /// # Errors
    /// The engine's.
    pub async fn explained<T>(&self, result: std::result::Result<T, SandboxError>) -> Result<T> {
        match result {
            Ok(value) => Ok(value),
            Err(err) => Err(failed(self.sandbox()?.explained(err).await)),
        }
    }

    /// Waits, within bounds, until what has happened has been told.
    pub async fn told(&self) {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Publishing { task, stop }) = events else { return };
        // It may have ended; then there is nothing to stop.
        let _ = stop.send(());
        drop(tokio::time::timeout(LAST_EVENTS_WITHIN, task).await);
    }
}

/// A failure in ttrpc's terms.
pub fn failed(err: SandboxError) -> ttrpc::Error {
    tracing::debug!("a request failed: {err}");
    convert::error(&err)
}
