//! The virtio-serial port. It is one device for the guest's whole life; hosts come and go on its other side.
//!
//! While no host is there, the port polls as hung up, reads give 0 and writes block. tokio takes "hung up" as final, so
//! each host gets a registration of its own, and the waiting in between is done by an edge-triggered epoll inside
//! tokio's: it becomes readable when the port's state changes, and only then.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kata_proto::channel::guest_handshake;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use thiserror::Error;
use tokio::io::Interest;

use super::{Dispatcher, mux};
use crate::fdio::{FdIo, Kind, watch};

/// Where the kernel lists ports, one directory each, with a file `name`.
const PORTS: &str = "/sys/class/virtio-ports";
/// A state change that the inner epoll should have told is looked for this often anyway.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A host that makes the handshake fail at once is not answered faster than this.
const PAUSE: Duration = Duration::from_millis(20);

/// Why the port cannot be used.
#[derive(Debug, Error)]
pub enum PortError {
    /// It cannot be opened.
    #[error("cannot open the virtio-serial port {path}")]
    Open {
        /// Its device.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be watched.
    #[error("cannot wait for the virtio-serial port {path}")]
    Wait {
        /// Its device.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The device of the port with this name, waiting for it until `deadline`.
pub async fn find(name: &str, deadline: Instant) -> Option<PathBuf> {
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(device) = find_now(Path::new(PORTS), name) {
            return Some(device);
        }
        if Instant::now() >= deadline {
            return None;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn find_now(ports: &Path, name: &str) -> Option<PathBuf> {
    // The directory is missing until the first port appears.
    for entry in std::fs::read_dir(ports).ok()?.flatten() {
        let is = std::fs::read_to_string(entry.path().join("name"));
        if is.is_ok_and(|text| text.trim_end() == name) {
            return Some(Path::new("/dev").join(entry.file_name()));
        }
    }
    None
}

/// Serves one host after another, for ever.
///
/// # Errors
/// [`PortError`] when the port itself is gone.
pub async fn serve(path: &Path, dispatcher: &Dispatcher) -> Result<std::convert::Infallible, PortError> {
    let port = open(path)?;
    let wait = |source| PortError::Wait { path: path.to_owned(), source };
    loop {
        host_there(&port).await.map_err(wait)?;
        let mut io = FdIo::new(port.try_clone().map_err(wait)?, Kind::Plain).map_err(wait)?;
        match guest_handshake(&mut io).await {
            Ok(_nonce) => mux::serve(io, dispatcher).await,
            Err(e) => {
                log::debug!("a host left during the handshake: {}", crate::failure::chain(&e));
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn open(path: &Path) -> Result<OwnedFd, PortError> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|e| PortError::Open { path: path.to_owned(), source: e.into() })
}

/// Waits until a host has the other side open.
async fn host_there(port: &OwnedFd) -> io::Result<()> {
    if !hung_up(port)? {
        return Ok(());
    }
    let inner = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let events = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
    epoll::add(&inner, port, epoll::EventData::new_u64(0), events)?;
    let inner = watch(inner, Interest::READABLE)?;
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    loop {
        // Takes the event, so that the next one is an edge again; then looks, so that none is missed.
        let mut taken = Vec::with_capacity(1);
        epoll::wait(inner.get_ref(), rustix::buffer::spare_capacity(&mut taken), Some(&now))?;
        if !hung_up(port)? {
            return Ok(());
        }
        if let Ok(ready) = tokio::time::timeout(LOOK_AGAIN, inner.readable()).await {
            ready?.clear_ready();
        }
    }
}

fn hung_up(port: &OwnedFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(port, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    Ok(fds[0].revents().contains(PollFlags::HUP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_found_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        for (port, name) in [("vport1p1", "org.qemu.guest_agent.0\n"), ("vport1p2", "agent.channel.0\n")] {
            std::fs::create_dir(dir.path().join(port)).unwrap();
            std::fs::write(dir.path().join(port).join("name"), name).unwrap();
        }
        assert_eq!(find_now(dir.path(), "agent.channel.0"), Some("/dev/vport1p2".into()));
        assert_eq!(find_now(dir.path(), "agent.channel"), None);
        assert_eq!(find_now(&dir.path().join("none"), "agent.channel.0"), None);
    }

    #[test]
    fn a_peer_that_is_gone_polls_as_hung_up() {
        let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
        let here = OwnedFd::from(here);
        assert!(!hung_up(&here).unwrap());
        drop(there);
        assert!(hung_up(&here).unwrap());
    }
}
