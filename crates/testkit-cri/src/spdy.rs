//! The client's half of SPDY/3.1, as far as Kubernetes' streams need it: streams with a few headers, data both ways,
//! half-closed streams, pings. <https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1/>
//!
//! Headers we send are a zlib stream of stored blocks, which needs no dictionary and no compressor. Headers we get are not
//! needed, and not read.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Of a control frame: its highest bit, and version 3.
const CONTROL: u16 = 0x8003;
const SYN_STREAM: u16 = 1;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
/// The sender's half of the stream ends with this frame.
const FLAG_FIN: u8 = 1;
/// A frame's length has 24 bits.
const LARGEST_FRAME: usize = 0xff_ffff;
/// How much data we put into one frame.
const CHUNK: usize = 32 << 10;
/// No frame may stay half written or half read for longer.
const STALLED: Duration = Duration::from_secs(60);

/// What came on one stream.
#[derive(Debug, Default, Clone)]
pub struct Received {
    /// All of it so far.
    pub bytes: Vec<u8>,
    /// The other end has ended its half, or the connection.
    pub ended: bool,
}

#[derive(Default)]
struct Inbox {
    streams: BTreeMap<u32, Received>,
    closed: bool,
}

struct Outbox {
    tcp: TcpStream,
    /// The zlib stream of all headers has begun.
    begun: bool,
    next: u32,
}

/// A connection after its upgrade.
pub struct Connection {
    out: Arc<Mutex<Outbox>>,
    inbox: Arc<(Mutex<Inbox>, Condvar)>,
    tcp: TcpStream,
}

impl Connection {
    /// Asks for an upgrade of `http://HOST:PORT/PATH` with Kubernetes' sub-protocol `protocol`.
    ///
    /// # Errors
    /// Of the connection, or what the server answered instead.
    pub fn open(url: &str, protocol: &str) -> io::Result<Connection> {
        let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let rest = url.strip_prefix("http://").ok_or_else(|| wrong(format!("no http URL: {url}")))?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let mut tcp = TcpStream::connect(host)?;
        tcp.set_read_timeout(Some(STALLED))?;
        tcp.set_write_timeout(Some(STALLED))?;
        let request = format!(
            "POST /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
             X-Stream-Protocol-Version: {protocol}\r\nContent-Length: 0\r\n\r\n"
        );
        tcp.write_all(request.as_bytes())?;
        let head = read_head(&mut tcp)?;
        if !head.starts_with("HTTP/1.1 101 ") {
            return Err(wrong(format!("no upgrade of {url}: {head}")));
        }
        if !head.to_ascii_lowercase().contains(&format!("x-stream-protocol-version: {protocol}")) {
            return Err(wrong(format!("the server does not take {protocol}: {head}")));
        }
        // A stream may be silent for as long as it likes; whoever waits has a deadline of its own.
        tcp.set_read_timeout(None)?;
        let out = Arc::new(Mutex::new(Outbox { tcp: tcp.try_clone()?, begun: false, next: 1 }));
        let inbox = Arc::new((Mutex::new(Inbox::default()), Condvar::new()));
        let (reader, answers, received) = (tcp.try_clone()?, Arc::clone(&out), Arc::clone(&inbox));
        std::thread::spawn(move || {
            // It ends with the connection, by either side.
            drop(receive(reader, &answers, &received));
            let mut inbox = lock(&received.0);
            inbox.closed = true;
            inbox.streams.values_mut().for_each(|stream| stream.ended = true);
            received.1.notify_all();
        });
        Ok(Connection { out, inbox, tcp })
    }

    /// Opens a stream with these headers.
    ///
    /// # Errors
    /// Of the connection.
    pub fn stream(&self, headers: &[(&str, &str)]) -> io::Result<Stream> {
        let mut out = lock(&self.out);
        let id = out.next;
        out.next += 2;
        lock(&self.inbox.0).streams.entry(id).or_default();
        let block = headers_block(headers, !out.begun);
        out.begun = true;
        let mut payload = Vec::new();
        payload.extend(id.to_be_bytes());
        // No stream that this one belongs to, and no priority.
        payload.extend([0; 6]);
        payload.extend(block);
        control(&mut out.tcp, SYN_STREAM, &payload)?;
        Ok(Stream { id, out: Arc::clone(&self.out), inbox: Arc::clone(&self.inbox) })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Gone already is as good.
        drop(self.tcp.shutdown(std::net::Shutdown::Both));
    }
}

/// One stream of a connection.
pub struct Stream {
    id: u32,
    out: Arc<Mutex<Outbox>>,
    inbox: Arc<(Mutex<Inbox>, Condvar)>,
}

impl Stream {
    /// Sends this.
    ///
    /// # Errors
    /// Of the connection.
    pub fn send(&self, bytes: &[u8]) -> io::Result<()> {
        bytes.chunks(CHUNK).try_for_each(|chunk| data(&mut lock(&self.out).tcp, self.id, chunk, 0))
    }

    /// Ends our half.
    ///
    /// # Errors
    /// Of the connection.
    pub fn close(&self) -> io::Result<()> {
        data(&mut lock(&self.out).tcp, self.id, &[], FLAG_FIN)
    }

    /// What has come so far.
    pub fn received(&self) -> Received {
        lock(&self.inbox.0).streams.get(&self.id).cloned().unwrap_or_default()
    }

    /// Waits until what has come is as wanted, or the deadline has passed; what has come then.
    pub fn until(&self, within: Duration, mut wanted: impl FnMut(&Received) -> bool) -> Received {
        let end = Instant::now() + within;
        let mut inbox = lock(&self.inbox.0);
        loop {
            let received = inbox.streams.entry(self.id).or_default();
            let left = end.saturating_duration_since(Instant::now());
            if wanted(received) || left.is_zero() || received.ended {
                return received.clone();
            }
            inbox = self.inbox.1.wait_timeout(inbox, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The head of an HTTP answer, byte by byte: what follows it are frames.
fn read_head(tcp: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < 16 << 10 {
        let mut byte = [0];
        tcp.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// Headers in a zlib stream (RFC 1950) of stored blocks (RFC 1951, 3.2.4) that goes on from stream to stream; an empty
/// block after it makes the other end hand it out.
fn headers_block(headers: &[(&str, &str)], first: bool) -> Vec<u8> {
    let mut plain = Vec::new();
    let number = |into: &mut Vec<u8>, n: usize| into.extend(u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes());
    number(&mut plain, headers.len());
    for (name, value) in headers {
        for text in [name, value] {
            number(&mut plain, text.len());
            plain.extend(text.as_bytes());
        }
    }
    let mut block = if first { vec![0x78, 0x01] } else { Vec::new() };
    for part in [plain.as_slice(), &[]] {
        let length = u16::try_from(part.len()).unwrap_or_else(|_| panic!("{} bytes of headers", part.len()));
        block.push(0);
        block.extend(length.to_le_bytes());
        block.extend((!length).to_le_bytes());
        block.extend(part);
    }
    block
}

fn control(tcp: &mut TcpStream, kind: u16, payload: &[u8]) -> io::Result<()> {
    let mut frame = Vec::with_capacity(8 + payload.len());
    frame.extend(CONTROL.to_be_bytes());
    frame.extend(kind.to_be_bytes());
    frame.extend(flags_and_length(0, payload.len()));
    frame.extend(payload);
    tcp.write_all(&frame)
}

fn data(tcp: &mut TcpStream, id: u32, bytes: &[u8], flags: u8) -> io::Result<()> {
    let mut frame = Vec::with_capacity(8 + bytes.len());
    frame.extend(id.to_be_bytes());
    frame.extend(flags_and_length(flags, bytes.len()));
    frame.extend(bytes);
    tcp.write_all(&frame)
}

fn flags_and_length(flags: u8, length: usize) -> [u8; 4] {
    let length = u32::try_from(length.min(LARGEST_FRAME)).unwrap_or_default();
    (u32::from(flags) << 24 | length).to_be_bytes()
}

/// Reads frames until the connection ends.
fn receive(mut tcp: TcpStream, out: &Mutex<Outbox>, inbox: &(Mutex<Inbox>, Condvar)) -> io::Result<()> {
    loop {
        let mut head = [0; 8];
        tcp.read_exact(&mut head)?;
        let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (flags, length) = (head[4], (word(4) & 0xff_ffff) as usize);
        let mut payload = vec![0; length];
        tcp.read_exact(&mut payload)?;
        let first = payload.first_chunk::<4>().map(|id| u32::from_be_bytes(*id) & 0x7fff_ffff);
        let (id, ends) = if head[0] & 0x80 == 0 {
            let id = word(0);
            lock(&inbox.0).streams.entry(id).or_default().bytes.extend(&payload);
            (Some(id), flags & FLAG_FIN != 0)
        } else {
            match u16::from_be_bytes([head[2], head[3]]) {
                PING => {
                    control(&mut lock(out).tcp, PING, &payload)?;
                    (None, false)
                }
                RST_STREAM => (first, true),
                GOAWAY => return Ok(()),
                // Replies to our streams may end them at once; settings and windows are of no consequence to us.
                _ => (first, flags & FLAG_FIN != 0),
            }
        };
        if let Some(id) = id.filter(|_| ends)
            && let Some(stream) = lock(&inbox.0).streams.get_mut(&id)
        {
            stream.ended = true;
        }
        inbox.1.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_stored_blocks_of_one_zlib_stream() {
        let first = headers_block(&[("a", "bc")], true);
        let plain = [0, 0, 0, 1, 0, 0, 0, 1, b'a', 0, 0, 0, 2, b'b', b'c'];
        assert_eq!(first[..7], [0x78, 0x01, 0, 15, 0, 240, 255]);
        assert_eq!(first[7..22], plain);
        assert_eq!(first[22..], [0, 0, 0, 255, 255]);
        assert_eq!(headers_block(&[("a", "bc")], false), first[2..]);
        // RFC 1950: the two bytes of the head are a multiple of 31.
        assert_eq!(u16::from_be_bytes([first[0], first[1]]) % 31, 0);
    }

    #[test]
    fn flags_and_lengths_share_a_word() {
        assert_eq!(flags_and_length(FLAG_FIN, 0x01_0203), [1, 1, 2, 3]);
    }
}
