//! Descriptors in tokio's reactor: pipes, terminals, the virtio-serial port, vsock connections.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// What a descriptor is, where that makes a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A pipe or a character device.
    Plain,
    /// A terminal's master side: EIO means that nobody has the other side open any more, which is an end of file.
    Terminal,
    /// A socket: shutting its writing side down tells the peer.
    Socket,
}

/// Puts a descriptor into the reactor.
///
/// # Errors
/// When the kind of file cannot be polled.
#[expect(
    deprecated,
    reason = "unsound only for types whose descriptor may change; an OwnedFd's does not, and the \
                               replacement is unsafe"
)]
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, interest)
}

/// A descriptor that is read and written without blocking; one task may read while another writes.
pub struct FdIo {
    fd: AsyncFd<OwnedFd>,
    kind: Kind,
}

impl FdIo {
    /// Makes `fd` non-blocking and watches it.
    ///
    /// # Errors
    /// When the kind of file cannot be polled, or outside the runtime.
    pub fn new(fd: OwnedFd, kind: Kind) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(FdIo { fd: watch(fd, Interest::READABLE | Interest::WRITABLE)?, kind })
    }

    fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        match rustix::io::read(self.fd.get_ref(), buf) {
            Err(Errno::IO) if self.kind == Kind::Terminal => Ok(0),
            other => Ok(other?),
        }
    }

    /// Reads some bytes; 0 at the end.
    ///
    /// # Errors
    /// read(2)'s.
    pub async fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut guard = self.fd.readable().await?;
            match guard.try_io(|_| self.try_read(buf)) {
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// Waits until there is something to read, or the end.
    ///
    /// # Errors
    /// When the reactor is gone.
    pub async fn readable(&self) -> io::Result<()> {
        self.fd.readable().await.map(|mut guard| guard.retain_ready())
    }

    /// Writes everything.
    ///
    /// # Errors
    /// write(2)'s; EPIPE when nobody reads any more.
    pub async fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let mut guard = self.fd.writable().await?;
            match guard.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), data)?)) {
                Ok(Ok(n)) => data = &data[n..],
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(e)) => return Err(e),
                Err(_would_block) => {}
            }
        }
        Ok(())
    }
}

impl AsFd for FdIo {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.get_ref().as_fd()
    }
}

impl AsyncRead for FdIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.fd.poll_read_ready(cx))?;
            match guard.try_io(|_| self.try_read(buf.initialize_unfilled())) {
                Ok(Ok(n)) => {
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(e)) => return Poll::Ready(Err(e)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for FdIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.fd.poll_write_ready(cx))?;
            match guard.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), data)?)) {
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.kind == Kind::Socket {
            match rustix::net::shutdown(self.fd.get_ref(), rustix::net::Shutdown::Write) {
                // The peer was faster.
                Ok(()) | Err(Errno::NOTCONN) => {}
                Err(e) => return Poll::Ready(Err(e.into())),
            }
        }
        Poll::Ready(Ok(()))
    }
}
