//! The channel between host and guest, and how a connection on it begins.
//!
//! With vsock, the agent listens on [`kata_types::AGENT_VSOCK_PORT`] for ttrpc (as upstream's does) and on
//! [`kata_types::STREAM_VSOCK_PORT`] for streams, each of which begins with a [`StreamHeader`].
//!
//! Without vsock there is one virtio-serial port. It has no notion of a connection, and keeps stale bytes
//! when the host goes away, so each connection begins with four frames of 32 bytes (a 16 byte word and the
//! host's 16 byte nonce); each side skips everything that is not the frame it waits for:
//!
//! ```text
//! host                                guest
//!   HELLO nonce  ─────────────────────>        sent again every 200 ms until answered
//!        <─────────────────────────── ACK nonce   each HELLO is answered
//!   GO nonce     ─────────────────────>        sent once
//!        <─────────────────────────── READY nonce
//!   then yamux: the host is the client and opens streams, each beginning with a StreamHeader
//! ```
//!
//! READY closes the phase in which late ACKs may still be under way, so no frame can fall into yamux.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Length of every handshake frame in bytes.
pub const FRAME_LEN: usize = 32;
/// A connection's random name, chosen by the host.
pub type Nonce = [u8; 16];

const HELLO: [u8; 16] = *b"kata-rs:hello\0\0\x01";
const ACK: [u8; 16] = *b"kata-rs:ack\0\0\0\0\x01";
const GO: [u8; 16] = *b"kata-rs:go\0\0\0\0\0\x01";
const READY: [u8; 16] = *b"kata-rs:ready\0\0\x01";
/// How long the host waits for an answer before it says HELLO again.
const HELLO_AGAIN: Duration = Duration::from_millis(200);

/// Why a connection could not begin.
#[derive(Debug, Error)]
pub enum HandshakeError {
    /// The port could not be read or written.
    #[error("the agent channel failed during its handshake")]
    Io(#[from] std::io::Error),
}

fn frame(word: &[u8; 16], nonce: &Nonce) -> [u8; FRAME_LEN] {
    let mut f = [0; FRAME_LEN];
    f[..16].copy_from_slice(word);
    f[16..].copy_from_slice(nonce);
    f
}

/// A window of the last 32 bytes; says when they are a frame.
struct Window(std::collections::VecDeque<u8>);

impl Window {
    fn new() -> Self {
        Window(std::collections::VecDeque::with_capacity(FRAME_LEN))
    }

    /// Takes one byte; returns `(word, nonce)` when the last 32 bytes begin with a known word.
    fn push(&mut self, byte: u8) -> Option<([u8; 16], Nonce)> {
        if self.0.len() == FRAME_LEN {
            self.0.pop_front();
        }
        self.0.push_back(byte);
        if self.0.len() < FRAME_LEN {
            return None;
        }
        let bytes: Vec<u8> = self.0.iter().copied().collect();
        let (word, nonce) = bytes.split_at(16);
        let (word, nonce): ([u8; 16], Nonce) = (word.try_into().ok()?, nonce.try_into().ok()?);
        [HELLO, ACK, GO, READY].contains(&word).then(|| {
            self.0.clear();
            (word, nonce)
        })
    }
}

/// Reads byte by byte, so that not one byte after the frame is taken from yamux.
async fn next_frame<T: AsyncRead + Unpin>(io: &mut T, window: &mut Window) -> std::io::Result<([u8; 16], Nonce)> {
    loop {
        // `read` and not `read_u8`: a cancelled wait must not lose a byte.
        let mut b = [0u8; 1];
        if io.read(&mut b).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(f) = window.push(b[0]) {
            return Ok(f);
        }
    }
}

/// The host's side: returns when the next byte in either direction belongs to yamux.
/// Has no deadline of its own; wrap it in `tokio::time::timeout`.
///
/// # Errors
/// [`HandshakeError::Io`] when the port fails or ends.
pub async fn host_handshake<T: AsyncRead + AsyncWrite + Unpin>(io: &mut T, nonce: Nonce) -> Result<(), HandshakeError> {
    let mut window = Window::new();
    loop {
        io.write_all(&frame(&HELLO, &nonce)).await?;
        io.flush().await?;
        let answered = tokio::time::timeout(HELLO_AGAIN, async {
            while next_frame(io, &mut window).await? != (ACK, nonce) {}
            std::io::Result::Ok(())
        });
        if let Ok(done) = answered.await {
            done?;
            break;
        }
    }
    io.write_all(&frame(&GO, &nonce)).await?;
    io.flush().await?;
    while next_frame(io, &mut window).await? != (READY, nonce) {}
    Ok(())
}

/// The guest's side: waits for a host, skipping whatever an earlier one left behind.
///
/// # Errors
/// [`HandshakeError::Io`] when the port fails or ends (the host went away: wait for it and call again).
pub async fn guest_handshake<T: AsyncRead + AsyncWrite + Unpin>(io: &mut T) -> Result<Nonce, HandshakeError> {
    let mut window = Window::new();
    let mut last: Option<Nonce> = None;
    loop {
        let (word, nonce) = next_frame(io, &mut window).await?;
        if word == HELLO {
            last = Some(nonce);
            io.write_all(&frame(&ACK, &nonce)).await?;
        } else if word == GO && last == Some(nonce) {
            io.write_all(&frame(&READY, &nonce)).await?;
            io.flush().await?;
            return Ok(nonce);
        }
        io.flush().await?;
    }
}

/// One of a process's three stdio streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Stdio {
    /// Host to guest; ending it (FIN) closes the process's stdin. For a terminal: the keyboard.
    In = 0,
    /// Guest to host; for a terminal: all output.
    Out = 1,
    /// Guest to host.
    Err = 2,
}

/// Values for the `stdio_streams` field of CreateContainer and ExecProcess: set [`STDIO_STREAMS`] and one bit
/// per stream that will be attached; the others are /dev/null in the guest.
pub const STDIO_STREAMS: u32 = 0x80;

impl Stdio {
    /// This stream's bit in `stdio_streams`.
    pub fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// The kind of a [`StreamHeader::Dial`]; some are kept free before it.
const DIAL: u8 = 8;
/// The kind of a [`StreamHeader::Names`].
const NAMES: u8 = 9;

/// What a stream is for; the first bytes of each stream. Layout: `'K'`, version 1, kind, 0, payload length
/// (u16, big endian), payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamHeader {
    /// ttrpc: AgentService and Health.
    Rpc,
    /// One stdio stream of one process. An empty exec id is the container's init.
    Stdio {
        /// The container.
        container: String,
        /// The exec, or empty for the container's first process.
        exec: String,
        /// Which of the three.
        stream: Stdio,
    },
    /// The agent's log, guest to host: one JSON object a line, `{"level","target","msg", fields...}`.
    Log,
    /// A TCP connection that the agent makes in the guest's network (port forwarding). Its first byte comes from the guest:
    /// [`DIALLED`], or [`NOT_DIALLED`] and the end. Then it is the connection's, both ways.
    Dial {
        /// Whom to call. For an address of the loopback device the other family's is tried as well, as nothing tells for
        /// which of them "localhost" stands.
        to: SocketAddr,
    },
    /// Questions for the host's name server at this address of the loopback device, for which the agent answers in the guest
    /// ([`crate::names`]). Its first byte comes from the guest: [`DIALLED`] when it listens there, [`NOT_DIALLED`] and the end
    /// when it cannot.
    Names {
        /// Where it listens, port 53.
        at: IpAddr,
    },
    /// The debug console, both ways, as text. With a command: that one, without prompts; empty: what the host types.
    Console {
        /// One line, less than 64 KiB.
        command: String,
    },
}

/// The agent has the connection.
pub const DIALLED: u8 = 1;
/// Nobody answers there.
pub const NOT_DIALLED: u8 = 0;

/// Why a stream was refused.
#[derive(Debug, Error)]
pub enum HeaderError {
    /// The stream ended or failed before its header was whole.
    #[error("a stream ended within its header")]
    Io(#[from] std::io::Error),
    /// Not a header, or one of a version or kind that this build does not know.
    #[error("a stream began with an unknown header: {0}")]
    Unknown(String),
}

impl StreamHeader {
    /// The header's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, payload) = match self {
            StreamHeader::Rpc => (0, Vec::new()),
            StreamHeader::Stdio { container, exec, stream } => {
                let mut p = vec![*stream as u8];
                for s in [container, exec] {
                    p.extend((s.len() as u16).to_be_bytes());
                    p.extend(s.as_bytes());
                }
                (1, p)
            }
            StreamHeader::Log => (2, Vec::new()),
            StreamHeader::Dial { to } => {
                let mut p = to.port().to_be_bytes().to_vec();
                match to.ip() {
                    IpAddr::V4(ip) => p.extend(ip.octets()),
                    IpAddr::V6(ip) => p.extend(ip.octets()),
                }
                (DIAL, p)
            }
            StreamHeader::Names { at } => match at {
                IpAddr::V4(ip) => (NAMES, ip.octets().to_vec()),
                IpAddr::V6(ip) => (NAMES, ip.octets().to_vec()),
            },
            StreamHeader::Console { command } => (3, command.as_bytes().to_vec()),
        };
        let mut out = vec![b'K', 1, kind, 0];
        out.extend((payload.len() as u16).to_be_bytes());
        out.extend(payload);
        out
    }

    /// Reads a header and not one byte more.
    ///
    /// # Errors
    /// [`HeaderError`]; the caller closes the stream.
    pub async fn read<T: AsyncRead + Unpin>(io: &mut T) -> Result<Self, HeaderError> {
        let mut head = [0u8; 6];
        io.read_exact(&mut head).await?;
        let [b'K', 1, kind, 0, hi, lo] = head else {
            return Err(HeaderError::Unknown(format!("{head:02x?}")));
        };
        let mut payload = vec![0u8; usize::from(u16::from_be_bytes([hi, lo]))];
        io.read_exact(&mut payload).await?;
        Self::decode(kind, &payload)
            .ok_or_else(|| HeaderError::Unknown(format!("kind {kind} with {} bytes", payload.len())))
    }

    fn decode(kind: u8, payload: &[u8]) -> Option<Self> {
        match (kind, payload) {
            (0, []) => Some(StreamHeader::Rpc),
            (2, []) => Some(StreamHeader::Log),
            (3, command) => Some(StreamHeader::Console { command: String::from_utf8(command.to_vec()).ok()? }),
            (1, [stream, rest @ ..]) => {
                let stream = match stream {
                    0 => Stdio::In,
                    1 => Stdio::Out,
                    2 => Stdio::Err,
                    _ => return None,
                };
                let (container, rest) = take_string(rest)?;
                let (exec, rest) = take_string(rest)?;
                rest.is_empty().then_some(StreamHeader::Stdio { container, exec, stream })
            }
            (DIAL, [hi, lo, ip @ ..]) => {
                Some(StreamHeader::Dial { to: (address(ip)?, u16::from_be_bytes([*hi, *lo])).into() })
            }
            (NAMES, ip) => Some(StreamHeader::Names { at: address(ip)? }),
            _ => None,
        }
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(<[u8; 4]>::try_from(bytes).ok()?.into()),
        _ => Some(<[u8; 16]>::try_from(bytes).ok()?.into()),
    }
}

fn take_string(bytes: &[u8]) -> Option<(String, &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<2>()?;
    let (s, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
    Some((String::from_utf8(s.to_vec()).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rt() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn stale_bytes_both_ways_are_skipped() {
        rt().block_on(async {
            let (mut host, mut guest) = tokio::io::duplex(64 * 1024);
            // An earlier connection left half a frame, a HELLO of its own, and an ACK in the other direction.
            host.write_all(b"kata-rs:hel junk \xff\x00").await.unwrap();
            host.write_all(&frame(&HELLO, &[9; 16])).await.unwrap();
            guest.write_all(&frame(&ACK, &[9; 16])).await.unwrap();
            guest.write_all(&[0x55; 20_000]).await.unwrap();
            let g = tokio::spawn(async move {
                let n = guest_handshake(&mut guest).await.unwrap();
                guest.write_all(b"Y").await.unwrap();
                (n, guest)
            });
            host_handshake(&mut host, [7; 16]).await.unwrap();
            let mut b = [0; 1];
            host.read_exact(&mut b).await.unwrap();
            assert_eq!(&b, b"Y", "the first byte after the handshake is the protocol's");
            assert_eq!(g.await.unwrap().0, [7; 16]);
        });
    }

    #[test]
    fn a_guest_that_comes_late_is_greeted_again() {
        rt().block_on(async {
            let (mut host, mut guest) = tokio::io::duplex(4096);
            let h = tokio::spawn(async move {
                host_handshake(&mut host, [1; 16]).await.unwrap();
                host.write_all(b"first").await.unwrap();
                host
            });
            // The guest loses the first HELLO whole.
            let mut lost = [0; FRAME_LEN];
            guest.read_exact(&mut lost).await.unwrap();
            guest_handshake(&mut guest).await.unwrap();
            let mut b = [0; 5];
            guest.read_exact(&mut b).await.unwrap();
            assert_eq!(&b, b"first");
            drop(h.await.unwrap());
        });
    }

    #[test]
    fn headers_survive_the_round_trip_and_nothing_else_is_taken() {
        rt().block_on(async {
            for h in [
                StreamHeader::Rpc,
                StreamHeader::Log,
                StreamHeader::Console { command: String::new() },
                StreamHeader::Console { command: "cat /proc/version".into() },
                StreamHeader::Stdio { container: "c1".into(), exec: String::new(), stream: Stdio::Out },
                StreamHeader::Stdio { container: "c1".into(), exec: "e".into(), stream: Stdio::In },
                StreamHeader::Dial { to: ([127, 0, 0, 1], 8080).into() },
                StreamHeader::Dial { to: "[fd00::1]:443".parse().unwrap() },
                StreamHeader::Names { at: [127, 0, 0, 11].into() },
                StreamHeader::Names { at: "::1".parse().unwrap() },
            ] {
                let mut bytes = h.encode();
                bytes.extend(b"rest");
                let mut io = &bytes[..];
                assert_eq!(StreamHeader::read(&mut io).await.unwrap(), h);
                assert_eq!(io, b"rest");
            }
            for bad in [
                &b"K\x01\x09\x00\x00\x00"[..],
                b"X\x01\x00\x00\x00\x00",
                b"K\x01\x01\x00\x00\x03\x00\x00\xff",
                b"K\x01\x08\x00\x00\x05\x00\x50\x7f\x00\x00",
                b"K\x01\x09\x00\x00\x03\x7f\x00\x00",
                b"K\x01\x03\x00\x00\x01\xff",
            ] {
                let mut io = bad;
                assert!(StreamHeader::read(&mut io).await.is_err(), "{bad:?}");
            }
        });
    }
}
