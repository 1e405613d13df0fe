//! Reaching the agent, by either channel.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use kata_proto::channel::{Nonce, StreamHeader, host_handshake};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::watch;
use ttrpc::r#async::transport::Socket;

use crate::mux::Mux;
use crate::{AgentClient, AgentStream, Calls, ConnectError};

/// Where an agent is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A unix socket whose stream is the guest's virtio-serial port.
    Serial(PathBuf),
    /// A guest's context id.
    Vsock(u32),
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Endpoint::Serial(path) => write!(f, "{}", path.display()),
            Endpoint::Vsock(cid) => write!(f, "vsock {cid}"),
        }
    }
}

/// How streams are opened.
#[derive(Clone)]
pub(crate) enum Streams {
    Mux(Mux),
    Vsock(u32),
}

impl Streams {
    pub(crate) async fn open(&self, header: &StreamHeader) -> Result<AgentStream, ConnectError> {
        let lost = |_| ConnectError::Closed;
        match self {
            Streams::Mux(mux) => {
                let mut stream = mux.open().await.ok_or(ConnectError::Closed)?;
                stream.write_all(&header.encode()).await.map_err(lost)?;
                stream.flush().await.map_err(lost)?;
                Ok(Box::new(stream))
            }
            Streams::Vsock(cid) => {
                let address = format!("vsock://{cid}:{}", kata_types::STREAM_VSOCK_PORT);
                let mut stream = Socket::connect(&address)
                    .await
                    .map_err(|source| ConnectError::Io { endpoint: address.clone(), source })?;
                stream.write_all(&header.encode()).await.map_err(lost)?;
                Ok(Box::new(stream))
            }
        }
    }
}

/// How long between attempts to reach a guest that does not listen yet.
const AGAIN: Duration = Duration::from_millis(20);

/// Connects and waits until the agent answers. `nonce` must be random: it names this connection.
///
/// # Errors
/// [`ConnectError::Silent`] at the deadline, [`ConnectError::Io`] when the socket itself fails.
pub async fn connect(endpoint: &Endpoint, nonce: Nonce, deadline: Instant) -> Result<AgentClient, ConnectError> {
    let start = Instant::now();
    let attempt = async {
        match endpoint {
            Endpoint::Serial(path) => {
                let io = |source| ConnectError::Io { endpoint: endpoint.to_string(), source };
                let mut socket = UnixStream::connect(path).await.map_err(io)?;
                match host_handshake(&mut socket, nonce).await {
                    Ok(()) => {}
                    Err(kata_proto::channel::HandshakeError::Io(source)) => return Err(io(source)),
                }
                let (tx, closed) = watch::channel(false);
                let mux = Mux::start(socket, tx);
                let mut rpc = mux.open().await.ok_or(ConnectError::Closed)?;
                rpc.write_all(&StreamHeader::Rpc.encode()).await.map_err(io)?;
                Ok(AgentClient { calls: Calls::new(Socket::new(rpc)), streams: Streams::Mux(mux), closed })
            }
            Endpoint::Vsock(cid) => {
                let address = format!("vsock://{cid}:{}", kata_types::AGENT_VSOCK_PORT);
                let socket = loop {
                    match Socket::connect(&address).await {
                        Ok(socket) => break socket,
                        Err(_) => tokio::time::sleep(AGAIN).await,
                    }
                };
                let (tx, closed) = watch::channel(false);
                let client = AgentClient { calls: Calls::new(socket), streams: Streams::Vsock(*cid), closed };
                // The only way to see a vsock peer go is a connection that ends.
                let mut watched = client.log().await?;
                tokio::spawn(async move {
                    let mut sink = tokio::io::sink();
                    drop(tokio::io::copy(&mut watched, &mut sink).await);
                    tx.send_replace(true);
                });
                Ok(client)
            }
        }
    };
    match tokio::time::timeout_at(deadline.into(), attempt).await {
        Ok(done) => done,
        Err(_) => Err(ConnectError::Silent { endpoint: endpoint.to_string(), waited: start.elapsed() }),
    }
}
