//! Connections that the host wants to have been made in the guest: port forwarding. What listens on the pod's localhost can
//! be reached by nobody else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use kata_proto::channel::{DIALLED, NOT_DIALLED};
use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;

use super::HostStream;

/// An address of the guest's own answers, or refuses, at once.
const ANSWERS: Duration = Duration::from_secs(10);

/// Serves one, to its end or the session's.
pub async fn call(mut stream: HostStream, to: SocketAddr, over: impl Future<Output = ()> + Send + 'static) {
    let mut called = match connect(to).await {
        Ok(called) => called,
        Err(e) => {
            log::info!("nobody answers the host's connection to {to}: {e}");
            // A host that has gone does not care.
            drop(stream.write_all(&[NOT_DIALLED]).await);
            drop(stream.shutdown().await);
            return;
        }
    };
    if stream.write_all(&[DIALLED]).await.is_err() || stream.flush().await.is_err() {
        return;
    }
    // Either end may go at any time; there is nobody to tell but the other one.
    tokio::spawn(async move {
        tokio::select! {
            _ = copy_bidirectional(&mut stream, &mut called) => {}
            () = over => {}
        }
    });
}

async fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let mut result = Err(std::io::ErrorKind::AddrNotAvailable.into());
    for address in addresses(to) {
        let attempt = tokio::time::timeout(ANSWERS, TcpStream::connect(address)).await;
        result = attempt.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        if result.is_ok() {
            break;
        }
    }
    result
}

fn addresses(to: SocketAddr) -> Vec<SocketAddr> {
    let other: Option<IpAddr> = match to.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => Some(Ipv6Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_loopback() => Some(Ipv4Addr::LOCALHOST.into()),
        _ => None,
    };
    std::iter::once(to).chain(other.map(|ip| (ip, to.port()).into())).collect()
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn localhost_is_both_and_other_addresses_are_themselves() {
        let list = |to: &str| addresses(to.parse().unwrap()).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(list("127.0.0.1:80"), ["127.0.0.1:80", "[::1]:80"]);
        assert_eq!(list("[::1]:80"), ["[::1]:80", "127.0.0.1:80"]);
        assert_eq!(list("10.0.0.1:80"), ["10.0.0.1:80"]);
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_and_each_end_is_passed_on() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut peer, _) = listener.accept().await.unwrap();
            let mut got = Vec::new();
            peer.read_to_end(&mut got).await.unwrap();
            peer.write_all(b"answer").await.unwrap();
            got
        });
        let (mut host, guest) = tokio::io::duplex(64);
        call(Box::new(guest), to, std::future::pending()).await;
        assert_eq!(host.read_u8().await.unwrap(), DIALLED);
        host.write_all(b"question").await.unwrap();
        host.shutdown().await.unwrap();
        let mut said = String::new();
        host.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "answer");
        assert_eq!(server.await.unwrap(), b"question");

        // Nobody is there now.
        let (mut host, guest) = tokio::io::duplex(64);
        call(Box::new(guest), to, std::future::pending()).await;
        let mut said = Vec::new();
        host.read_to_end(&mut said).await.unwrap();
        assert_eq!(said, [NOT_DIALLED]);
    }
}
