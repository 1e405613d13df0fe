//! What passes through docker's and podman's networks in bulk: iperf3's streams, and very many HTTP requests. Each test is
//! one of runc, too: `KATA_TEST_ORACLE=runc`.

use std::io::{BufRead, BufReader, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use kata_testkit::engine::{Docker, Engine, HOST_PROGRAMS, Podman, Release};
use kata_testkit::image::BUSYBOX;
use kata_testkit::leaks::Guard;
use kata_testkit::programs;
use kata_testkit::runtime::json;
use kata_testkit::wait;

/// For what happens at once in a VM that runs, on a slow machine.
const SOON: Duration = Duration::from_secs(20);
/// What iperf3 sends in each direction.
const BYTES: u64 = 64 << 20;
/// Where the host has the ports of a container.
const PUBLISHED: u16 = 8080;
/// Requests in all, each with its answer checked.
const REQUESTS: usize = 10_000;
/// How many are under way at once.
const CLIENTS: usize = 8;
/// Every other turn of a client is so many requests on one connection, and every other one so many connections.
const TURN: usize = 25;

#[test]
fn iperf3_between_docker_and_its_container_both_ways() {
    let _leaks = Guard::new();
    iperf3_both_ways(&Docker::networked(Release::Distribution));
}

#[test]
fn iperf3_between_podman_and_its_container_both_ways() {
    let _leaks = Guard::new();
    iperf3_both_ways(&Podman::networked());
}

/// The container serves at a published port, and asks a server of the host's.
fn iperf3_both_ways(engine: &dyn Engine) {
    let port = format!("{PUBLISHED}:5201");
    engine.detached(
        "box",
        &[&HOST_PROGRAMS[..], &["--publish", &port]].concat(),
        &[BUSYBOX, "/usr/bin/iperf3", "--server"],
    );
    let gateway = engine.value("box", "{{.NetworkSettings.Gateway}}");
    let host = engine.host_network();
    let server = host.run("/usr/bin/iperf3", ["--server", "--forceflush"]).deadline(SOON);
    let mut server = server.start();
    server.says("listening");
    for reverse in [&[][..], &["--reverse"]] {
        let bytes = BYTES.to_string();
        let call = |at: &str, port: &str| {
            let words = ["/usr/bin/iperf3", "--json", "--bytes", &bytes, "--client", at, "--port", port];
            [&words[..], reverse].concat().join(" ")
        };
        for (whence, cmd) in [
            ("the container", engine.exec("box", &call(&gateway, "5201"))),
            ("the host", host.run("sh", ["-c", &call("127.0.0.1", &PUBLISHED.to_string())])),
        ] {
            let told = json(&cmd.ok());
            assert!(told["error"].is_null(), "called from {whence} {reverse:?}: {told}");
            // Some of it is under way when the sender has sent all.
            let received = told["end"]["sum_received"]["bytes"].as_u64().unwrap_or_default();
            assert!(received > BYTES / 2, "called from {whence} {reverse:?}: {received} bytes: {told}");
            println!("called from {whence} {reverse:?}: {}", told["end"]["sum_received"]);
        }
    }
    drop(server);
    engine.remove_all(&["box"]);
}

#[test]
fn ten_thousand_requests_through_a_port_of_dockers() {
    let _leaks = Guard::new();
    requests_through_a_port(&Docker::networked(Release::Distribution));
}

#[test]
fn ten_thousand_requests_through_a_port_of_podmans() {
    let _leaks = Guard::new();
    requests_through_a_port(&Podman::networked());
}

fn requests_through_a_port(engine: &dyn Engine) {
    let program = engine.file("http");
    programs::http(&program);
    let volume = format!("{}:/http:ro", program.display());
    engine.detached("web", &["--volume", &volume, "--publish", &format!("{PUBLISHED}:80")], &[BUSYBOX, "/http", "80"]);
    // The host's own way to a port, which may have a program in it, and that of everybody else, by the firewall.
    let gateway = engine.value("web", "{{.NetworkSettings.Gateway}}");
    let servers = ["127.0.0.1", &gateway]
        .map(|address| SocketAddr::new(address.parse().unwrap_or_else(|e| panic!("{address:?}: {e}")), PUBLISHED));
    let (answered, failed) = engine.host_network().inside(|| {
        for server in servers {
            wait::until(&format!("an answer of {server}"), SOON, || Connection::open(server).ok()?.ask(1, true).ok());
        }
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS).map(|client| scope.spawn(move || turns(client, servers))).collect();
            let ends = clients.into_iter().map(|client| client.join().expect("a client"));
            ends.fold((0, Vec::new()), |all, one| (all.0 + one.0, [all.1, one.1].concat()))
        })
    });
    let shown = &failed[..failed.len().min(20)];
    assert_eq!((answered, failed.len()), (REQUESTS, 0), "answered and failed; the first of these: {shown:#?}");
    engine.remove_all(&["web"]);
}

/// One client's share of the requests: how many were answered, and what went wrong with the others.
fn turns(client: usize, servers: [SocketAddr; 2]) -> (usize, Vec<String>) {
    let (mut answered, mut failed) = (0, Vec::new());
    let all: Vec<usize> = (0..REQUESTS).collect();
    for (turn, numbers) in all.chunks(TURN).enumerate().filter(|(turn, _)| turn % CLIENTS == client) {
        let turn = turn / CLIENTS;
        let server = servers[turn / 2 % servers.len()];
        let mut kept = None;
        for (at, number) in numbers.iter().enumerate() {
            let close = turn.is_multiple_of(2) || at + 1 == numbers.len();
            let asked = kept.take().map_or_else(|| Connection::open(server), Ok).and_then(|mut connection| {
                connection.ask(*number, close)?;
                Ok(connection)
            });
            match asked {
                Ok(connection) => {
                    answered += 1;
                    kept = (!close).then_some(connection);
                }
                Err(e) => failed.push(format!("{server}, {number}: {e}")),
            }
        }
    }
    (answered, failed)
}

/// A connection to an HTTP server.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn open(server: SocketAddr) -> Result<Connection> {
        let stream = TcpStream::connect_timeout(&server, SOON)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SOON))?;
        stream.set_write_timeout(Some(SOON))?;
        Ok(Connection(BufReader::new(stream)))
    }

    /// Asks for a number, and checks the answer; `close`: it is the last one, after which the server hangs up.
    fn ask(&mut self, number: usize, close: bool) -> Result<()> {
        let wrong = |what: String| Err(std::io::Error::other(what));
        let last = if close { "Connection: close\r\n" } else { "" };
        let request = format!("GET /{number} HTTP/1.1\r\nHost: web\r\n{last}\r\n");
        self.0.get_mut().write_all(request.as_bytes())?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if self.0.read_until(b'\n', &mut head)? == 0 {
                return wrong(format!(
                    "the connection ended in the answer's head {:?}",
                    String::from_utf8_lossy(&head)
                ));
            }
        }
        let body = programs::http_body(number);
        let wanted = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        if head != wanted.as_bytes() {
            return wrong(format!("its head is {:?}", String::from_utf8_lossy(&head)));
        }
        let mut got = vec![0; body.len()];
        self.0.read_exact(&mut got)?;
        if got != body.as_bytes() {
            return wrong(format!("its body is {:?}", String::from_utf8_lossy(&got)));
        }
        if close && self.0.read(&mut [0])? != 0 {
            return wrong("more came after the last answer".into());
        }
        Ok(())
    }
}
