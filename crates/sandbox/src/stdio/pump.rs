//! Copying between the host's descriptors and the guest's streams.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kata_agent_client::{AgentClient, AgentStream};
use kata_proto::channel::Stdio;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use super::host_fd::{HostFd, Way};
use super::{Endpoint, StdioError, StdioSpec};

/// What one copy holds at once. With one buffer a stream, an idle process's stdio costs this and no more.
const BUFFER: usize = 32 << 10;

/// The pumps of one process.
#[derive(Debug, Default)]
pub struct Pumps {
    /// Tells the pump of stdin that no more will be written.
    close_stdin: Option<Arc<Notify>>,
    stdin: Option<AbortHandle>,
    outputs: Vec<watch::Receiver<bool>>,
    all: Vec<AbortHandle>,
    progress: Arc<AtomicU64>,
}

/// A process's stdio, opened on the host's side, before the guest is asked for anything.
pub struct Opened {
    stdin: Option<HostFd>,
    stdout: Option<HostFd>,
    stderr: Option<HostFd>,
    /// As the agent is told.
    pub streams: u32,
}

impl StdioSpec {
    /// Opens what the host's side needs.
    ///
    /// # Errors
    /// [`StdioError::Open`].
    pub fn open(self) -> Result<Opened, StdioError> {
        let streams = self.streams();
        Ok(Opened {
            stdin: self.stdin.map(|e| one("stdin", e, Way::Read)).transpose()?,
            stdout: self.stdout.map(|e| one("stdout", e, Way::Write)).transpose()?,
            stderr: self.stderr.map(|e| one("stderr", e, Way::Write)).transpose()?,
            streams,
        })
    }
}

fn one(what: &'static str, endpoint: Endpoint, way: Way) -> Result<HostFd, StdioError> {
    let (path, opened) = match endpoint {
        Endpoint::Fifo(path) => (path.clone(), HostFd::fifo(&path, way)),
        Endpoint::File(path) => (path.clone(), HostFd::append(&path)),
        Endpoint::Fd(fd) => ("(a descriptor)".into(), HostFd::adopt(fd, way)),
    };
    opened.map_err(|source| StdioError::Open { what, path, source })
}

impl Pumps {
    /// Attaches the guest's streams of a process and starts copying.
    ///
    /// # Errors
    /// [`StdioError::Agent`] when the connection is over.
    pub async fn start(opened: Opened, agent: &AgentClient, container: &str, exec: &str) -> Result<Pumps, StdioError> {
        let mut pumps = Pumps::default();
        if let Some(from) = opened.stdin {
            let stream = agent.stdio(container, exec, Stdio::In).await?;
            let close = Arc::new(Notify::new());
            let task = tokio::spawn(inward(from, stream, Arc::clone(&close)));
            pumps.close_stdin = Some(close);
            pumps.stdin = Some(task.abort_handle());
            pumps.all.push(task.abort_handle());
        }
        for (to, kind) in [(opened.stdout, Stdio::Out), (opened.stderr, Stdio::Err)] {
            let Some(to) = to else { continue };
            let stream = agent.stdio(container, exec, kind).await?;
            let (tx, rx) = watch::channel(false);
            let progress = Arc::clone(&pumps.progress);
            let task = tokio::spawn(async move {
                if let Err(err) = outward(stream, to, &progress).await {
                    tracing::debug!("an output stream ended early: {err}");
                }
                tx.send_replace(true);
            });
            pumps.outputs.push(rx);
            pumps.all.push(task.abort_handle());
        }
        Ok(pumps)
    }

    /// Ends the guest's stdin after what has been written to it until now, also if the host's side stays open. False
    /// where there is none.
    pub fn close_stdin(&self) -> bool {
        if let Some(close) = &self.close_stdin {
            close.notify_one();
        }
        self.close_stdin.is_some()
    }

    /// Lets go of the host's stdin: its reader has ended. A terminal that we held would never be seen as closed.
    pub fn stop_stdin(&self) {
        if let Some(task) = &self.stdin {
            task.abort();
        }
    }

    /// Waits until all output has been passed on.
    pub async fn drained(&self) {
        for rx in &self.outputs {
            let mut rx = rx.clone();
            // An aborted pump drops its sender: drained as well.
            drop(rx.wait_for(|done| *done).await);
        }
    }

    /// Waits until all output has been passed on, but not for a reader who has not read for `patience`.
    pub async fn drained_or_stalled(&self, patience: Duration) {
        let mut last = self.progress.load(Ordering::Relaxed);
        while tokio::time::timeout(patience, self.drained()).await.is_err() {
            let now = self.progress.load(Ordering::Relaxed);
            if now == last {
                tracing::warn!("output that nobody reads is thrown away");
                return;
            }
            last = now;
        }
    }

    /// Ends everything.
    pub fn abort(&self) {
        for task in &self.all {
            task.abort();
        }
    }
}

impl Drop for Pumps {
    fn drop(&mut self) {
        self.abort();
    }
}

async fn inward(from: HostFd, mut to: AgentStream, close: Arc<Notify>) {
    let mut buf = vec![0; BUFFER];
    let mut closing = false;
    loop {
        // Once told to close, what is in the pipe still goes through; waiting for more would be waiting for ever.
        let read = if closing {
            from.read_now(&mut buf)
        } else {
            tokio::select! {
                read = from.read(&mut buf) => read,
                () = close.notified() => {
                    closing = true;
                    continue;
                }
            }
        };
        match read {
            Ok(0) => break,
            Ok(n) => {
                // The process has closed its stdin, or is gone: nobody to write to.
                if to.write_all(&buf[..n]).await.is_err() || to.flush().await.is_err() {
                    return;
                }
            }
            Err(err) => {
                tracing::warn!("stdin cannot be read: {err}");
                break;
            }
        }
    }
    drop(to.shutdown().await);
}

async fn outward(mut from: AgentStream, to: HostFd, progress: &AtomicU64) -> io::Result<()> {
    let mut buf = vec![0; BUFFER];
    loop {
        let n = from.read(&mut buf).await?;
        if n == 0 {
            return Ok(());
        }
        to.write_all(&buf[..n]).await?;
        progress.fetch_add(n as u64, Ordering::Relaxed);
    }
}
