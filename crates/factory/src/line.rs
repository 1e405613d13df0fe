//! One JSON line that comes over a unix socket, with descriptors (unix(7), SCM_RIGHTS): what a hand-over and a shim that
//! attaches begin with.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde::de::DeserializeOwned;

/// A line longer than this is none of ours.
const MAX_LINE: usize = 64 << 10;
/// More descriptors than this are none of ours either.
const MAX_FDS: usize = 4;

/// A line that is coming, from a stream that does not block.
#[derive(Debug, Default)]
pub struct IncomingLine {
    text: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl IncomingLine {
    /// Reads what is there now; `None` as long as the line is not whole.
    ///
    /// # Errors
    /// `WouldBlock`; `UnexpectedEof` and `InvalidData` from somebody who says something else; else recvmsg(2)'s.
    pub fn read<T: DeserializeOwned>(&mut self, stream: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut buffer = [0u8; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let message = recvmsg(stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = part {
                self.fds.extend(rights);
            }
        }
        if message.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.text.extend_from_slice(&buffer[..message.bytes]);
        if self.text.len() > MAX_LINE || self.fds.len() > MAX_FDS {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if !self.text.ends_with(b"\n") {
            return Ok(None);
        }
        Ok(Some((serde_json::from_slice(&self.text)?, std::mem::take(&mut self.fds))))
    }
}
