//! The host's end of the agent channel: connecting, remote calls, streams, the guest's log.
//!
//! With vsock each call connection and each stream is a connection of its own. Without it, this crate is the
//! proxy: one virtio-serial port carries yamux, and every client of the guest is a stream on it with its own window,
//! so that a reader who does not read stalls nobody else.

mod calls;
mod connect;
mod mux;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::watch;

pub use calls::{CallError, Calls};
pub use connect::{Endpoint, connect};

/// A two-way byte stream to the guest. Shutting its writing side down tells the guest "end of input".
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A boxed [`Duplex`].
pub type AgentStream = Box<dyn Duplex>;

/// Why the agent cannot be reached.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The channel's socket.
    #[error("cannot connect to the agent at {endpoint}")]
    Io {
        /// Where.
        endpoint: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It did not answer.
    #[error("the agent at {endpoint} did not answer within {} s", waited.as_secs())]
    Silent {
        /// Where.
        endpoint: String,
        /// For how long we asked.
        waited: Duration,
    },
    /// A stream could not be opened on a connection that is over.
    #[error("the connection to the agent is closed")]
    Closed,
}

/// A connection to one guest's agent. Clones share it.
#[derive(Clone)]
pub struct AgentClient {
    calls: Calls,
    streams: connect::Streams,
    closed: watch::Receiver<bool>,
}

impl AgentClient {
    /// Remote calls.
    pub fn calls(&self) -> &Calls {
        &self.calls
    }

    /// Opens one stdio stream of a process. The guest takes it before or after the process exists.
    ///
    /// # Errors
    /// [`ConnectError`] when the connection is over.
    pub async fn stdio(
        &self,
        container: &str,
        exec: &str,
        stream: kata_proto::channel::Stdio,
    ) -> Result<AgentStream, ConnectError> {
        let header =
            kata_proto::channel::StreamHeader::Stdio { container: container.to_owned(), exec: exec.to_owned(), stream };
        self.streams.open(&header).await
    }

    /// Opens the guest's log: one JSON object a line.
    ///
    /// # Errors
    /// [`ConnectError`] when the connection is over.
    pub async fn log(&self) -> Result<AgentStream, ConnectError> {
        self.streams.open(&kata_proto::channel::StreamHeader::Log).await
    }

    /// Has the guest connect to one of its own addresses; the stream is that connection. `None`: nobody answers there.
    ///
    /// # Errors
    /// [`ConnectError`] when the connection to the agent is over, or ends meanwhile.
    pub async fn dial(&self, to: SocketAddr) -> Result<Option<AgentStream>, ConnectError> {
        let mut stream = self.streams.open(&kata_proto::channel::StreamHeader::Dial { to }).await?;
        match stream.read_u8().await {
            Ok(kata_proto::channel::DIALLED) => Ok(Some(stream)),
            Ok(_) => Ok(None),
            Err(_) => Err(ConnectError::Closed),
        }
    }

    /// Has the guest answer for the name server at this address of the host; the stream carries questions and answers
    /// ([`kata_proto::names`]). `None`: it cannot listen there.
    ///
    /// # Errors
    /// [`ConnectError`] when the connection to the agent is over, or ends meanwhile.
    pub async fn names(&self, at: IpAddr) -> Result<Option<AgentStream>, ConnectError> {
        let mut stream = self.streams.open(&kata_proto::channel::StreamHeader::Names { at }).await?;
        match stream.read_u8().await {
            Ok(kata_proto::channel::DIALLED) => Ok(Some(stream)),
            Ok(_) => Ok(None),
            Err(_) => Err(ConnectError::Closed),
        }
    }

    /// Opens a debug console: text both ways. With a command: what that prints. A guest that has none says so.
    ///
    /// # Errors
    /// [`ConnectError`] when the connection is over.
    pub async fn console(&self, command: &str) -> Result<AgentStream, ConnectError> {
        self.streams.open(&kata_proto::channel::StreamHeader::Console { command: command.to_owned() }).await
    }

    /// Becomes true when the connection is over, for whatever reason; never missed.
    pub fn closed(&self) -> watch::Receiver<bool> {
        self.closed.clone()
    }
}
