//! A blocking rtnetlink socket (rtnetlink(7)): lists, and several changes at once.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

/// How long the kernel may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// The kernel's answers come in pieces of at most this (net/netlink/af_netlink.c, `netlink_dump`).
const PIECE: usize = 64 << 10;
/// A list that changes while it is read is read again, this often.
const TRIES: usize = 10;
/// No list is longer than this.
const LONGEST: usize = 100_000;

/// A socket of the namespace of the thread that made it.
#[derive(Debug)]
pub(crate) struct Netlink {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// A change and the flags of its request (`NLM_F_CREATE`, ...).
pub(crate) type Change = (RouteNetlinkMessage, u16);

/// A socket that hears of these groups (`RTMGRP_*`, as bits).
pub(crate) fn open(groups: u32, flags: SockFlag) -> io::Result<OwnedFd> {
    let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC | flags, SockProtocol::NetlinkRoute)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(fd)
}

impl Netlink {
    pub(crate) fn new() -> io::Result<Netlink> {
        let fd = open(0, SockFlag::empty())?;
        let patience = TimeVal::new(ANSWER.as_secs().cast_signed(), 0);
        setsockopt(&fd, sockopt::ReceiveTimeout, &patience)?;
        setsockopt(&fd, sockopt::SendTimeout, &patience)?;
        Ok(Netlink { fd, sequence: 0, buffer: vec![0; PIECE] })
    }

    fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let sent = send(self.fd.as_raw_fd(), bytes, MsgFlags::empty())?;
        if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// All of a kind of objects.
    pub(crate) fn list(&mut self, what: &RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..TRIES {
            if let Some(all) = self.list_once(what.clone())? {
                return Ok(all);
            }
        }
        Err(io::Error::other("it changes all the time"))
    }

    /// `None`: it has changed meanwhile.
    fn list_once(&mut self, what: RouteNetlinkMessage) -> io::Result<Option<Vec<RouteNetlinkMessage>>> {
        let sequence = self.next();
        let mut request = Vec::new();
        emit(&mut request, what, NLM_F_REQUEST | NLM_F_DUMP, sequence);
        self.send(&request)?;
        let (mut all, mut whole) = (Vec::new(), true);
        let deadline = Instant::now() + ANSWER;
        loop {
            for message in self.receive(sequence, deadline)? {
                whole &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(_) if all.len() >= LONGEST => {
                        return Err(io::Error::other(format!("there are more than {LONGEST}")));
                    }
                    NetlinkPayload::InnerMessage(inner) => all.push(inner),
                    NetlinkPayload::Done(done) if done.code == 0 => return Ok(whole.then_some(all)),
                    NetlinkPayload::Done(done) => return Err(io::Error::from_raw_os_error(-done.code)),
                    NetlinkPayload::Error(e) if e.code.is_some() => return Err(e.to_io()),
                    _ => {}
                }
            }
        }
    }

    /// Sends all of `changes` at once. The kernel makes them one after the other, also after one has failed; the results are
    /// in their order.
    pub(crate) fn change(&mut self, changes: Vec<Change>) -> io::Result<Vec<io::Result<()>>> {
        let (first, count) = (self.sequence.wrapping_add(1), changes.len());
        let mut request = Vec::new();
        for (message, flags) in changes {
            let sequence = self.next();
            emit(&mut request, message, NLM_F_REQUEST | NLM_F_ACK | flags, sequence);
        }
        self.send(&request)?;
        let deadline = Instant::now() + ANSWER;
        let mut results: Vec<Option<io::Result<()>>> = (0..count).map(|_| None).collect();
        while results.iter().any(Option::is_none) {
            for message in self.pieces(deadline)? {
                let NetlinkPayload::Error(e) = message.payload else { continue };
                let nth = message.header.sequence_number.wrapping_sub(first) as usize;
                if let Some(result) = results.get_mut(nth) {
                    *result = Some(if e.code.is_some() { Err(e.to_io()) } else { Ok(()) });
                }
            }
        }
        Ok(results.into_iter().flatten().collect())
    }

    fn receive(
        &mut self,
        sequence: u32,
        deadline: Instant,
    ) -> io::Result<impl Iterator<Item = NetlinkMessage<RouteNetlinkMessage>>> {
        // What belongs to a list that was given up is not of this one.
        Ok(self.pieces(deadline)?.into_iter().filter(move |m| m.header.sequence_number == sequence))
    }

    fn pieces(&mut self, deadline: Instant) -> io::Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let n = match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC) {
            Ok(n) if n > self.buffer.len() => return Err(io::Error::other("an answer is too long")),
            Ok(n) => n,
            Err(nix::errno::Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            Err(e) => return Err(e.into()),
        };
        Ok(parse(&self.buffer[..n]))
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn emit(to: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16, sequence: u32) {
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
    message.header.flags = flags;
    message.header.sequence_number = sequence;
    message.finalize();
    let at = to.len();
    to.resize(at + message.buffer_len().next_multiple_of(4), 0);
    message.serialize(&mut to[at..]);
}

/// The messages of one datagram. One that the library does not understand is left out: kernels add kinds of interfaces and
/// attributes, and none of them may keep a sandbox from its network.
pub(crate) fn parse(mut bytes: &[u8]) -> Vec<NetlinkMessage<RouteNetlinkMessage>> {
    let mut all = Vec::new();
    while let Some(length) = bytes.first_chunk::<4>() {
        let length = u32::from_ne_bytes(*length) as usize;
        let Some(one) = bytes.get(..length).filter(|one| one.len() >= 16) else { break };
        match NetlinkMessage::deserialize(one) {
            Ok(message) => all.push(message),
            Err(e) => tracing::debug!("a netlink message is not understood: {e}"),
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    all
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::LinkMessage;

    use super::*;

    #[test]
    fn messages_come_back_and_rubbish_ends_the_reading() {
        let mut bytes = Vec::new();
        for sequence in 1..=3 {
            emit(&mut bytes, RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_REQUEST, sequence);
        }
        let numbers = |bytes: &[u8]| parse(bytes).iter().map(|m| m.header.sequence_number).collect::<Vec<_>>();
        assert_eq!(numbers(&bytes), [1, 2, 3]);
        assert_eq!(numbers(&bytes[..bytes.len() - 4]), [1, 2]);
        for rubbish in [&[0u8; 16][..], &[0xff; 64], &[4, 0, 0, 0], &[]] {
            assert!(parse(rubbish).is_empty());
        }
    }
}
