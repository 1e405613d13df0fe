//! A route netlink socket (netlink(7), rtnetlink(7)): one request, its answers. Blocks; the kernel answers at once.
//!
//! The framing of messages and attributes is `netlink_packet_core`'s; what is in them is the modules' beside this one.

use std::io;
use std::time::Duration;

use netlink_packet_core::{
    DefaultNla, Emitable, NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE,
    NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN, NetlinkBuffer, NlasIterator,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use thiserror::Error;

/// The length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Longer than any datagram of a dump, which the kernel limits to 32 KiB (netlink_dump of net/netlink/af_netlink.c).
const DATAGRAM: usize = 64 * 1024;
/// The kernel answers while it takes the request. This is for a kernel in trouble.
const ANSWER: Duration = Duration::from_secs(10);
/// More entries than a table of ours ever has; a guest full of somebody's routes is told as such.
const ENTRIES: usize = 16 * 1024;
/// How often a dump is begun again because its table changed meanwhile.
const TRIES: usize = 5;
/// The attribute of an error with its text (linux/netlink.h).
const NLMSGERR_ATTR_MSG: u16 = 1;
/// rtnetlink(7): interfaces that come, go and change.
const RTMGRP_LINK: u32 = 1;

/// Why the kernel was not asked, or what it said.
#[derive(Debug, Error)]
pub enum NetlinkError {
    /// No socket.
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
    /// Sending or receiving.
    #[error("cannot {what} netlink")]
    Io {
        /// Which.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The kernel's refusal, in its words where it has any.
    #[error("{}{}", errno.desc(), told(text))]
    Refused {
        /// Its number.
        errno: Errno,
        /// What it said beyond that; often nothing.
        text: String,
    },
    /// An answer that is none.
    #[error("the kernel's answer is malformed: {0}")]
    Malformed(String),
    /// Too many entries.
    #[error("the kernel lists more than {ENTRIES} entries")]
    TooMany,
    /// A table that does not stay the same for as long as it takes to read it.
    #[error("the list changed each of the {TRIES} times that it was read")]
    Restless,
}

fn told(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" ({text})") }
}

impl NetlinkError {
    /// Whether the kernel refused with this number.
    pub fn is(&self, wanted: Errno) -> bool {
        matches!(self, NetlinkError::Refused { errno, .. } if *errno == wanted)
    }
}

/// A message to the kernel.
pub struct Request {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
    attributes: Vec<DefaultNla>,
}

impl Request {
    /// `kind`: `RTM_...`; `flags`: `NLM_F_...` beyond the usual; `body`: the message's fixed part, a multiple of four
    /// bytes long.
    pub fn new(kind: u16, flags: u16, body: Vec<u8>) -> Self {
        Request { kind, flags, body, attributes: Vec::new() }
    }

    /// Adds an attribute.
    pub fn with(mut self, kind: u16, value: impl Into<Vec<u8>>) -> Self {
        self.attributes.push(DefaultNla::new(kind, value.into()));
        self
    }

    /// Adds a number.
    pub fn with_u32(self, kind: u16, value: u32) -> Self {
        self.with(kind, value.to_ne_bytes())
    }

    /// Adds a string, terminated.
    pub fn with_str(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.with(kind, bytes)
    }

    fn encode(&self, flags: u16, sequence: u32) -> Vec<u8> {
        let attributes = self.attributes.as_slice();
        let mut bytes = vec![0; HEADER + self.body.len() + attributes.buffer_len()];
        let (length, kind) = (bytes.len() as u32, self.kind);
        let mut header = NetlinkBuffer::new(&mut bytes);
        header.set_length(length);
        header.set_message_type(kind);
        header.set_flags(self.flags | flags | NLM_F_REQUEST);
        header.set_sequence_number(sequence);
        bytes[HEADER..][..self.body.len()].copy_from_slice(&self.body);
        attributes.emit(&mut bytes[HEADER + self.body.len()..]);
        bytes
    }
}

/// The attributes of a message whose fixed part is `skip` bytes long. What is cut off ends them.
pub fn attributes(message: &[u8], skip: usize) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(message.get(skip..).unwrap_or_default())
        .map_while(Result::ok)
        .map(|nla| (nla.kind(), &nla.into_inner()[4..usize::from(nla.length())]))
}

/// A number of a message, in the machine's byte order.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// The socket.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens one.
    ///
    /// # Errors
    /// [`NetlinkError::Open`].
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Netlink { socket: socket(0, ANSWER).map_err(NetlinkError::Open)?, sequence: 0 })
    }

    fn send(&mut self, request: &Request, flags: u16) -> Result<(), NetlinkError> {
        self.sequence += 1;
        let bytes = request.encode(flags, self.sequence);
        self.socket.send(&bytes, 0).map_err(|source| NetlinkError::Io { what: "write to", source })?;
        Ok(())
    }

    fn receive(&self, buffer: &mut Vec<u8>) -> Result<(), NetlinkError> {
        buffer.clear();
        let got = loop {
            match self.socket.recv(buffer, libc::MSG_TRUNC) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other.map_err(|source| NetlinkError::Io { what: "read from", source })?,
            }
        };
        if got > DATAGRAM {
            return Err(NetlinkError::Malformed(format!("a datagram of {got} bytes")));
        }
        Ok(())
    }

    /// Has the kernel change something.
    ///
    /// # Errors
    /// [`NetlinkError`]; [`NetlinkError::Refused`] is the kernel's.
    pub fn change(&mut self, request: &Request) -> Result<(), NetlinkError> {
        self.send(request, NLM_F_ACK)?;
        let mut buffer = Vec::with_capacity(DATAGRAM);
        loop {
            self.receive(&mut buffer)?;
            for message in Messages(&buffer) {
                let message = message?;
                if message.sequence == self.sequence && message.kind == NLMSG_ERROR {
                    return message.acknowledged();
                }
            }
        }
    }

    /// Lists. `each` gets the payload of every message of the kind `answer`.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn dump<T>(
        &mut self,
        request: &Request,
        answer: u16,
        each: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..TRIES {
            if let Some(list) = self.dump_once(request, answer, &each)? {
                return Ok(list);
            }
        }
        Err(NetlinkError::Restless)
    }

    fn dump_once<T>(
        &mut self,
        request: &Request,
        answer: u16,
        each: &impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Option<Vec<T>>, NetlinkError> {
        self.send(request, NLM_F_DUMP)?;
        let (mut list, mut changed, mut entries) = (Vec::new(), false, 0);
        let mut buffer = Vec::with_capacity(DATAGRAM);
        loop {
            self.receive(&mut buffer)?;
            for message in Messages(&buffer) {
                let message = message?;
                if message.sequence != self.sequence {
                    continue;
                }
                changed |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    // Its payload is a number as an error's is, or nothing.
                    NLMSG_DONE => {
                        if !message.payload.is_empty() {
                            message.acknowledged()?;
                        }
                        return Ok((!changed).then_some(list));
                    }
                    NLMSG_ERROR => message.acknowledged()?,
                    NLMSG_NOOP => {}
                    NLMSG_OVERRUN => return Err(NetlinkError::Malformed("data was lost".into())),
                    kind if kind == answer => {
                        entries += 1;
                        if entries > ENTRIES {
                            return Err(NetlinkError::TooMany);
                        }
                        list.extend(each(message.payload));
                    }
                    kind => return Err(NetlinkError::Malformed(format!("a message of kind {kind}"))),
                }
            }
        }
    }
}

fn socket(groups: u32, limit: Duration) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind(&SocketAddr::new(0, groups))?;
    socket.connect(&SocketAddr::new(0, 0))?;
    // Refusals come with words, and without the request.
    socket.set_ext_ack(true)?;
    socket.set_cap_ack(true)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(limit))?;
    Ok(socket)
}

/// Tells when the interfaces change.
pub struct Changes(Socket);

impl Changes {
    /// Begins to listen. One wait takes no longer than `limit`.
    ///
    /// # Errors
    /// [`NetlinkError::Open`].
    pub fn listen(limit: Duration) -> Result<Self, NetlinkError> {
        Ok(Changes(socket(RTMGRP_LINK, limit).map_err(NetlinkError::Open)?))
    }

    /// Waits for the next change, or until the limit. What was lost by a full queue counts as one.
    pub fn wait(&self) {
        let mut buffer = Vec::with_capacity(DATAGRAM);
        // What it says does not matter, nor why it says nothing: whoever waits looks again.
        let _ = self.0.recv(&mut buffer, 0);
    }
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

impl Message<'_> {
    /// What an `NLMSG_ERROR` says: 0 is well done.
    fn acknowledged(&self) -> Result<(), NetlinkError> {
        let code = u32_at(self.payload, 0).ok_or_else(|| NetlinkError::Malformed("an error without number".into()))?;
        if code == 0 {
            return Ok(());
        }
        let errno = Errno::from_raw((code as i32).saturating_neg());
        let mut text = String::new();
        if self.flags & NLM_F_ACK_TLVS != 0 {
            for (kind, value) in attributes(self.payload, 4 + HEADER) {
                if kind == NLMSGERR_ATTR_MSG {
                    text = String::from_utf8_lossy(value).trim_end_matches('\0').trim_end_matches('.').to_owned();
                }
            }
        }
        Err(NetlinkError::Refused { errno, text })
    }
}

/// The messages of one datagram.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, NetlinkError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let bytes = std::mem::take(&mut self.0);
        let buffer = match NetlinkBuffer::new_checked(bytes) {
            Ok(buffer) => buffer,
            Err(e) => return Some(Err(NetlinkError::Malformed(e.to_string()))),
        };
        let length = buffer.length() as usize;
        self.0 = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok(Message {
            kind: buffer.message_type(),
            flags: buffer.flags(),
            sequence: buffer.sequence_number(),
            payload: &bytes[HEADER..length],
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_framed_and_read_back() {
        let bytes = Request::new(20, NLM_F_ACK, vec![7; 8]).with_str(3, "eth0").with_u32(4, 1500).encode(0, 9);
        let all: Vec<_> = Messages(&bytes).map(Result::unwrap).collect();
        assert_eq!((all.len(), all[0].kind, all[0].sequence), (1, 20, 9));
        let found: Vec<_> = attributes(all[0].payload, 8).collect();
        assert_eq!(found, [(3, &b"eth0\0"[..]), (4, &1500u32.to_ne_bytes()[..])]);
        assert_eq!(attributes(&all[0].payload[..16], 8).count(), 0, "what is cut off is not read");
        assert!(Messages(&bytes[..20]).next().unwrap().is_err());
        assert!(Messages(&[0; 32]).next().unwrap().is_err(), "a length of 0 would never end");
    }

    #[test]
    fn a_refusal_has_the_kernels_words() {
        let mut payload = (-22i32).to_ne_bytes().to_vec();
        payload.extend([0; HEADER]);
        let mut text = vec![0; 4 + 20];
        DefaultNla::new(NLMSGERR_ATTR_MSG, b"Nexthop is invalid.\0".to_vec()).emit(&mut text);
        payload.extend(text);
        let message = Message { kind: NLMSG_ERROR, flags: NLM_F_ACK_TLVS, sequence: 0, payload: &payload };
        let e = message.acknowledged().unwrap_err();
        assert!(e.is(Errno::EINVAL), "{e}");
        assert_eq!(e.to_string(), "Invalid argument (Nexthop is invalid)");
        assert!(Message { payload: &[0; 20], ..message }.acknowledged().is_ok());
    }
}
