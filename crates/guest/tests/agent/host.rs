//! A host for the agent under test: the handshake, yamux's client side, ttrpc's.

use std::future::poll_fn;
use std::path::Path;
use std::task::Poll;
use std::time::Duration;

use kata_proto::agent_ttrpc::AgentServiceClient;
use kata_proto::channel::{Stdio, StreamHeader, host_handshake};
use kata_proto::health_ttrpc::HealthClient;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;

pub type Stream = Compat<yamux::Stream>;

/// One connection. [`Host::leave`] breaks it, as a host that dies does.
pub struct Host {
    open: mpsc::Sender<oneshot::Sender<Stream>>,
    driver: JoinHandle<()>,
    pub agent: AgentServiceClient,
    pub health: HealthClient,
}

impl Host {
    pub async fn connect(socket: &Path) -> Host {
        let mut stream = loop {
            match UnixStream::connect(socket).await {
                Ok(s) => break s,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
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
        let client = Client::new(Socket::new(opened(&open, StreamHeader::Rpc).await));
        Host { open, driver, agent: AgentServiceClient::new(client.clone()), health: HealthClient::new(client) }
    }

    pub async fn stdio(&self, container: &str, exec: &str, stream: Stdio) -> Stream {
        let header = StreamHeader::Stdio { container: container.into(), exec: exec.into(), stream };
        opened(&self.open, header).await
    }

    pub async fn log(&self) -> Stream {
        opened(&self.open, StreamHeader::Log).await
    }

    pub async fn leave(self) {
        self.driver.abort();
        let _ = self.driver.await;
    }
}

async fn opened(open: &mpsc::Sender<oneshot::Sender<Stream>>, header: StreamHeader) -> Stream {
    let (tx, rx) = oneshot::channel();
    open.send(tx).await.unwrap();
    let mut stream = rx.await.unwrap();
    stream.write_all(&header.encode()).await.unwrap();
    stream
}

async fn drive(
    mut connection: yamux::Connection<Compat<UnixStream>>,
    mut requests: mpsc::Receiver<oneshot::Sender<Stream>>,
) {
    let mut wanted: Option<oneshot::Sender<Stream>> = None;
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
