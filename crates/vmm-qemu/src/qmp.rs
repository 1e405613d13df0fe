//! A client of QEMU's machine protocol (QMP): JSON values, one a line; answers carry our id, events come between them.
//! QEMU is less trusted than we are (a guest may have taken it over), so everything read is bounded.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{broadcast, oneshot};

/// The longest line taken. The longest answers that our commands have are a few KiB.
const MAX_LINE: usize = 1 << 20;
/// How many events a slow waiter may be behind.
const EVENTS: usize = 64;

/// Why a command had no good answer.
#[derive(Debug, Error)]
pub(crate) enum QmpError {
    /// QEMU refused; its words.
    #[error("{0}")]
    Refused(String),
    /// The connection is closed: QEMU is gone, or misbehaved.
    #[error("the connection to QEMU is closed: {0}")]
    Closed(String),
    /// The deadline passed.
    #[error("QEMU did not answer to {0} in time")]
    Deadline(String),
}

/// The name of the event that we make up when the connection ends, so that waits end with it.
const CLOSED: &str = "";

/// Something that QEMU tells unasked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// "SHUTDOWN", "DEVICE_DELETED".
    pub name: String,
    /// Its data, or null.
    pub data: Value,
}

/// Who waits for what.
struct Shared {
    /// Why no answer will come any more.
    closed: Option<String>,
    greeted: Option<oneshot::Sender<()>>,
    waiting: HashMap<u64, oneshot::Sender<Result<Value, QmpError>>>,
}

/// A connection to QEMU. Commands may be given by several tasks; each waits for its own answer.
pub(crate) struct Qmp {
    stream: Arc<UnixStream>,
    shared: Arc<Mutex<Shared>>,
    next_id: std::sync::atomic::AtomicU64,
    /// One line at a time.
    writing: tokio::sync::Mutex<()>,
    events: broadcast::Sender<Event>,
    reader: tokio::task::JoinHandle<()>,
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Qmp {
    /// Waits for the greeting and makes the connection ready for commands.
    pub(crate) async fn connect(stream: UnixStream, deadline: Instant) -> Result<Qmp, QmpError> {
        let stream = Arc::new(stream);
        let (greeted, greeting) = oneshot::channel();
        let shared = Arc::new(Mutex::new(Shared { closed: None, greeted: Some(greeted), waiting: HashMap::new() }));
        let events = broadcast::channel(EVENTS).0;
        let reader = tokio::spawn(read(stream.clone(), shared.clone(), events.clone()));
        let next_id = std::sync::atomic::AtomicU64::new(1);
        let qmp = Qmp { stream, shared, next_id, writing: tokio::sync::Mutex::new(()), events, reader };
        match tokio::time::timeout_at(deadline.into(), greeting).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(QmpError::Closed(qmp.closed())),
            Err(_) => return Err(QmpError::Deadline("the connection".to_owned())),
        }
        qmp.execute("qmp_capabilities", Value::Null, None, deadline).await?;
        Ok(qmp)
    }

    fn closed(&self) -> String {
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.closed.clone().unwrap_or_else(|| "no greeting".to_owned())
    }

    /// The events from now on.
    pub(crate) fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Gives a command, with a descriptor for those that take one, and waits for its answer.
    pub(crate) async fn execute(
        &self,
        command: &str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
        deadline: Instant,
    ) -> Result<Value, QmpError> {
        let id = self.next_id.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut line = json!({ "execute": command, "id": id });
        if !arguments.is_null() {
            line["arguments"] = arguments;
        }
        tracing::debug!(target: "qmp", "{line}");
        let mut line = line.to_string();
        line.push('\n');
        let (sender, answer) = oneshot::channel();
        {
            let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(why) = &shared.closed {
                return Err(QmpError::Closed(why.clone()));
            }
            shared.waiting.insert(id, sender);
        }
        let talk = async {
            {
                let _one_at_a_time = self.writing.lock().await;
                self.write(line.as_bytes(), fd).await.map_err(|e| QmpError::Closed(e.to_string()))?;
            }
            answer.await.unwrap_or_else(|_| Err(QmpError::Closed(self.closed())))
        };
        let result = match tokio::time::timeout_at(deadline.into(), talk).await {
            Ok(result) => result,
            Err(_) => Err(QmpError::Deadline(command.to_owned())),
        };
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).waiting.remove(&id);
        result
    }

    /// Writes all; the descriptor goes with the first byte.
    async fn write(&self, mut bytes: &[u8], mut fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stream.writable().await?;
            let sent = self.stream.try_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
                if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
                Ok(sendmsg(self.stream.as_fd(), &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
            });
            match sent {
                Ok(n) => {
                    bytes = &bytes[n..];
                    fd = None;
                }
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// Waits for an event for which `wanted` has an answer; none at the deadline or when the connection is closed.
pub(crate) async fn wait_event<T>(
    events: &mut broadcast::Receiver<Event>,
    at_most: Duration,
    mut wanted: impl FnMut(&Event) -> Option<T>,
) -> Option<T> {
    let found = async {
        loop {
            match events.recv().await {
                Ok(event) if event.name == CLOSED => return None,
                Ok(event) => {
                    if let Some(answer) = wanted(&event) {
                        return Some(answer);
                    }
                }
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    };
    tokio::time::timeout(at_most, found).await.ok().flatten()
}

/// Reads lines until the end, and then tells everyone who waits.
async fn read(stream: Arc<UnixStream>, shared: Arc<Mutex<Shared>>, events: broadcast::Sender<Event>) {
    let why = read_lines(&stream, &shared, &events).await;
    let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
    shared.closed = Some(why);
    shared.greeted = None;
    // Dropping the senders ends the waits.
    shared.waiting.clear();
    let _ = events.send(Event { name: CLOSED.to_owned(), data: Value::Null });
}

/// Returns why there are no more lines.
async fn read_lines(stream: &UnixStream, shared: &Mutex<Shared>, events: &broadcast::Sender<Event>) -> String {
    let mut line = Vec::new();
    let mut bytes = [0; 4096];
    loop {
        if let Err(e) = stream.readable().await {
            return e.to_string();
        }
        let n = match stream.try_read(&mut bytes) {
            Ok(0) => return "end of file".to_owned(),
            Ok(n) => n,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => continue,
            Err(e) => return e.to_string(),
        };
        for &byte in &bytes[..n] {
            if byte != b'\n' {
                if line.len() == MAX_LINE {
                    return "a line is too long".to_owned();
                }
                line.push(byte);
                continue;
            }
            match serde_json::from_slice(&line) {
                Ok(value) => take(value, shared, events),
                Err(e) => return format!("a line is not JSON: {e}"),
            }
            line.clear();
        }
    }
}

/// Gives a value to whom it concerns.
fn take(value: Value, shared: &Mutex<Shared>, events: &broadcast::Sender<Event>) {
    tracing::debug!(target: "qmp", "{value}");
    if let Some(name) = value["event"].as_str() {
        // Nobody may be waiting for it.
        let _ = events.send(Event { name: name.to_owned(), data: value["data"].clone() });
        return;
    }
    let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
    if value.get("QMP").is_some() {
        if let Some(greeted) = shared.greeted.take() {
            let _ = greeted.send(());
        }
        return;
    }
    let Some(waiter) = value["id"].as_u64().and_then(|id| shared.waiting.remove(&id)) else {
        // The one who asked has given up.
        return;
    };
    let answer = match value.get("return") {
        Some(answer) => Ok(answer.clone()),
        None => Err(QmpError::Refused(value["error"]["desc"].as_str().unwrap_or("no reason given").to_owned())),
    };
    let _ = waiter.send(answer);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

    const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n";

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    /// A fake QEMU that answers each command with what `answer` makes of it.
    async fn fake(stream: UnixStream, mut answer: impl FnMut(&str, u64) -> String) {
        let (read, mut write) = stream.into_split();
        write.write_all(GREETING.as_bytes()).await.unwrap();
        let mut lines = BufReader::new(read).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let value: Value = serde_json::from_str(&line).unwrap();
            let said = answer(value["execute"].as_str().unwrap(), value["id"].as_u64().unwrap());
            if said == "close" {
                return;
            }
            write.write_all(said.as_bytes()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn answers_errors_and_events() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(fake(theirs, |command, id| match command {
            "qmp_capabilities" => format!("{{\"return\": {{}}, \"id\": {id}}}\n"),
            "good" => format!(
                "{{\"event\": \"STOP\", \"data\": {{\"a\": 1}}}}\n{{\"return\": 7, \"id\": 99}}\n{{\"return\": 42, \"id\": {id}}}\n"
            ),
            "bad" => {
                format!("{{\"error\": {{\"class\": \"GenericError\", \"desc\": \"no such thing\"}}, \"id\": {id}}}\n")
            }
            "silent" => String::new(),
            _ => "close".to_owned(),
        }));
        let qmp = Qmp::connect(ours, soon()).await.unwrap();
        let mut events = qmp.events();
        assert_eq!(qmp.execute("good", Value::Null, None, soon()).await.unwrap(), 42);
        let seen =
            wait_event(&mut events, Duration::from_secs(1), |e| (e.name == "STOP").then(|| e.data.clone())).await;
        assert_eq!(seen, Some(json!({ "a": 1 })));
        assert!(
            matches!(qmp.execute("bad", Value::Null, None, soon()).await, Err(QmpError::Refused(s)) if s == "no such thing")
        );
        let short = Instant::now() + Duration::from_millis(30);
        assert!(matches!(qmp.execute("silent", Value::Null, None, short).await, Err(QmpError::Deadline(_))));
        assert!(matches!(qmp.execute("quit", Value::Null, None, soon()).await, Err(QmpError::Closed(_))));
        assert!(matches!(qmp.execute("good", Value::Null, None, soon()).await, Err(QmpError::Closed(_))));
        let ended = wait_event(&mut events, Duration::from_secs(100), |_| Some(()));
        assert_eq!(tokio::time::timeout(Duration::from_secs(2), ended).await, Ok(None), "ends with the connection");
    }

    #[tokio::test]
    async fn a_descriptor_goes_along() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let theirs = theirs.into_std().unwrap();
        theirs.set_nonblocking(false).unwrap();
        let peer = std::thread::spawn(move || {
            use std::io::Write;
            (&theirs).write_all(GREETING.as_bytes()).unwrap();
            let mut got: Vec<OwnedFd> = Vec::new();
            for id in 1..=2 {
                let mut bytes = [0; 512];
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
                let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
                let mut parts = [io::IoSliceMut::new(&mut bytes)];
                rustix::net::recvmsg(&theirs, &mut parts, &mut control, rustix::net::RecvFlags::empty()).unwrap();
                for part in control.drain() {
                    if let rustix::net::RecvAncillaryMessage::ScmRights(fds) = part {
                        got.extend(fds);
                    }
                }
                (&theirs).write_all(format!("{{\"return\": {{}}, \"id\": {id}}}\n").as_bytes()).unwrap();
            }
            got
        });
        let qmp = Qmp::connect(ours, soon()).await.unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        qmp.execute("getfd", json!({ "fdname": "x" }), Some(null.as_fd()), soon()).await.unwrap();
        assert_eq!(peer.join().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_peer_that_misbehaves_is_an_error_not_a_hang() {
        for nonsense in ["not json\n".to_owned(), "x".repeat(MAX_LINE + 2), String::new()] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let peer = tokio::spawn(async move {
                let _ = theirs.write_all(nonsense.as_bytes()).await;
            });
            assert!(matches!(Qmp::connect(ours, soon()).await, Err(QmpError::Closed(_))));
            peer.await.unwrap();
        }
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let short = Instant::now() + Duration::from_millis(30);
        assert!(matches!(Qmp::connect(ours, short).await, Err(QmpError::Deadline(_))));
    }
}
