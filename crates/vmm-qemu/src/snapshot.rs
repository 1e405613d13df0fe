//! Saving a guest and beginning from what was saved: QEMU's migration, of everything but the memory. That is a memfd of
//! ours (`x-ignore-shared` makes QEMU leave it out), and is copied by ourselves.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use kata_vmm::{LaunchError, SaveError, snapshot};
use serde_json::{Value, json};
use tokio::sync::broadcast;

use crate::qmp::{Event, QmpError, wait_event};
use crate::vm::QemuVm;

/// How long writing the state may take; it takes some 10 ms.
const SAVE: Duration = Duration::from_secs(20);
/// The most that a state may have; a third of a megabyte is usual.
const MAX_STATE: u64 = 64 << 20;
/// The name of the stream's descriptor in QEMU.
const STREAM: &str = "snapshot";

fn capabilities() -> Value {
    let on = |name: &str| json!({ "capability": name, "state": true });
    json!({ "capabilities": [on("x-ignore-shared"), on("events")] })
}

/// How a migration has ended, if this event tells.
fn ended(event: &Event) -> Option<Result<(), String>> {
    match (event.name.as_str(), event.data["status"].as_str()?) {
        ("MIGRATION", "completed") => Some(Ok(())),
        ("MIGRATION", status @ ("failed" | "cancelled")) => Some(Err(status.to_owned())),
        _ => None,
    }
}

async fn wait_end(mut events: broadcast::Receiver<Event>, limit: Duration) -> Result<(), String> {
    wait_event(&mut events, limit, ended).await.unwrap_or_else(|| Err("it did not end in time".to_owned()))
}

/// A descriptor for QEMU and the stream at its other end. A socket: QEMU wants one that it can wait for.
fn stream() -> io::Result<(UnixStream, UnixStream)> {
    UnixStream::pair()
}

impl QemuVm {
    /// Stops the guest and writes it down.
    pub(crate) async fn write_snapshot(&mut self, state: File, memory: File) -> Result<(), SaveError> {
        let what = "save the guest's state";
        let failed = |reason: String| SaveError::Write { what, reason };
        self.command("stop", "stop", Value::Null, None).await?;
        self.command(what, "migrate-set-capabilities", capabilities(), None).await?;
        let (ours, theirs) = stream().map_err(|e| failed(e.to_string()))?;
        self.command(what, "getfd", json!({ "fdname": STREAM }), Some(&theirs.into())).await?;
        let reading = tokio::task::spawn_blocking(move || {
            let mut ours = ours.take(MAX_STATE + 1);
            io::copy(&mut ours, &mut &state)
        });
        let events = self.qmp.events();
        self.command(what, "migrate", json!({ "uri": format!("fd:{STREAM}") }), None).await?;
        wait_end(events, SAVE).await.map_err(failed)?;
        let written = tokio::time::timeout(SAVE, reading).await;
        let written = written.map_err(|_| failed("QEMU does not close its stream".to_owned()))?;
        match written.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))? {
            0 => return Err(failed("QEMU wrote nothing".to_owned())),
            n if n > MAX_STATE => return Err(failed(format!("it is larger than {MAX_STATE} bytes"))),
            _ => {}
        }
        let from = self.memory.try_clone();
        let copied = tokio::task::spawn_blocking(move || snapshot::copy_sparse(&from?, &memory)).await;
        let what = "save the guest's memory";
        let copied = copied.unwrap_or_else(|e| Err(io::Error::other(e)));
        copied.map_err(|e| SaveError::Write { what, reason: e.to_string() })?;
        Ok(())
    }

    /// Reads the state of CPUs and devices. The memory must be there.
    pub(crate) async fn restore(&self, state: File, deadline: Instant) -> Result<(), LaunchError> {
        let stage = "take over the template's state";
        let failed = |reason: String| LaunchError::Control { stage, reason };
        let refused = |e: QmpError| match e {
            QmpError::Deadline(_) => LaunchError::Deadline { stage },
            other => failed(other.to_string()),
        };
        self.qmp.execute("migrate-set-capabilities", capabilities(), None, deadline).await.map_err(refused)?;
        let (ours, theirs) = stream().map_err(|e| failed(e.to_string()))?;
        let fd = std::os::fd::AsFd::as_fd(&theirs);
        self.qmp.execute("getfd", json!({ "fdname": STREAM }), Some(fd), deadline).await.map_err(refused)?;
        drop(theirs);
        // QEMU may give up in the middle: then this ends with an error of its own, which says less than QEMU's.
        let writing = tokio::task::spawn_blocking(move || {
            let mut state = &state;
            state.rewind()?;
            io::copy(&mut state, &mut &ours)?;
            (&ours).flush()
        });
        let events = self.qmp.events();
        let uri = json!({ "uri": format!("fd:{STREAM}") });
        self.qmp.execute("migrate-incoming", uri, None, deadline).await.map_err(refused)?;
        wait_end(events, deadline.saturating_duration_since(Instant::now())).await.map_err(failed)?;
        let written = writing.await.unwrap_or_else(|e| Err(io::Error::other(e)));
        written.map_err(|e| failed(e.to_string()))
    }
}
