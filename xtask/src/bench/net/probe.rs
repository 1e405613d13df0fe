//! What serves in a container, in a bare VM, and asks from the other end of their network: one program of its own, static, of
//! the standard library only. The asking one prints "name nanoseconds amount" for each step; amounts are bytes or requests.

use std::io::{Read, Result, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Where it serves.
const PORT: u16 = 5001;
/// Bytes that go each way, at once and in all.
const CHUNK: usize = 128 << 10;
const BYTES: u64 = 256 << 20;
/// Requests on one connection, and connections with one request each.
const REQUESTS: u64 = 2000;
const CONNECTIONS: u64 = 500;
/// The length of a request and of its answer.
const MESSAGE: usize = 64;
/// How long a server may take to come.
const COMES: Duration = Duration::from_secs(60);

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
        SOURCE => (0..BYTES / CHUNK as u64).try_for_each(|_| stream.write_all(&chunk)),
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
    step("to-it", BYTES, || send(address))?;
    step("from-it", BYTES, || receive(address))?;
    let mut kept = connect(address, ECHO)?;
    step("requests", REQUESTS, || (0..REQUESTS).try_for_each(|_| request(&mut kept)))?;
    step("connections", CONNECTIONS, || (0..CONNECTIONS).try_for_each(|_| request(&mut connect(address, ECHO)?)))
}

fn step(name: &str, amount: u64, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    work()?;
    println!("{name} {} {amount}", start.elapsed().as_nanos());
    Ok(())
}

fn connect(address: &str, what: u8) -> Result<TcpStream> {
    let mut stream = TcpStream::connect((address, PORT))?;
    stream.set_nodelay(true)?;
    stream.write_all(&[what])?;
    Ok(stream)
}

/// Ends when the other one has it all.
fn send(address: &str) -> Result<()> {
    let mut stream = connect(address, SINK)?;
    let chunk = vec![0xa5; CHUNK];
    for _ in 0..BYTES / CHUNK as u64 {
        stream.write_all(&chunk)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.read_exact(&mut [0])
}

fn receive(address: &str) -> Result<()> {
    let mut stream = connect(address, SOURCE)?;
    let mut chunk = vec![0; CHUNK];
    let mut left = BYTES;
    while left > 0 {
        match stream.read(&mut chunk)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => left -= n as u64,
        }
    }
    Ok(())
}

fn request(stream: &mut TcpStream) -> Result<()> {
    let mut message = [0x5a; MESSAGE];
    stream.write_all(&message)?;
    stream.read_exact(&mut message)
}
