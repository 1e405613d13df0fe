//! A host for the agent under test, by either way: the handshake and yamux's client side, or a vsock device's socket.

use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::task::Poll;
use std::time::Duration;

use kata_proto::agent_ttrpc::AgentServiceClient;
use kata_proto::channel::{Stdio, StreamHeader, host_handshake};
use kata_proto::health_ttrpc::HealthClient;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;

/// A two-way stream.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Duplex for T {}
pub type Stream = Box<dyn Duplex>;

/// Where an agent is met.
pub enum Place {
    /// A serial port's socket: one connection, with many streams in it.
    Serial(PathBuf),
    /// The socket of a vsock device: each stream is a connection, which begins with "CONNECT port".
    Vsock(PathBuf),
}

/// One connection. [`Host::leave`] breaks it, as a host that dies does.
pub struct Host {
    way: Way,
    pub agent: AgentServiceClient,
    pub health: HealthClient,
}

enum Way {
    Mux { open: mpsc::Sender<oneshot::Sender<Compat<yamux::Stream>>>, driver: JoinHandle<()> },
    Vsock(PathBuf),
}

impl Host {
    pub async fn connect(place: &Place) -> Host {
        let (way, client) = match place {
            Place::Serial(socket) => {
                let way = mux(socket).await;
                let rpc = way.opened(StreamHeader::Rpc).await;
                (way, Client::new(Socket::new(rpc)))
            }
            Place::Vsock(socket) => {
                let rpc = vsock(socket, kata_types::AGENT_VSOCK_PORT).await;
                (Way::Vsock(socket.clone()), Client::new(Socket::new(rpc)))
            }
        };
        Host { way, agent: AgentServiceClient::new(client.clone()), health: HealthClient::new(client) }
    }

    pub async fn stdio(&self, container: &str, exec: &str, stream: Stdio) -> Stream {
        self.way.opened(StreamHeader::Stdio { container: container.into(), exec: exec.into(), stream }).await
    }

    pub async fn log(&self) -> Stream {
        self.way.opened(StreamHeader::Log).await
    }

    pub async fn leave(self) {
        if let Way::Mux { driver, .. } = self.way {
            driver.abort();
            let _ = driver.await;
        }
    }
}

impl Way {
    async fn opened(&self, header: StreamHeader) -> Stream {
        let mut stream: Stream = match self {
            Way::Mux { open, .. } => {
                let (tx, rx) = oneshot::channel();
                open.send(tx).await.unwrap();
                Box::new(rx.await.unwrap())
            }
            Way::Vsock(socket) => Box::new(vsock(socket, kata_types::STREAM_VSOCK_PORT).await),
        };
        stream.write_all(&header.encode()).await.unwrap();
        stream
    }
}

async fn connected(socket: &Path) -> UnixStream {
    loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => return stream,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// A connection to a port of the guest, once somebody listens there. While the guest boots the device hangs up, or takes
/// the request and forgets it.
async fn vsock(socket: &Path, port: u32) -> UnixStream {
    loop {
        let attempt = tokio::time::timeout(Duration::from_secs(2), vsock_now(socket, port));
        if let Ok(Ok(stream)) = attempt.await {
            return stream;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn vsock_now(socket: &Path, port: u32) -> std::io::Result<UnixStream> {
    let mut stream = connected(socket).await;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\n") {
        answer.push(stream.read_u8().await?);
    }
    assert!(answer.starts_with(b"OK "), "{answer:?}");
    Ok(stream)
}

async fn mux(socket: &Path) -> Way {
    let mut stream = connected(socket).await;
    let mut nonce = [0; 16];
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    nonce.copy_from_slice(&now.as_nanos().to_ne_bytes());
    host_handshake(&mut stream, nonce).await.unwrap();
    let mut config = yamux::Config::default();
    config.set_max_connection_receive_window(None);
    config.set_max_num_streams(4096);
    let connection = yamux::Connection::new(stream.compat(), config, yamux::Mode::Client);
    let (open, requests) = mpsc::channel(16);
    let driver = tokio::spawn(drive(connection, requests));
    Way::Mux { open, driver }
}

async fn drive(
    mut connection: yamux::Connection<Compat<UnixStream>>,
    mut requests: mpsc::Receiver<oneshot::Sender<Compat<yamux::Stream>>>,
) {
    let mut wanted: Option<oneshot::Sender<Compat<yamux::Stream>>> = None;
    poll_fn(|cx| {
        loop {
            if wanted.is_none()
                && let Poll::Ready(Some(tx)) = requests.poll_recv(cx)
            {
                wanted = Some(tx);
            }
            if wanted.is_some()
                && let Poll::Ready(stream) = connection.poll_new_outbound(cx)
            {
                let _ = wanted.take().unwrap().send(stream.unwrap().compat());
                continue;
            }
            match connection.poll_next_inbound(cx) {
                Poll::Ready(Some(Ok(_))) => panic!("the agent opened a stream"),
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
}
