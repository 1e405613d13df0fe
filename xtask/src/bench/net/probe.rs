//! What serves in a container, in a bare VM, and asks from the other end of their network: one program of its own, static, of
//! the standard library only. The asking one prints "name nanoseconds amount" for each step; amounts are bytes or requests.
//! Each step lasts equally long, whoever serves: what is a moment for one is a minute for another.

use std::io::{Read, Result, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Where it serves.
const PORT: u16 = 5001;
/// Bytes that go each way at once.
const CHUNK: usize = 128 << 10;
/// Connections of one step at most: each takes a port of the asker's for a minute (TIME_WAIT), of which it has 28,000.
const CONNECTIONS: u64 = 1500;
/// The length of a request and of its answer.
const MESSAGE: usize = 64;
/// How long a step lasts, and for how long it is done before that without being counted.
const LASTS: Duration = Duration::from_millis(1500);
const WARMS: Duration = Duration::from_millis(300);
/// How long a server may take to come, and to say anything.
const COMES: Duration = Duration::from_secs(60);
const ANSWERS: Duration = Duration::from_secs(20);

/// What a connection is for: its first byte.
const SINK: u8 = b'i';
const SOURCE: u8 = b'o';
const ECHO: u8 = b'e';

/// `net serve`, or `net ask ADDRESS`.
pub fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve"] => serve(),
        ["ask", address] => ask(address),
        _ => Err(std::io::Error::other("net serve, or net ask ADDRESS")),
    }
}

/// One at a time: a client must have let go of its connection before it makes another.
fn serve() -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", PORT))?;
    for stream in listener.incoming() {
        // A client that has gone is the next one's business.
        drop(stream.and_then(answer));
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut what = [0];
    stream.read_exact(&mut what)?;
    let mut chunk = vec![0; CHUNK];
    match what[0] {
        SINK => {
            while stream.read(&mut chunk)? > 0 {}
            stream.write_all(b".")
        }
        // Until nobody takes any more.
        SOURCE => loop {
            stream.write_all(&chunk)?;
        },
        _ => {
            let mut message = [0; MESSAGE];
            while stream.read_exact(&mut message).is_ok() {
                stream.write_all(&message)?;
            }
            Ok(())
        }
    }
}

fn ask(address: &str) -> Result<()> {
    let start = Instant::now();
    while let Err(err) = connect(address, ECHO) {
        if start.elapsed() > COMES {
            return Err(err);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    for (name, work) in STEPS {
        work(address, WARMS)?;
        let start = Instant::now();
        let amount = work(address, LASTS)?;
        println!("{name} {} {amount}", start.elapsed().as_nanos());
    }
    Ok(())
}

/// Does something for so long; how much it was.
type Work = fn(&str, Duration) -> Result<u64>;

const STEPS: [(&str, Work); 4] =
    [("to-it", send), ("from-it", receive), ("requests", requests), ("connections", connections)];

fn connect(address: &str, what: u8) -> Result<TcpStream> {
    let mut stream = TcpStream::connect((address, PORT))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWERS))?;
    stream.set_write_timeout(Some(ANSWERS))?;
    stream.write_all(&[what])?;
    Ok(stream)
}

/// Bytes; ends when the other one has them all.
fn send(address: &str, lasts: Duration) -> Result<u64> {
    let mut stream = connect(address, SINK)?;
    let chunk = vec![0xa5; CHUNK];
    let sent = repeat(lasts, || stream.write_all(&chunk).map(|()| CHUNK as u64))?;
    stream.shutdown(Shutdown::Write)?;
    stream.read_exact(&mut [0])?;
    Ok(sent)
}

fn receive(address: &str, lasts: Duration) -> Result<u64> {
    let mut stream = connect(address, SOURCE)?;
    let mut chunk = vec![0; CHUNK];
    repeat(lasts, || match stream.read(&mut chunk)? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        n => Ok(n as u64),
    })
}

/// On one connection.
fn requests(address: &str, lasts: Duration) -> Result<u64> {
    let mut stream = connect(address, ECHO)?;
    repeat(lasts, || request(&mut stream))
}

/// Each with one request.
fn connections(address: &str, lasts: Duration) -> Result<u64> {
    repeat_at_most(CONNECTIONS, lasts, || request(&mut connect(address, ECHO)?))
}

fn request(stream: &mut TcpStream) -> Result<u64> {
    let mut message = [0x5a; MESSAGE];
    stream.write_all(&message)?;
    stream.read_exact(&mut message)?;
    Ok(1)
}

fn repeat(lasts: Duration, once: impl FnMut() -> Result<u64>) -> Result<u64> {
    repeat_at_most(u64::MAX, lasts, once)
}

fn repeat_at_most(times: u64, lasts: Duration, mut once: impl FnMut() -> Result<u64>) -> Result<u64> {
    let start = Instant::now();
    let (mut amount, mut done) = (0, 0);
    while done < times && start.elapsed() < lasts {
        amount += once()?;
        done += 1;
    }
    Ok(amount)
}
