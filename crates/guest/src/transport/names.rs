//! A name server of the host's, answered for in the guest. Docker's listens at 127.0.0.11 in the container's network
//! namespace, which is on the host; in the guest the agent listens there, passes each question on, and the answer back.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kata_proto::channel::{DIALLED, NOT_DIALLED};
use kata_proto::names::{NameMessage, Over};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

use super::HostStream;

/// The port of name servers.
const PORT: u16 = 53;
/// Questions that wait for an answer at once.
const MOST: usize = 512;
/// Connections at once.
const CONNECTIONS: usize = 64;
/// A question that has no answer after this gets none: whoever asked has asked again, or given up.
const PATIENCE: Duration = Duration::from_secs(20);
/// After an accept that failed, which one for want of descriptors does at once again.
const PAUSE: Duration = Duration::from_millis(100);

/// Who waits for an answer.
enum Asker {
    Datagram(SocketAddr),
    Connection(oneshot::Sender<Vec<u8>>),
}

/// The questions that wait.
#[derive(Default)]
struct Waiting {
    askers: HashMap<u16, (Asker, Instant)>,
    last: u16,
}

/// What all that ask have in common.
#[derive(Clone)]
struct Desk {
    waiting: Arc<Mutex<Waiting>>,
    to_host: mpsc::Sender<NameMessage>,
}

impl Desk {
    /// Passes a question on; one too many is dropped, as a datagram may be.
    async fn ask(&self, asker: Asker, over: Over, bytes: Vec<u8>) {
        let number = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.askers.retain(|_, (_, since)| since.elapsed() < PATIENCE);
            if waiting.askers.len() >= MOST {
                return;
            }
            // Fewer wait than there are numbers.
            while waiting.askers.contains_key(&waiting.last) {
                waiting.last = waiting.last.wrapping_add(1);
            }
            let number = waiting.last;
            waiting.last = waiting.last.wrapping_add(1);
            waiting.askers.insert(number, (asker, Instant::now()));
            number
        };
        // A host that has gone ends everything here.
        drop(self.to_host.send(NameMessage { number, over, bytes }).await);
    }

    fn asker(&self, number: u16) -> Option<Asker> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.askers.remove(&number).map(|(asker, _)| asker)
    }
}

/// Serves at `at` until the stream ends, or the session.
pub async fn serve(mut stream: HostStream, at: IpAddr, over: impl Future<Output = ()> + Send + 'static) {
    let sockets =
        async { Ok::<_, io::Error>((UdpSocket::bind((at, PORT)).await?, TcpListener::bind((at, PORT)).await?)) };
    let (udp, tcp) = match sockets.await {
        Ok(sockets) => sockets,
        Err(e) => {
            log::warn!("the host's name server cannot be answered for at {at}: {e}");
            // A host that has gone does not care.
            drop(stream.write_all(&[NOT_DIALLED]).await);
            drop(stream.shutdown().await);
            return;
        }
    };
    if stream.write_all(&[DIALLED]).await.is_err() || stream.flush().await.is_err() {
        return;
    }
    tokio::select! {
        e = answer(stream, Arc::new(udp), tcp) => log::debug!("the host's name server is no longer answered for: {e}"),
        () = over => {}
    }
}

/// All of it; every task ends with this.
async fn answer(stream: HostStream, udp: Arc<UdpSocket>, tcp: TcpListener) -> io::Error {
    let (mut from_host, mut host) = tokio::io::split(stream);
    let (to_host, mut questions) = mpsc::channel::<NameMessage>(16);
    let desk = Desk { waiting: Arc::default(), to_host };
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Some(question) = questions.recv().await {
            if question.write(&mut host).await.is_err() {
                return;
            }
        }
    });
    tasks.spawn(datagrams(Arc::clone(&udp), desk.clone()));
    tasks.spawn(connections(tcp, desk.clone()));
    loop {
        let message = match NameMessage::read(&mut from_host).await {
            Ok(message) => message,
            Err(e) => return e,
        };
        match desk.asker(message.number) {
            // It may have gone, or given up.
            Some(Asker::Datagram(to)) => drop(udp.send_to(&message.bytes, to).await),
            Some(Asker::Connection(to)) => drop(to.send(message.bytes)),
            None => {}
        }
    }
}

async fn datagrams(udp: Arc<UdpSocket>, desk: Desk) {
    let mut buffer = vec![0; 4096];
    loop {
        match udp.recv_from(&mut buffer).await {
            Ok((n, from)) => desk.ask(Asker::Datagram(from), Over::Udp, buffer[..n].to_vec()).await,
            // An answer that could not be delivered is told here.
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

async fn connections(tcp: TcpListener, desk: Desk) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        match tcp.accept().await {
            Ok((stream, _)) => {
                let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
                let desk = desk.clone();
                tasks.spawn(async move {
                    // It ends when whoever asked is content, or asks rubbish.
                    drop(connection(stream, &desk).await);
                    drop(place);
                });
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Questions one after the other, each with its length before it (RFC 1035, section 4.2.2).
async fn connection(mut stream: TcpStream, desk: &Desk) -> io::Result<()> {
    loop {
        let length = tokio::time::timeout(PATIENCE, stream.read_u16()).await??;
        let mut question = vec![0; length.into()];
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut question)).await??;
        let (answered, answer) = oneshot::channel();
        desk.ask(Asker::Connection(answered), Over::Tcp, question).await;
        let answer = tokio::time::timeout(PATIENCE, answer).await?.map_err(|_| io::ErrorKind::BrokenPipe)?;
        let length = u16::try_from(answer.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        stream.write_all(&[&length.to_be_bytes()[..], &answer].concat()).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host that answers a question with the same bytes backwards; it answers nothing to "silence".
    async fn host(stream: tokio::io::DuplexStream) {
        let (mut from, mut to) = tokio::io::split(stream);
        while let Ok(mut message) = NameMessage::read(&mut from).await {
            if message.bytes != b"silence" {
                message.bytes.reverse();
                message.write(&mut to).await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn questions_are_passed_on_and_answers_find_who_asked() {
        let udp = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (udp_at, tcp_at) = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
        let (ours, theirs) = tokio::io::duplex(1024);
        let served = tokio::spawn(answer(Box::new(theirs), udp, tcp));
        let answering = tokio::spawn(host(ours));

        let one = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let two = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        one.send_to(b"silence", udp_at).await.unwrap();
        one.send_to(b"one", udp_at).await.unwrap();
        two.send_to(b"two", udp_at).await.unwrap();
        let mut buffer = [0; 100];
        for (socket, expected) in [(&two, &b"owt"[..]), (&one, b"eno")] {
            let n = socket.recv(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..n], expected);
        }
        let mut connection = TcpStream::connect(tcp_at).await.unwrap();
        for _ in 0..2 {
            connection.write_all(b"\0\x05hello").await.unwrap();
            let mut answer = [0; 7];
            connection.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"\0\x05olleh");
        }
        // With the host goes everything.
        answering.abort();
        drop(answering.await);
        served.await.unwrap();
        assert_eq!(connection.read(&mut buffer).await.unwrap_or(0), 0);
    }

    #[tokio::test]
    async fn too_many_questions_are_dropped_and_old_ones_make_room() {
        let (to_host, mut questions) = mpsc::channel(MOST + 1);
        let desk = Desk { waiting: Arc::default(), to_host };
        let from = "127.0.0.1:1".parse().unwrap();
        for _ in 0..=MOST {
            desk.ask(Asker::Datagram(from), Over::Udp, vec![1]).await;
        }
        let mut numbers: Vec<u16> = std::iter::from_fn(|| questions.try_recv().ok()).map(|q| q.number).collect();
        assert_eq!(numbers.len(), MOST);
        numbers.dedup();
        assert_eq!(numbers.len(), MOST);
        assert!(desk.asker(7).is_some() && desk.asker(7).is_none());
        desk.ask(Asker::Datagram(from), Over::Udp, vec![1]).await;
        assert!(questions.try_recv().is_ok());
    }
}
