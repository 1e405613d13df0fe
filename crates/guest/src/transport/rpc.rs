//! The ttrpc server, fed with connections by a channel.

use std::collections::HashMap;

use tokio::sync::mpsc;
use ttrpc::r#async::Server;
use ttrpc::r#async::Service;
use ttrpc::r#async::transport::Listener;

use super::HostStream;

/// Connections that wait to be taken up.
const QUEUE: usize = 8;

/// Starts a server of `services`; each stream that is sent becomes a connection. The server lives as long as the value
/// in the answer.
///
/// # Errors
/// ttrpc's, when the server cannot start.
pub async fn start(
    services: impl IntoIterator<Item = HashMap<String, Service>>,
) -> ttrpc::Result<(Server, mpsc::Sender<HostStream>)> {
    let (tx, mut rx) = mpsc::channel::<HostStream>(QUEUE);
    let connections = futures::stream::poll_fn(move |cx| rx.poll_recv(cx).map(|next| next.map(Ok)));
    let mut server = Server::new().add_listener(Listener::new(connections));
    for service in services {
        server = server.register_service(service);
    }
    server.start().await?;
    Ok((server, tx))
}
