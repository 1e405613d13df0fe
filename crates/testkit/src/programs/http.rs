//! `http PORT`: answers `GET /N` of HTTP/1.1, on connections that stay open until the client has enough, or says
//! "Connection: close". The answer is N and a line's end, 1 + N % 400 times. A program for containers: linked statically,
//! without crates, and a request takes no process.

use std::io::{BufRead, BufReader, Error, ErrorKind, Result, Write};
use std::net::{TcpListener, TcpStream};

fn main() -> Result<()> {
    let port = std::env::args().nth(1).and_then(|port| port.parse::<u16>().ok()).ok_or(ErrorKind::InvalidInput)?;
    for stream in TcpListener::bind(("0.0.0.0", port))?.incoming() {
        let stream = stream?;
        std::thread::spawn(move || serve(stream).unwrap_or_else(|e| eprintln!("{e}")));
    }
    Ok(())
}

fn serve(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut requests = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while requests.read_line(&mut line)? > 0 {
        let number = line.strip_prefix("GET /").and_then(|rest| rest.split_once(' ')).and_then(|(n, _)| n.parse().ok());
        let number: usize = number.ok_or_else(|| Error::other(format!("no request: {line:?}")))?;
        let mut close = false;
        line.clear();
        while requests.read_line(&mut line)? > "\r\n".len() {
            close |= line.trim_end().eq_ignore_ascii_case("connection: close");
            line.clear();
        }
        line.clear();
        let body = format!("{number}\n").repeat(1 + number % 400);
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes())?;
        if close {
            break;
        }
    }
    Ok(())
}
