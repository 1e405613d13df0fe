//! yamux over one byte stream: the proxy's end in the guest.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use tokio::io::{AsyncRead, AsyncWrite, BufStream};
use tokio_util::compat::{FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};

use super::{Dispatcher, Session};

/// Streams at once: three for each process, and the calls.
const MAX_STREAMS: usize = 4096;
/// Longest body of a frame: what the port takes in one write (drivers/char/virtio_console.c), less the header.
pub const FRAME_BYTES: usize = 32 * 1024 - 12;
/// One frame's header and body in one write: each write of the port is an exit to the VMM.
const BUFFER_BYTES: usize = 32 * 1024;

/// Serves one connection whose handshake is done, until it ends.
pub async fn serve<T>(io: T, dispatcher: &Dispatcher)
where
    T: AsyncRead + AsyncWrite + Send + Unpin,
{
    let mut config = yamux::Config::default();
    // Each stream may hold yamux's least, 256 KiB, and none more: what a container does not read from its stdin stays
    // with the host. (The limit is lifted in between because the setters check each other's value.)
    config.set_max_connection_receive_window(None);
    config.set_max_num_streams(MAX_STREAMS);
    config.set_max_connection_receive_window(Some(MAX_STREAMS * yamux::DEFAULT_CREDIT as usize));
    config.set_split_send_size(FRAME_BYTES);
    let io = BufStream::with_capacity(BUFFER_BYTES, BUFFER_BYTES, io);
    let mut connection = yamux::Connection::new(io.compat(), config, yamux::Mode::Server);
    let (end, session) = Session::new();
    loop {
        match poll_fn(|cx| connection.poll_next_inbound(cx)).await {
            Some(Ok(stream)) => {
                let (dispatcher, session) = (dispatcher.clone(), session.clone());
                tokio::spawn(async move {
                    if let Some(stream) = acknowledged(stream).await {
                        dispatcher.stream(Box::new(stream.compat()), session).await;
                    }
                });
            }
            Some(Err(e)) => {
                log::info!("the host's connection ended: {e}");
                break;
            }
            None => {
                log::debug!("the host closed its connection");
                break;
            }
        }
    }
    // Before any task sees the streams end (they run on this thread, after us): so all can tell a stream that was
    // lost from one that the host ended.
    end.send_replace(true);
}

/// Accepts a stream at once. A peer may have only 256 streams open that were never answered, and yamux answers with the
/// first data; a process that writes nothing would keep its three streams among those for ever.
async fn acknowledged(mut stream: yamux::Stream) -> Option<yamux::Stream> {
    let answered = poll_fn(|cx| {
        // An empty write becomes an empty data frame that carries the acknowledgement.
        match futures::AsyncWrite::poll_write(Pin::new(&mut stream), cx, &[]) {
            Poll::Ready(result) => Poll::Ready(result.is_ok()),
            Poll::Pending => Poll::Pending,
        }
    });
    answered.await.then_some(stream)
}
