//! What serves in a container, in a bare VM, and asks from the other end of their network: one program of its own, static, of
//! the standard library only. The asking one prints "name nanoseconds amount" for each step: bytes and how long they took, or
//! how long one request of all took that were made (the median, and the 99th of a hundred). Each step lasts equally long, whoever serves: what is a moment for
//! one is a minute for another.

use std::io::{Read, Result, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Where it serves.
const PORT: u16 = 5001;
/// Bytes that go each way at once.
const CHUNK: usize = 128 << 10;
/// Connections of one step at most. Each takes a port of the asker's for a minute (TIME_WAIT); Linux looks for a free one among
/// 14,000 at first, those that are odd, and where few are left that takes longer than the connection.
const CONNECTIONS: usize = 500;
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
    for (name, work) in [("to-it", send as Work<u64>), ("from-it", receive)] {
        work(address, WARMS)?;
        let start = Instant::now();
        let bytes = work(address, LASTS)?;
        println!("{name} {} {bytes}", start.elapsed().as_nanos());
    }
    for (name, work) in [("request", requests as Work<Vec<Duration>>), ("connection", connections)] {
        work(address, WARMS)?;
        let mut each = work(address, LASTS)?;
        each.sort();
        for (percent, suffix) in [(50, ""), (99, "-p99")] {
            let at = each.get(each.len() * percent / 100).copied().unwrap_or(LASTS);
            println!("{name}{suffix} {} 1", at.as_nanos());
        }
    }
    Ok(())
}

/// Does something for so long; says how much it was, or how long each took.
type Work<T> = fn(&str, Duration) -> Result<T>;

fn connect(address: &str, what: u8) -> Result<TcpStream> {
    let mut stream = TcpStream::connect((address, PORT))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWERS))?;
    stream.set_write_timeout(Some(ANSWERS))?;
    stream.write_all(&[what])?;
    Ok(stream)
}

/// Ends when the other one has it all.
fn send(address: &str, lasts: Duration) -> Result<u64> {
    let mut stream = connect(address, SINK)?;
    let chunk = vec![0xa5; CHUNK];
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < lasts {
        stream.write_all(&chunk)?;
        sent += CHUNK as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    stream.read_exact(&mut [0])?;
    Ok(sent)
}

fn receive(address: &str, lasts: Duration) -> Result<u64> {
    let mut stream = connect(address, SOURCE)?;
    let mut chunk = vec![0; CHUNK];
    let start = Instant::now();
    let mut received = 0;
    while start.elapsed() < lasts {
        match stream.read(&mut chunk)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => received += n as u64,
        }
    }
    Ok(received)
}

/// On one connection.
fn requests(address: &str, lasts: Duration) -> Result<Vec<Duration>> {
    let mut stream = connect(address, ECHO)?;
    repeat(usize::MAX, lasts, || request(&mut stream))
}

/// Each with one request.
fn connections(address: &str, lasts: Duration) -> Result<Vec<Duration>> {
    repeat(CONNECTIONS, lasts, || request(&mut connect(address, ECHO)?))
}

fn request(stream: &mut TcpStream) -> Result<()> {
    let mut message = [0x5a; MESSAGE];
    stream.write_all(&message)?;
    stream.read_exact(&mut message)
}

/// How long each took.
fn repeat(at_most: usize, lasts: Duration, mut once: impl FnMut() -> Result<()>) -> Result<Vec<Duration>> {
    let start = Instant::now();
    let mut each = Vec::new();
    while each.len() < at_most && start.elapsed() < lasts {
        let this = Instant::now();
        once()?;
        each.push(this.elapsed());
    }
    Ok(each)
}
