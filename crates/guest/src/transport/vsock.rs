//! vsock: every call connection and every stream is a connection of its own (vsock(7)).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, getpeername, listen, socket};
use thiserror::Error;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{Dispatcher, Session};
use crate::fdio::{FdIo, Kind, watch};

/// The host's context id (VMADDR_CID_HOST). Nobody else may connect: a container has the loopback transport.
const HOST: u32 = 2;

/// Why vsock cannot be served.
#[derive(Debug, Error)]
pub enum VsockError {
    /// A port cannot be listened on; without the kernel's vsock, EAFNOSUPPORT.
    #[error("cannot listen on vsock port {port}")]
    Listen {
        /// The port.
        port: u32,
        /// Why.
        source: io::Error,
    },
}

/// The two listening sockets.
pub struct Listeners {
    rpc: AsyncFd<OwnedFd>,
    streams: AsyncFd<OwnedFd>,
}

impl Listeners {
    /// Listens on both ports.
    ///
    /// # Errors
    /// [`VsockError`]; this guest has no vsock then.
    pub fn open() -> Result<Self, VsockError> {
        Ok(Listeners {
            rpc: listener(kata_types::AGENT_VSOCK_PORT)?,
            streams: listener(kata_types::STREAM_VSOCK_PORT)?,
        })
    }

    /// Takes connections, for ever.
    ///
    /// # Errors
    /// accept(2)'s.
    pub async fn serve(self, dispatcher: &Dispatcher) -> io::Result<std::convert::Infallible> {
        loop {
            let (connection, has_header) = tokio::select! {
                c = accept(&self.rpc) => (c?, false),
                c = accept(&self.streams) => (c?, true),
            };
            let Some(connection) = connection else { continue };
            let dispatcher = dispatcher.clone();
            tokio::spawn(async move {
                if has_header {
                    dispatcher.stream(Box::new(connection), Session::endless()).await;
                } else {
                    dispatcher.rpc(Box::new(connection)).await;
                }
            });
        }
    }
}

fn listener(port: u32) -> Result<AsyncFd<OwnedFd>, VsockError> {
    let open = || {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
        bind(fd.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, port))?;
        listen(&fd, Backlog::new(64)?)?;
        watch(fd, Interest::READABLE)
    };
    open().map_err(|source| VsockError::Listen { port, source })
}

/// The next connection; `None` for one that is refused.
async fn accept(listener: &AsyncFd<OwnedFd>) -> io::Result<Option<FdIo>> {
    let fd = listener
        .async_io(Interest::READABLE, |l| Ok(rustix::net::accept_with(l, rustix::net::SocketFlags::CLOEXEC)?))
        .await?;
    let peer: VsockAddr = getpeername(fd.as_raw_fd())?;
    if peer.cid() != HOST {
        log::warn!("a vsock connection from context {} is refused", peer.cid());
        return Ok(None);
    }
    Ok(Some(FdIo::new(fd, Kind::Socket)?))
}
