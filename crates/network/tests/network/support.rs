//! Namespaces with interfaces, and frames on taps.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use kata_network::{Attach, Attached, Found, Interface, Model, Netns, attach, scan};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The `virtio_net_hdr` before each frame (tuntap's default length).
const HEADER: usize = 10;
/// A type of frames that nobody speaks (IEEE 802 local experimental).
pub const OURS: [u8; 2] = [0x88, 0xb5];
pub const ARP: [u8; 2] = [0x08, 0x06];

/// Whether the test can run; says so if it cannot.
pub fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("SKIP: needs root");
    }
    root
}

/// Where anybody finds a namespace that we hold.
pub fn path(netns: &Netns) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), netns.as_fd().as_raw_fd()).into()
}

/// Runs a program in a namespace; whether it succeeded, and what it printed.
pub fn run(netns: &Netns, words: &str) -> (bool, String) {
    run_words(netns, &words.split_whitespace().collect::<Vec<_>>())
}

pub fn run_words(netns: &Netns, words: &[&str]) -> (bool, String) {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    let output = netns.run(|| command.output().unwrap()).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

/// `ip`, which must succeed.
pub fn ip(netns: &Netns, words: &str) -> String {
    let (ok, text) = run(netns, &format!("ip {words}"));
    assert!(ok, "ip {words}: {text}");
    text
}

/// Two namespaces with a pair of interfaces between them, both called eth0 and up.
pub fn pair() -> (Netns, Netns) {
    let (inside, outside) = (Netns::create().unwrap(), Netns::create().unwrap());
    ip(&inside, &format!("link add eth0 type veth peer name eth0 netns {}", path(&outside).display()));
    ip(&inside, "link set eth0 address 02:00:00:00:00:01 up");
    ip(&outside, "link set eth0 address 02:00:00:00:00:02 up");
    (inside, outside)
}

pub fn found(netns: &Netns) -> Found {
    scan(netns).unwrap()
}

pub fn interface(netns: &Netns, name: &str) -> Interface {
    found(netns).interfaces.into_iter().find(|i| i.name == name).unwrap_or_else(|| panic!("no {name}"))
}

pub fn how(model: Model, queues: usize) -> Attach {
    Attach { model, queues, vhost: false }
}

/// Connects eth0 of a namespace.
pub fn connect(netns: &Netns, model: Model, queues: usize) -> Attached {
    attach(netns, &interface(netns, "eth0"), 0, how(model, queues)).unwrap().unwrap()
}

/// A frame from `from` to `to` of this type.
pub fn frame(to: [u8; 6], from: [u8; 6], kind: [u8; 2], body: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind, body].concat()
}

/// Sends a frame through a tap.
pub fn send(tap: &Attached, queue: usize, frame: &[u8]) {
    let mut file = File::from(tap.queues[queue].tap.try_clone().unwrap());
    file.write_all(&[&[0; HEADER], frame].concat()).unwrap();
}

/// The next frame of this type on any queue of a tap, until then.
pub fn receive(tap: &Attached, kind: [u8; 2], within: Duration) -> Option<Vec<u8>> {
    let deadline = Instant::now() + within;
    loop {
        let left = deadline.checked_duration_since(Instant::now())?;
        let mut fds: Vec<PollFd> = tap.queues.iter().map(|q| PollFd::new(q.tap.as_fd(), PollFlags::POLLIN)).collect();
        poll(&mut fds, PollTimeout::try_from(left).unwrap()).unwrap();
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        for (queue, _) in tap.queues.iter().zip(ready).filter(|(_, ready)| *ready) {
            let mut bytes = vec![0; 70_000];
            let n = File::from(queue.tap.try_clone().unwrap()).read(&mut bytes).unwrap();
            let frame = bytes[HEADER..n].to_vec();
            if frame[12..14] == kind {
                return Some(frame);
            }
        }
    }
}

pub const SOON: Duration = Duration::from_secs(3);
pub const NEVER: Duration = Duration::from_millis(200);
