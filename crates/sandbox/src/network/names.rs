//! Name servers that listen on the loopback of the sandbox's network namespace, which the guest cannot reach: docker's
//! (127.0.0.11, in networks that the user made) knows the names of a network's containers. The agent answers for it in the
//! guest and passes the questions here; this thread is in that namespace, and so asks the server itself.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kata_agent_client::AgentClient;
use kata_proto::names::{NameMessage, Over};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

/// The port of name servers.
const PORT: u16 = 53;
/// How much of a resolv.conf is read.
const LONGEST: u64 = 64 << 10;
/// Questions at once; one more waits.
const MOST: usize = 64;
/// Docker's asks up to three servers in turn, four seconds each.
const PATIENCE: Duration = Duration::from_secs(15);

/// The first name server of a resolv.conf(5) that is a loopback address.
pub(super) fn on_loopback(resolv_conf: &Path) -> Option<IpAddr> {
    let mut text = String::new();
    let file = std::fs::File::open(resolv_conf).ok()?;
    file.take(LONGEST).read_to_string(&mut text).ok()?;
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok()).flatten()
        })
        .find(IpAddr::is_loopback)
}

/// Answers the guest's questions until the sandbox ends.
pub(super) async fn serve(agent: AgentClient, at: IpAddr) {
    let stream = match agent.names(at).await {
        Ok(Some(stream)) => stream,
        Ok(None) => {
            return tracing::warn!(%at, "names cannot be looked up: the guest has something else at this address");
        }
        Err(err) => return tracing::warn!(%at, "names cannot be looked up: {err}"),
    };
    tracing::info!(%at, "the guest's questions go to the name server");
    let (mut from_guest, mut guest) = tokio::io::split(stream);
    let (answered, mut answers) = mpsc::channel::<NameMessage>(MOST);
    let places = Arc::new(Semaphore::new(MOST));
    // All of it ends with this.
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Some(answer) = answers.recv().await {
            if answer.write(&mut guest).await.is_err() {
                return;
            }
        }
    });
    // The end of the stream is the guest's.
    while let Ok(question) = NameMessage::read(&mut from_guest).await {
        while tasks.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let answered = answered.clone();
        tasks.spawn(async move {
            let NameMessage { number, over, bytes } = question;
            let to = (at, PORT).into();
            match tokio::time::timeout(PATIENCE, ask(to, over, &bytes)).await {
                Ok(Ok(bytes)) => drop(answered.send(NameMessage { number, over, bytes }).await),
                // Whoever asked asks again, or gives up: the server was silent, and so are we.
                Ok(Err(err)) => tracing::debug!(%at, "a question was not answered: {err}"),
                Err(_) => tracing::debug!(%at, "a question was not answered in time"),
            }
            drop(place);
        });
    }
}

async fn ask(to: SocketAddr, over: Over, question: &[u8]) -> io::Result<Vec<u8>> {
    match over {
        Over::Udp => {
            let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
            let socket = UdpSocket::bind((any, 0)).await?;
            socket.connect(to).await?;
            socket.send(question).await?;
            let mut answer = vec![0; usize::from(u16::MAX)];
            let n = socket.recv(&mut answer).await?;
            answer.truncate(n);
            Ok(answer)
        }
        Over::Tcp => {
            let mut stream = TcpStream::connect(to).await?;
            let length = u16::try_from(question.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
            stream.write_all(&[&length.to_be_bytes()[..], question].concat()).await?;
            let mut answer = vec![0; stream.read_u16().await?.into()];
            stream.read_exact(&mut answer).await?;
            Ok(answer)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_server_on_loopback_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        for (text, found) in [
            ("nameserver 127.0.0.11\noptions ndots:0\n", Some("127.0.0.11")),
            ("search x\nnameserver 8.8.8.8\nnameserver 127.0.0.53\n", Some("127.0.0.53")),
            ("nameserver ::1", Some("::1")),
            ("# nameserver 127.0.0.11\nnameserver 10.0.0.1\nnameserver\nnameserver x", None),
            ("", None),
        ] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(on_loopback(&file), found.map(|ip| ip.parse().unwrap()), "{text}");
        }
        assert_eq!(on_loopback(&dir.path().join("none")), None);
    }

    #[tokio::test]
    async fn a_server_is_asked_as_one_was_asked() {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let to = udp.local_addr().unwrap();
        let asked = tokio::spawn(async move { ask(to, Over::Udp, b"who").await });
        let mut buffer = [0; 10];
        let (n, from) = udp.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..n], b"who");
        udp.send_to(b"me", from).await.unwrap();
        assert_eq!(asked.await.unwrap().unwrap(), b"me");

        let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = tcp.local_addr().unwrap();
        let asked = tokio::spawn(async move { ask(to, Over::Tcp, b"who").await });
        let (mut stream, _) = tcp.accept().await.unwrap();
        let mut question = [0; 5];
        stream.read_exact(&mut question).await.unwrap();
        assert_eq!(&question, b"\0\x03who");
        stream.write_all(b"\0\x02me").await.unwrap();
        assert_eq!(asked.await.unwrap().unwrap(), b"me");
    }
}
