//! The socket between the agent and a helper: whole messages (SOCK_SEQPACKET), some of which carry descriptors.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::error::JailError;

/// Longest text in a message; longer ones are cut.
const MAX_TEXT: usize = 4096;
/// Most descriptors in a message: a job's (see [`crate::launch`]).
const MAX_FDS: usize = 8;

/// What the two say.
#[derive(Debug)]
pub(crate) enum Message {
    /// Agent: the job, in the first descriptor; the others belong to it.
    Job(Vec<OwnedFd>),
    /// Helper: write my user namespace's id maps.
    MapIds,
    /// Agent: they are written.
    Mapped,
    /// Helper: this is the container's process. Its pid in the agent's namespace, and its pidfd.
    Process(i32, OwnedFd),
    /// Helper: the terminal's master side.
    Terminal(OwnedFd),
    /// Helper: for the agent's log.
    Warning(String),
    /// Helper: all is done but the execve, which waits for `Start`.
    Ready,
    /// Agent: run it. If that works the helper's end closes without a word.
    Start,
    /// Helper: it failed, and the helper is gone.
    Failed(JailError),
}

/// One end.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Channel {
    /// Two connected ends, both close-on-exec.
    pub(crate) fn pair() -> Result<(Channel, Channel), Errno> {
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Channel(a), Channel(b)))
    }

    pub(crate) fn from_fd(fd: OwnedFd) -> Self {
        Channel(fd)
    }

    pub(crate) fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// Sends one message; never raises SIGPIPE.
    pub(crate) fn send(&self, message: &Message) -> Result<(), Errno> {
        let mut fds: Vec<BorrowedFd<'_>> = Vec::new();
        let mut body = Vec::new();
        match message {
            Message::Job(all) => {
                body.push(b'J');
                fds.extend(all.iter().map(AsFd::as_fd));
            }
            Message::MapIds => body.push(b'U'),
            Message::Mapped => body.push(b'u'),
            Message::Process(pid, pidfd) => {
                body.push(b'P');
                body.extend(pid.to_ne_bytes());
                fds.push(pidfd.as_fd());
            }
            Message::Terminal(master) => {
                body.push(b'T');
                fds.push(master.as_fd());
            }
            Message::Warning(text) => {
                body.push(b'W');
                body.extend(&text.as_bytes()[..text.len().min(MAX_TEXT)]);
            }
            Message::Ready => body.push(b'R'),
            Message::Start => body.push(b'S'),
            Message::Failed(e) => {
                body.push(b'E');
                let text = e.encode();
                body.extend(&text[..text.len().min(MAX_TEXT)]);
            }
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(Errno::TOOBIG);
        }
        rustix::io::retry_on_intr(|| sendmsg(&self.0, &[IoSlice::new(&body)], &mut control, SendFlags::NOSIGNAL))
            .map(|_| ())
    }

    /// Waits for a message; `None` when the other end is closed. ETIMEDOUT after `deadline`.
    pub(crate) fn recv(&self, deadline: Option<Instant>) -> Result<Option<Message>, Errno> {
        if let Some(deadline) = deadline {
            self.wait(deadline)?;
        }
        let mut body = [0u8; MAX_TEXT + 16];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = loop {
            let mut slices = [IoSliceMut::new(&mut body)];
            match recvmsg(&self.0, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(Errno::INTR) => {}
                // A peer that died with our message unread.
                Err(Errno::CONNRESET) => return Ok(None),
                other => break other?,
            }
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        match body[..got.bytes].split_first() {
            None => Ok(None),
            Some((kind, rest)) => parse(*kind, rest, fds).map(Some).ok_or(Errno::BADMSG),
        }
    }

    fn wait(&self, deadline: Instant) -> Result<(), Errno> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos() as _ };
            match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&timeout)) {
                Ok(0) => return Err(Errno::TIMEDOUT),
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
    }
}

fn parse(kind: u8, rest: &[u8], mut fds: Vec<OwnedFd>) -> Option<Message> {
    Some(match kind {
        b'J' => Message::Job(fds),
        b'U' => Message::MapIds,
        b'u' => Message::Mapped,
        b'P' => Message::Process(i32::from_ne_bytes(rest.try_into().ok()?), fds.pop()?),
        b'T' => Message::Terminal(fds.pop()?),
        b'W' => Message::Warning(String::from_utf8_lossy(rest).into_owned()),
        b'R' => Message::Ready,
        b'S' => Message::Start,
        b'E' => Message::Failed(JailError::decode(rest)),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Duration;

    use super::*;

    #[test]
    fn messages_keep_their_bounds_and_their_descriptors() {
        let (a, b) = Channel::pair().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        a.send(&Message::Warning("x".repeat(10_000))).unwrap();
        a.send(&Message::Process(7, write)).unwrap();
        a.send(&Message::Failed(JailError::NotExecutable { name: "/x".into() })).unwrap();
        let Ok(Some(Message::Warning(text))) = b.recv(None) else { panic!() };
        assert_eq!(text.len(), MAX_TEXT);
        let Ok(Some(Message::Process(7, fd))) = b.recv(None) else { panic!() };
        rustix::io::write(&fd, b"hi").unwrap();
        let mut buf = [0; 2];
        std::fs::File::from(read).read_exact(&mut buf).unwrap();
        assert_eq!(&buf, b"hi");
        assert!(matches!(b.recv(None), Ok(Some(Message::Failed(JailError::NotExecutable { .. })))));
        let soon = Instant::now() + Duration::from_millis(20);
        assert_eq!(b.recv(Some(soon)).unwrap_err(), Errno::TIMEDOUT);
        drop(a);
        assert!(b.recv(None).unwrap().is_none());
    }
}
