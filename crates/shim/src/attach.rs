//! The attach socket: how a shim process of the OCI command line lends its stdio to a container process and comes to
//! stand for it.
//!
//! One connection a process. The shim sends one JSON line, [`AttachHello`], with its descriptors as SCM_RIGHTS; the
//! daemon answers with [`AttachReply`]. Then lines go both ways: [`ToDaemon`] and [`FromDaemon`]. A connection that
//! ends without an exit line means the daemon is gone; one that the shim ends means the shim was killed, and its
//! process is then killed too.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use kata_factory::IncomingLine;
use kata_sandbox::{Endpoint, Process, Sandbox, StdioSpec};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;

/// More lines than this before there is a process are none of ours.
const MAX_EARLY: usize = 64;

/// The shim's first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachHello {
    /// The container.
    pub container: String,
    /// The exec; empty for the container's first process.
    pub exec: String,
    /// The process has a terminal in the guest.
    pub terminal: bool,
    /// What each descriptor is, in their order: "in", "out", "err", or "tty" for both directions of a terminal.
    pub fds: Vec<String>,
}

/// Instead of a hello: asks for the guest's own table of a container's processes. One line each way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListQuery {
    /// The container.
    pub list: String,
    /// Options for the listing.
    pub args: Vec<String>,
}

/// The answer to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListAnswer {
    /// Why not, if not.
    pub error: Option<String>,
    /// The table.
    pub table: String,
}

/// Instead of a hello: asks for a debug console in the guest. After the [`AttachReply`], what is sent is what is typed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleQuery {
    /// One command, or empty: whatever is typed.
    pub console: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum First {
    Attach(AttachHello),
    List(ListQuery),
    Console(ConsoleQuery),
}

/// The answer to a hello.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachReply {
    /// Why not, if not.
    pub error: Option<String>,
}

/// From the shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ToDaemon {
    /// Send this signal.
    Signal(u32),
    /// The terminal has this size: rows, columns.
    Resize([u32; 2]),
}

/// To the shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FromDaemon {
    /// The process has ended.
    Exit {
        /// As a shell says it.
        status: i32,
        /// Set when something else ended it.
        reason: Option<String>,
    },
}

/// What an attached shim lent.
pub struct Attached {
    /// Its descriptors.
    pub stdio: StdioSpec,
    /// Its pid, as the kernel says.
    pub pid: i32,
    /// Tells the connection which process it stands for.
    pub bound: oneshot::Sender<Arc<Process>>,
}

/// Shims that have attached and wait for their process.
#[derive(Clone, Default)]
pub struct Attachments(Arc<Mutex<HashMap<(String, String), Attached>>>);

impl Attachments {
    /// Takes the one for this process.
    pub fn take(&self, container: &str, exec: &str) -> Option<Attached> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&(container.to_owned(), exec.to_owned()))
    }

    fn put(&self, key: (String, String), attached: Attached) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let free = !all.contains_key(&key);
        if free {
            all.insert(key, attached);
        }
        free
    }
}

/// Serves the socket.
pub async fn serve(listener: UnixListener, attachments: Attachments, sandbox: Arc<Sandbox>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (attachments, sandbox) = (attachments.clone(), Arc::clone(&sandbox));
                tokio::spawn(async move {
                    if let Err(err) = connection(stream, &attachments, &sandbox).await {
                        tracing::warn!("a shim's connection failed: {err}");
                    }
                });
            }
            Err(err) => {
                tracing::warn!("a shim cannot attach: {err}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: UnixStream, attachments: &Attachments, sandbox: &Arc<Sandbox>) -> io::Result<()> {
    let pid = stream.peer_cred()?.pid().unwrap_or(0);
    let (first, fds) = read_first(&stream).await?;
    if let First::Console(query) = first {
        return console(stream, sandbox, &query.console).await;
    }
    let (reader, mut writer) = stream.into_split();
    let hello = match first {
        First::Console(_) => return Ok(()),
        First::Attach(hello) => hello,
        First::List(query) => {
            let answer = match sandbox.guest_processes(&query.list, "table", query.args).await {
                Ok(table) => ListAnswer { error: None, table: String::from_utf8_lossy(&table).into_owned() },
                Err(err) => ListAnswer { error: Some(err.to_string()), table: String::new() },
            };
            return send(&mut writer, &answer).await;
        }
    };
    let (tx, bound) = oneshot::channel();
    let key = (hello.container.clone(), hello.exec.clone());
    let error = match stdio(&hello, fds) {
        Err(text) => Some(text),
        Ok(stdio) => {
            let free = attachments.put(key.clone(), Attached { stdio, pid, bound: tx });
            (!free).then(|| "another shim has attached for this process".to_owned())
        }
    };
    let failed = error.is_some();
    send(&mut writer, &AttachReply { error }).await?;
    if failed {
        return Ok(());
    }
    let mut lines = BufReader::new(reader).lines();
    let mut early = Vec::new();
    let mut bound = bound;
    let process = loop {
        tokio::select! {
            process = &mut bound => break process,
            // The shim may tell its terminal's size before its process is made; or die.
            line = lines.next_line() => match line {
                Ok(Some(line)) if early.len() < MAX_EARLY => early.push(line),
                _ => {
                    attachments.take(&key.0, &key.1);
                    return Ok(());
                }
            },
        }
    };
    let Ok(process) = process else {
        // Making the process failed, which whoever asked for it is told. Nothing is lost.
        return send(&mut writer, &FromDaemon::Exit { status: 1, reason: None }).await;
    };
    for line in early {
        obey(&line, sandbox, &key).await;
    }
    loop {
        tokio::select! {
            exit = process.wait() => {
                return send(&mut writer, &FromDaemon::Exit { status: exit.status, reason: exit.reason }).await;
            }
            line = lines.next_line() => {
                let Some(line) = line? else {
                    tracing::warn!(container = key.0, exec = key.1, "its shim is gone: the process is killed");
                    drop(sandbox.kill(&key.0, &key.1, 9, false).await);
                    return Ok(());
                };
                obey(&line, sandbox, &key).await;
            }
        }
    }
}

/// Does what a shim's line says.
async fn obey(line: &str, sandbox: &Arc<Sandbox>, key: &(String, String)) {
    let done = match serde_json::from_str(line) {
        Ok(ToDaemon::Signal(signal)) => sandbox.kill(&key.0, &key.1, signal, false).await,
        Ok(ToDaemon::Resize([rows, columns])) => sandbox.resize(&key.0, &key.1, rows, columns).await,
        Err(err) => {
            tracing::warn!("a shim said something unknown: {err}");
            Ok(())
        }
    };
    if let Err(err) = done {
        tracing::debug!("a shim's request failed: {err}");
    }
}

/// Joins whoever asked with a debug console in the guest.
async fn console(mut stream: UnixStream, sandbox: &Sandbox, command: &str) -> io::Result<()> {
    let opened = sandbox.console(command).await;
    let reply = AttachReply { error: opened.as_ref().err().map(ToString::to_string) };
    send(&mut stream, &reply).await?;
    if let Ok(mut guest) = opened {
        tracing::warn!("somebody looks around in the guest by the debug console");
        // It ends with either side.
        drop(tokio::io::copy_bidirectional(&mut stream, &mut guest).await);
    }
    Ok(())
}

async fn send<T: Serialize>(writer: &mut (impl tokio::io::AsyncWrite + Unpin), message: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    writer.write_all(&line).await
}

/// The first line and what came with it.
async fn read_first(stream: &UnixStream) -> io::Result<(First, Vec<OwnedFd>)> {
    let mut line = IncomingLine::default();
    when_whole(stream, || line.read(stream)).await
}

/// Reads until there is something whole.
pub(crate) async fn when_whole<T>(
    stream: &UnixStream,
    mut read: impl FnMut() -> io::Result<Option<T>>,
) -> io::Result<T> {
    loop {
        stream.readable().await?;
        match stream.try_io(tokio::io::Interest::READABLE, &mut read) {
            Ok(Some(whole)) => return Ok(whole),
            Ok(None) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
}

fn stdio(hello: &AttachHello, fds: Vec<OwnedFd>) -> Result<StdioSpec, String> {
    if hello.fds.len() != fds.len() {
        return Err(format!("{} descriptors were named, {} came", hello.fds.len(), fds.len()));
    }
    let mut spec = StdioSpec { terminal: hello.terminal, ..StdioSpec::default() };
    for (name, fd) in hello.fds.iter().zip(fds) {
        match name.as_str() {
            "in" => spec.stdin = Some(Endpoint::Fd(fd)),
            "out" => spec.stdout = Some(Endpoint::Fd(fd)),
            "err" => spec.stderr = Some(Endpoint::Fd(fd)),
            "tty" => {
                let other = fd.try_clone().map_err(|e| e.to_string())?;
                spec.stdin = Some(Endpoint::Fd(fd));
                spec.stdout = Some(Endpoint::Fd(other));
            }
            other => return Err(format!("unknown descriptor {other:?}")),
        }
    }
    Ok(spec)
}
