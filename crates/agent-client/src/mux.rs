//! yamux over the serial port's socket.

use std::future::poll_fn;
use std::task::Poll;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};

/// A stream as tokio knows them.
pub type MuxStream = Compat<yamux::Stream>;

/// Opens streams; clones share the connection.
#[derive(Clone)]
pub struct Mux(mpsc::Sender<oneshot::Sender<MuxStream>>);

/// Streams at once: three for each process, and the calls.
const MAX_STREAMS: usize = 4096;

impl Mux {
    /// Takes over a socket whose handshake is done. The task that drives it ends with the connection or when all
    /// clones and streams are gone; `closed` tells.
    pub fn start<T>(io: T, closed: watch::Sender<bool>) -> Mux
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut config = yamux::Config::default();
        // The guest is not trusted: its streams may hold what every stream may hold at least, and no more in sum.
        config.set_max_connection_receive_window(None);
        config.set_max_num_streams(MAX_STREAMS);
        config.set_max_connection_receive_window(Some(MAX_STREAMS * yamux::DEFAULT_CREDIT as usize));
        let connection = yamux::Connection::new(io.compat(), config, yamux::Mode::Client);
        let (tx, rx) = mpsc::channel(16);
        tokio::spawn(drive(connection, rx, closed));
        Mux(tx)
    }

    /// A new stream; `None` when the connection is over.
    pub async fn open(&self) -> Option<MuxStream> {
        let (tx, rx) = oneshot::channel();
        self.0.send(tx).await.ok()?;
        rx.await.ok()
    }
}

async fn drive<T>(
    mut connection: yamux::Connection<T>,
    mut requests: mpsc::Receiver<oneshot::Sender<MuxStream>>,
    closed: watch::Sender<bool>,
) where
    T: futures::AsyncRead + futures::AsyncWrite + Unpin,
{
    let mut wanted: Option<oneshot::Sender<MuxStream>> = None;
    poll_fn(|cx| {
        loop {
            if wanted.is_none() {
                match requests.poll_recv(cx) {
                    Poll::Ready(Some(tx)) => wanted = Some(tx),
                    Poll::Ready(None) => return Poll::Ready(()),
                    Poll::Pending => {}
                }
            }
            if wanted.is_some() {
                match connection.poll_new_outbound(cx) {
                    Poll::Ready(Ok(stream)) => {
                        if let Some(tx) = wanted.take() {
                            // The asker may have given up; the stream is then dropped, which resets it.
                            drop(tx.send(stream.compat()));
                        }
                        continue;
                    }
                    Poll::Ready(Err(err)) => {
                        tracing::debug!("the agent's connection is over: {err}");
                        return Poll::Ready(());
                    }
                    Poll::Pending => {}
                }
            }
            match connection.poll_next_inbound(cx) {
                // The guest opens none; one that does is refused by dropping it.
                Poll::Ready(Some(Ok(_))) => continue,
                Poll::Ready(Some(Err(err))) => {
                    tracing::debug!("the agent's connection is over: {err}");
                    return Poll::Ready(());
                }
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
    closed.send_replace(true);
}
