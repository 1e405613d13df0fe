//! A unix socket in place of the port, for an agent that runs as an ordinary process: like QEMU's chardev, it serves
//! one client at a time.

use std::io;

use kata_proto::channel::guest_handshake;
use tokio::net::UnixListener;

use super::{Dispatcher, mux};

/// Serves one client after another, for ever.
///
/// # Errors
/// accept(2)'s.
pub async fn serve(listener: UnixListener, dispatcher: &Dispatcher) -> io::Result<std::convert::Infallible> {
    loop {
        let (mut socket, _) = listener.accept().await?;
        match guest_handshake(&mut socket).await {
            Ok(_nonce) => mux::serve(socket, dispatcher).await,
            Err(e) => log::debug!("a client left during the handshake: {}", crate::failure::chain(&e)),
        }
    }
}
