//! How the host reaches the agent.
//!
//! ```text
//! virtio-serial port ── handshake ── yamux ──┐
//! unix socket (tests) ─ handshake ── yamux ──┼─> StreamHeader ─> Rpc: the ttrpc server
//! vsock 1028 ────────────────────────────────┘                   Stdio: a process's pump
//! vsock 1024 ────────────────────────────────────────────────>   Log: the log
//!                                                                Dial: a connection in the guest
//!                                                                Names: questions for a name server of the host's
//!                                                                Console: the debug console
//! ```

mod dial;
pub mod mux;
mod names;
pub mod rpc;
pub mod serial;
pub mod unix;
pub mod vsock;

use std::sync::Arc;
use std::time::Duration;

use kata_proto::channel::StreamHeader;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};

use crate::attach::Attachments;
use crate::console::Console;
use crate::logger;

/// A two-way byte stream from the host.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Duplex for T {}

/// A boxed [`Duplex`].
pub type HostStream = Box<dyn Duplex>;

/// How long a new stream may take to say what it is for.
const HEADER_DEADLINE: Duration = Duration::from_secs(10);

/// The connection that a stream came with. A stream that ends with its connection was lost, not ended by the host.
#[derive(Clone)]
pub struct Session(watch::Receiver<bool>);

impl Session {
    /// A session and what ends it: sending `true`.
    pub fn new() -> (watch::Sender<bool>, Session) {
        let (tx, rx) = watch::channel(false);
        (tx, Session(rx))
    }

    /// One that never ends, for streams that are connections of their own.
    pub fn endless() -> Session {
        Session(watch::channel(false).1)
    }

    /// Whether its stream is a connection of its own.
    pub fn is_endless(&self) -> bool {
        self.0.has_changed().is_err() && !self.is_over()
    }

    /// Whether the connection is over.
    pub fn is_over(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits for that.
    pub async fn over(mut self) {
        if self.0.wait_for(|over| *over).await.is_err() && !self.is_over() {
            std::future::pending::<()>().await;
        }
    }
}

/// Takes the host's streams to where they belong. Clones share everything.
#[derive(Clone)]
pub struct Dispatcher {
    rpc: mpsc::Sender<HostStream>,
    attachments: Arc<Attachments>,
    console: Console,
}

impl Dispatcher {
    /// `rpc` feeds the ttrpc server.
    pub fn new(rpc: mpsc::Sender<HostStream>, attachments: Arc<Attachments>, console: Console) -> Self {
        Dispatcher { rpc, attachments, console }
    }

    /// A stream that is for remote calls.
    pub async fn rpc(&self, stream: HostStream) {
        if self.rpc.send(stream).await.is_err() {
            log::error!("the ttrpc server has ended; a connection to it is refused");
        }
    }

    /// A stream that begins with a header.
    pub async fn stream(&self, mut stream: HostStream, session: Session) {
        let header = match tokio::time::timeout(HEADER_DEADLINE, StreamHeader::read(&mut stream)).await {
            Ok(Ok(header)) => header,
            Ok(Err(_)) if session.is_over() => return,
            Ok(Err(e)) => return log::warn!("a stream of the host is refused: {}", crate::failure::chain(&e)),
            Err(_) => return log::warn!("a stream of the host is refused: it did not say what it is for"),
        };
        match header {
            StreamHeader::Rpc => self.rpc(stream).await,
            StreamHeader::Stdio { container, exec, stream: which } => {
                self.attachments.attach(&container, &exec, which, stream, session);
            }
            StreamHeader::Log => logger::stream_to(stream, session.over()).await,
            StreamHeader::Dial { to } => dial::call(stream, to, session.over()).await,
            StreamHeader::Names { at } => names::serve(stream, at, session.over()).await,
            StreamHeader::Console { command } => self.console.serve(stream, &command).await,
        }
    }
}
