//! Ports of the pod's localhost, for engines that connect to them in the sandbox's network namespace.

use std::sync::Arc;

use kata_agent_client::AgentClient;
use kata_network::{Localhost, Netns, refuse};
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};

/// Connections at once. Each costs two buffers of 8 KiB, and only the engine can make them.
const MOST: usize = 256;
/// After an accept that failed, which one for want of descriptors does at once again.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// Until the sandbox ends. Where it cannot be done there is a line in the log: port forwarding is refused then, and all
/// else works.
pub(crate) async fn forward(netns: Netns, agent: AgentClient, mut death: watch::Receiver<Option<String>>) {
    // The kernel may load a module for it.
    let opened = tokio::task::spawn_blocking(move || Localhost::open(&netns)).await;
    let localhost = match opened {
        Ok(Ok(localhost)) => localhost,
        Ok(Err(err)) => return tracing::warn!("{err}"),
        Err(err) => return tracing::error!("{err}"),
    };
    let places = Arc::new(Semaphore::new(MOST));
    loop {
        let accepted = tokio::select! {
            _ = death.wait_for(Option::is_some) => return,
            accepted = localhost.accept() => accepted,
        };
        match accepted {
            Ok((stream, to)) => {
                let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                    tracing::warn!(%to, "more than {MOST} forwarded connections at once; this one is refused");
                    refuse(stream);
                    continue;
                };
                let (agent, mut death) = (agent.clone(), death.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        _ = death.wait_for(Option::is_some) => {}
                        () = connect(stream, to, &agent) => {}
                    }
                    drop(place);
                });
            }
            Err(err) => {
                tracing::warn!("a connection to the pod's localhost was not accepted: {err}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn connect(mut stream: TcpStream, to: std::net::SocketAddr, agent: &AgentClient) {
    match agent.dial(to).await {
        Ok(Some(mut guest)) => {
            // An end that breaks off is what the other end sees; there is nobody else to tell.
            drop(copy_bidirectional(&mut stream, &mut guest).await);
        }
        Ok(None) => refuse(stream),
        Err(err) => {
            tracing::warn!(%to, "a connection could not be passed to the guest: {err}");
            refuse(stream);
        }
    }
}
