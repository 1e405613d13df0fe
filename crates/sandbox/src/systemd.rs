//! systemd's transient scopes, by one call over its private socket: where systemd runs the host's cgroups, a cgroup that
//! an engine names as `slice:prefix:name` must be a unit of its, or systemd may take it away
//! (systemd's CGROUP_DELEGATION.md).
//!
//! ```text
//! connect /run/systemd/private ─> "\0AUTH EXTERNAL <uid>" ─> "OK" ─> "BEGIN" ─> StartTransientUnit ─> its answer
//! ```
//! The D-Bus specification ("Message Protocol", "Authentication Protocol") has the bytes. On this socket there is no bus:
//! systemd is the peer, nobody says Hello, and the answer comes when the job is queued.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use thiserror::Error;

/// systemd's own socket; there if and only if it is PID 1.
pub const SOCKET: &str = "/run/systemd/private";
/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The most that an answer may hold.
const MAX_MESSAGE: u32 = 1 << 20;
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const SERIAL: u32 = 1;

/// Why there is no unit.
#[derive(Debug, Error)]
pub enum SystemdError {
    /// The socket, or what came through it.
    #[error("cannot {what} systemd")]
    Io {
        /// "connect to", "ask", "hear".
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It said no.
    #[error("systemd did not start the unit {unit}: {name}: {text}")]
    Refused {
        /// Which.
        unit: String,
        /// D-Bus's name of the error.
        name: String,
        /// systemd's words.
        text: String,
    },
}

fn io(what: &'static str) -> impl Fn(io::Error) -> SystemdError {
    move |source| SystemdError::Io { what, source }
}

/// Starts a scope in a slice with these processes in it; processes in it may make cgroups below. Blocks until systemd has
/// queued that.
///
/// # Errors
/// [`SystemdError`].
pub fn start_scope(socket: &Path, unit: &str, slice: &str, pids: &[u32]) -> Result<(), SystemdError> {
    let mut stream = UnixStream::connect(socket).map_err(io("connect to"))?;
    stream
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
        .map_err(io("ask"))?;
    authenticate(&mut stream)?;
    stream.write_all(&start_message(unit, slice, pids)).map_err(io("ask"))?;
    answer(&mut stream, unit)
}

fn authenticate(stream: &mut UnixStream) -> Result<(), SystemdError> {
    // The uid in decimal, each digit in hexadecimal.
    let mut hex = String::new();
    for digit in nix::unistd::geteuid().to_string().bytes() {
        write!(hex, "{digit:02x}").unwrap_or_else(|_| unreachable!("a String takes all"));
    }
    stream.write_all(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes()).map_err(io("ask"))?;
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).map_err(io("hear"))?;
        line.push(byte[0]);
        if line.len() > 512 {
            return Err(io("hear")(io::ErrorKind::InvalidData.into()));
        }
    }
    if !line.starts_with(b"OK ") {
        return Err(io("hear")(io::ErrorKind::PermissionDenied.into()));
    }
    stream.write_all(b"BEGIN\r\n").map_err(io("ask"))
}

/// Values as D-Bus lays them out: little-endian, each aligned to its own size from the beginning of the message.
#[derive(Default)]
struct Wire(Vec<u8>);

impl Wire {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn u32(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_le_bytes());
    }

    fn string(&mut self, text: &str) {
        self.u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, text: &str) {
        self.0.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    /// An array whose items begin at multiples of `alignment`.
    fn array(&mut self, alignment: usize, items: impl FnOnce(&mut Wire)) {
        self.u32(0);
        let length_at = self.0.len() - 4;
        self.align(alignment);
        let begin = self.0.len();
        items(self);
        let length = u32::try_from(self.0.len() - begin).unwrap_or(u32::MAX);
        self.0[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    }

    /// A struct of a name and a variant.
    fn property(&mut self, name: &str, signature: &str, value: impl FnOnce(&mut Wire)) {
        self.align(8);
        self.string(name);
        self.signature(signature);
        value(self);
    }
}

/// A call of org.freedesktop.systemd1(5)'s StartTransientUnit: name, mode, properties, no other units.
fn start_message(unit: &str, slice: &str, pids: &[u32]) -> Vec<u8> {
    let mut body = Wire::default();
    body.string(unit);
    // A unit that is there already is an error.
    body.string("fail");
    body.array(8, |w| {
        w.property("Description", "s", |w| w.string(&format!("kata sandbox {unit}")));
        w.property("Slice", "s", |w| w.string(slice));
        for on in ["Delegate", "MemoryAccounting", "CPUAccounting", "TasksAccounting"] {
            w.property(on, "b", |w| w.u32(1));
        }
        w.property("DefaultDependencies", "b", |w| w.u32(0));
        // It goes with its last process, however that ended.
        w.property("CollectMode", "s", |w| w.string("inactive-or-failed"));
        w.property("PIDs", "au", |w| w.array(4, |w| pids.iter().for_each(|pid| w.u32(*pid))));
    });
    body.array(8, |_| {});

    let mut message = Wire::default();
    // Little-endian, a call, no flags, version 1.
    message.0.extend([b'l', 1, 0, 1]);
    message.u32(u32::try_from(body.0.len()).unwrap_or(u32::MAX));
    message.u32(SERIAL);
    message.array(8, |w| {
        let mut field = |code: u8, signature: &str, value: &str| {
            w.align(8);
            w.0.push(code);
            w.signature(signature);
            if signature == "g" { w.signature(value) } else { w.string(value) }
        };
        field(1, "o", "/org/freedesktop/systemd1");
        field(2, "s", MANAGER);
        field(3, "s", "StartTransientUnit");
        field(6, "s", "org.freedesktop.systemd1");
        field(8, "g", "ssa(sv)a(sa(sv))");
    });
    message.align(8);
    message.0.extend(body.0);
    message.0
}

/// What a message's header says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Header {
    reply_to: Option<u32>,
    error: String,
    signature: String,
}

/// Reads values out of a part of a message that begins at a multiple of 8.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take(&mut self, n: usize) -> Option<&[u8]> {
        let end = self.at.checked_add(n)?;
        let bytes = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.at = self.at.next_multiple_of(4);
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn text(&mut self, length: usize) -> Option<String> {
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.take(1)?;
        Some(text)
    }

    fn string(&mut self) -> Option<String> {
        let length = self.u32()?;
        self.text(usize::try_from(length).ok()?)
    }

    fn signature(&mut self) -> Option<String> {
        let length = *self.take(1)?.first()?;
        self.text(length.into())
    }
}

/// The fields of a header; those that we have no use for are read over.
fn fields(bytes: &[u8]) -> Option<Header> {
    let mut r = Reader { bytes, at: 0 };
    let mut header = Header::default();
    while r.at < bytes.len() {
        r.at = r.at.next_multiple_of(8);
        if r.at >= bytes.len() {
            break;
        }
        let code = *r.take(1)?.first()?;
        match (r.signature()?.as_str(), code) {
            ("u", 5) => header.reply_to = Some(r.u32()?),
            ("u", _) => drop(r.u32()?),
            ("s" | "o", 4) => header.error = r.string()?,
            ("s" | "o", _) => drop(r.string()?),
            ("g", 8) => header.signature = r.signature()?,
            ("g", _) => drop(r.signature()?),
            _ => return None,
        }
    }
    Some(header)
}

/// Reads messages until the answer; signals come in between.
fn answer(stream: &mut UnixStream, unit: &str) -> Result<(), SystemdError> {
    let garbled = || io("hear")(io::ErrorKind::InvalidData.into());
    let number = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    // A handful of signals; more would be nonsense.
    for _ in 0..1000 {
        let mut start = [0; 16];
        stream.read_exact(&mut start).map_err(io("hear"))?;
        let (body_length, fields_length) = (number(&start[4..8]), number(&start[12..16]));
        if start[0] != b'l' || body_length > MAX_MESSAGE || fields_length > MAX_MESSAGE {
            return Err(garbled());
        }
        let mut head = vec![0; fields_length.next_multiple_of(8) as usize];
        stream.read_exact(&mut head).map_err(io("hear"))?;
        head.truncate(fields_length as usize);
        let mut body = vec![0; body_length as usize];
        stream.read_exact(&mut body).map_err(io("hear"))?;
        let header = fields(&head).ok_or_else(garbled)?;
        if header.reply_to != Some(SERIAL) {
            continue;
        }
        return match start[1] {
            2 => Ok(()),
            3 => {
                let text =
                    if header.signature.starts_with('s') { Reader { bytes: &body, at: 0 }.string() } else { None };
                Err(SystemdError::Refused { unit: unit.to_owned(), name: header.error, text: text.unwrap_or_default() })
            }
            _ => Err(garbled()),
        };
    }
    Err(garbled())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// What an independent implementation of D-Bus (jeepney) makes of the same call.
    const RECORDED: &str = include_str!("systemd/start_transient_unit.hex");

    fn recorded() -> Vec<u8> {
        let digits: String = RECORDED.split_whitespace().collect();
        (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn the_call_is_what_others_send() {
        let ours = start_message("cri-containerd-abc.scope", "kubepods-besteffort.slice", &[1234, 5678]);
        assert_eq!(ours, recorded());
    }

    /// A systemd that answers every call with these messages.
    fn systemd(answers: Vec<Vec<u8>>) -> (tempfile::TempDir, std::thread::JoinHandle<Vec<u8>>) {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("private")).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let uid: String = nix::unistd::geteuid().to_string().bytes().map(|b| format!("{b:02x}")).collect();
            let mut hello = vec![0; format!("\0AUTH EXTERNAL {uid}\r\n").len()];
            stream.read_exact(&mut hello).unwrap();
            assert_eq!(hello, format!("\0AUTH EXTERNAL {uid}\r\n").as_bytes());
            stream.write_all(b"OK 0123456789abcdef0123456789abcdef\r\n").unwrap();
            let mut call = vec![0; b"BEGIN\r\n".len() + start_message("u.scope", "s.slice", &[1]).len()];
            stream.read_exact(&mut call).unwrap();
            for answer in answers {
                stream.write_all(&answer).unwrap();
            }
            call
        });
        (dir, thread)
    }

    fn message(kind: u8, reply_to: Option<u32>, error: Option<&str>, body: impl FnOnce(&mut Wire)) -> Vec<u8> {
        let mut b = Wire::default();
        body(&mut b);
        let mut m = Wire::default();
        m.0.extend([b'l', kind, 0, 1]);
        m.u32(b.0.len() as u32);
        m.u32(99);
        m.array(8, |w| {
            if let Some(serial) = reply_to {
                w.align(8);
                w.0.push(5);
                w.signature("u");
                w.u32(serial);
            }
            if let Some(name) = error {
                w.align(8);
                w.0.push(4);
                w.signature("s");
                w.string(name);
                w.align(8);
                w.0.push(8);
                w.signature("g");
                w.signature("s");
            }
        });
        m.align(8);
        m.0.extend(b.0);
        m.0
    }

    #[test]
    fn answers_are_told_from_signals_and_errors_have_systemds_words() {
        let signal = message(4, None, None, |w| w.string("/job/1"));
        let done = message(2, Some(SERIAL), None, |w| w.string("/org/freedesktop/systemd1/job/1"));
        let (dir, thread) = systemd(vec![signal.clone(), done]);
        start_scope(&dir.path().join("private"), "u.scope", "s.slice", &[1]).unwrap();
        assert!(thread.join().unwrap().starts_with(b"BEGIN\r\nl\x01"));

        let name = "org.freedesktop.systemd1.UnitExists";
        let refused = message(3, Some(SERIAL), Some(name), |w| w.string("Unit u.scope already exists."));
        let (dir, thread) = systemd(vec![signal, refused]);
        let e = start_scope(&dir.path().join("private"), "u.scope", "s.slice", &[1]).unwrap_err().to_string();
        assert!(e.contains("u.scope") && e.contains(name) && e.contains("already exists"), "{e}");
        thread.join().unwrap();
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        let mut long = message(2, Some(SERIAL), None, |_| {});
        long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        let unknown = {
            let mut m = vec![b'l', 2, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0];
            m.extend([5, 1, b'x', 0, 0, 0, 0, 0]);
            m
        };
        for bad in [long, unknown, b"not D-Bus at all".to_vec(), Vec::new()] {
            let (dir, thread) = systemd(vec![bad]);
            let e = start_scope(&dir.path().join("private"), "u.scope", "s.slice", &[1]).unwrap_err();
            assert!(matches!(e, SystemdError::Io { .. }), "{e}");
            thread.join().unwrap();
        }
        assert!(start_scope(Path::new("/nowhere"), "u", "s", &[]).unwrap_err().to_string().contains("connect"));
    }
}
