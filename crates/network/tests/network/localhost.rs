//! Connections to a namespace's localhost.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use kata_network::{Localhost, Netns, refuse};
use kata_testkit::harness::block_on;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::root;

/// Connects from within a namespace, says "hello" and reads to the end.
fn call(netns: Netns, to: SocketAddr) -> std::thread::JoinHandle<std::io::Result<String>> {
    std::thread::spawn(move || {
        netns.enter().unwrap();
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"hello")?;
        let mut said = String::new();
        stream.read_to_string(&mut said).map(|_| said)
    })
}

fn again(netns: &Netns) -> Netns {
    Netns::open(&super::path(netns)).unwrap()
}

pub fn connections_to_localhost_are_taken() {
    if !root() {
        return;
    }
    block_on(async {
        let netns = Netns::create().unwrap();
        let localhost = Localhost::open(&netns).unwrap();
        for to in ["127.0.0.1:80", "127.0.0.7:65535", "[::1]:8080"] {
            let to: SocketAddr = to.parse().unwrap();
            let caller = call(again(&netns), to);
            let (mut stream, meant) =
                tokio::time::timeout(Duration::from_secs(5), localhost.accept()).await.unwrap().unwrap();
            assert_eq!(meant, to);
            let mut got = [0; 5];
            stream.read_exact(&mut got).await.unwrap();
            stream.write_all(b"answer").await.unwrap();
            drop(stream);
            assert_eq!((&got, caller.join().unwrap().unwrap().as_str()), (b"hello", "answer"));
        }
        // Whom nobody answers is told so.
        let caller = call(again(&netns), (IpAddr::from([127, 0, 0, 1]), 81).into());
        let (mut stream, _) = localhost.accept().await.unwrap();
        stream.read_exact(&mut [0; 5]).await.unwrap();
        refuse(stream);
        let err = caller.join().unwrap().unwrap_err();
        assert_eq!(err.kind(), std::io::ErrorKind::ConnectionReset, "{err}");
        // A second one takes the first one's place: its rule is not there twice.
        drop(localhost);
        let localhost = Localhost::open(&netns).unwrap();
        let caller = call(again(&netns), (IpAddr::from([127, 0, 0, 1]), 82).into());
        drop(tokio::time::timeout(Duration::from_secs(5), localhost.accept()).await.unwrap().unwrap());
        drop(caller.join().unwrap());
    });
}
