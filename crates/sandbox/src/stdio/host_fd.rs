//! Reading and writing descriptors of any kind without blocking the daemon, and without changing a file description
//! that others share: `O_NONBLOCK` on the user's terminal would break the user's shell.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::{MsgFlags, recv, send};
use tokio::io::unix::AsyncFd;

/// A descriptor of the host's.
pub enum HostFd {
    /// A pipe, FIFO or terminal through a description of our own, non-blocking.
    Polled(AsyncFd<OwnedFd>),
    /// A socket: each call says that it must not block.
    Socket(AsyncFd<OwnedFd>),
    /// A regular file or a device that epoll(7) does not take (EPERM); such do not block for long.
    Plain(OwnedFd),
}

/// Which way the data go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the host.
    Read,
    /// To the host.
    Write,
}

impl HostFd {
    /// Takes over a descriptor that somebody handed to us.
    pub fn adopt(fd: OwnedFd, way: Way) -> io::Result<HostFd> {
        let file = std::fs::File::from(fd);
        let kind = file.metadata()?.file_type();
        let fd = OwnedFd::from(file);
        if kind.is_socket() {
            return polled(fd).map(HostFd::Socket).map_err(|fd| refused(&fd));
        }
        if kind.is_file() {
            return Ok(HostFd::Plain(fd));
        }
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        match open(Path::new(&path), way) {
            Ok(own) => Ok(polled(own).map_or_else(HostFd::Plain, HostFd::Polled)),
            Err(e) => Err(e),
        }
    }

    /// Opens a FIFO. The writing side holds a reading one, so that it neither waits for a reader nor ends with it.
    pub fn fifo(path: &Path, way: Way) -> io::Result<HostFd> {
        let mut options = OpenOptions::new();
        options.read(true).write(way == Way::Write).custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits());
        let file = options.open(path)?;
        if file.metadata()?.file_type().is_file() {
            return Ok(HostFd::Plain(file.into()));
        }
        Ok(polled(file.into()).map_or_else(HostFd::Plain, HostFd::Polled))
    }

    /// Opens a file to append to.
    pub fn append(path: &Path) -> io::Result<HostFd> {
        Ok(HostFd::Plain(OpenOptions::new().append(true).create(true).mode(0o640).open(path)?.into()))
    }

    /// Reads what there is; 0 at the end.
    pub async fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        let done = match self {
            // Readiness first: a FIFO that no writer has opened yet would read as ended.
            HostFd::Polled(fd) => loop {
                let mut ready = fd.readable().await?;
                if let Ok(done) = ready.try_io(|fd| nix::unistd::read(fd.as_fd(), buf).map_err(io::Error::from)) {
                    break done;
                }
            },
            HostFd::Socket(fd) => loop {
                let mut ready = fd.readable().await?;
                let get =
                    |fd: &AsyncFd<OwnedFd>| recv(fd.as_raw_fd(), buf, MsgFlags::MSG_DONTWAIT).map_err(io::Error::from);
                if let Ok(done) = ready.try_io(get) {
                    break done;
                }
            },
            HostFd::Plain(fd) => nix::unistd::read(fd.as_fd(), buf).map_err(io::Error::from),
        };
        match done {
            // The other end of a terminal is gone.
            Err(e) if e.raw_os_error() == Some(Errno::EIO as i32) => Ok(0),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Ok(0),
            done => done,
        }
    }

    /// Reads what is there already; 0 when that is nothing, or at the end.
    pub fn read_now(&self, buf: &mut [u8]) -> io::Result<usize> {
        let done = match self {
            HostFd::Polled(fd) => nix::unistd::read(fd.as_fd(), buf),
            HostFd::Socket(fd) => recv(fd.as_raw_fd(), buf, MsgFlags::MSG_DONTWAIT),
            HostFd::Plain(fd) => nix::unistd::read(fd.as_fd(), buf),
        };
        match done {
            Err(Errno::EAGAIN | Errno::EIO | Errno::ECONNRESET) => Ok(0),
            done => Ok(done?),
        }
    }

    /// Writes all of it.
    pub async fn write_all(&self, mut buf: &[u8]) -> io::Result<()> {
        while !buf.is_empty() {
            let n = match self {
                HostFd::Polled(fd) => loop {
                    let mut ready = fd.writable().await?;
                    if let Ok(done) = ready.try_io(|fd| nix::unistd::write(fd.as_fd(), buf).map_err(io::Error::from)) {
                        break done?;
                    }
                },
                HostFd::Socket(fd) => loop {
                    let mut ready = fd.writable().await?;
                    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                    let put = |fd: &AsyncFd<OwnedFd>| send(fd.as_raw_fd(), buf, flags).map_err(io::Error::from);
                    if let Ok(done) = ready.try_io(put) {
                        break done?;
                    }
                },
                HostFd::Plain(fd) => nix::unistd::write(fd.as_fd(), buf)?,
            };
            buf = &buf[n..];
        }
        Ok(())
    }
}

/// Registers with epoll, or gives the descriptor back (epoll_ctl(2), EPERM: it is always ready).
#[expect(deprecated, reason = "the replacement is unsafe; an OwnedFd keeps its number, which is all that is asked")]
fn polled(fd: OwnedFd) -> Result<AsyncFd<OwnedFd>, OwnedFd> {
    AsyncFd::try_new(fd).map_err(|e| e.into_parts().0)
}

fn refused(fd: &OwnedFd) -> io::Error {
    io::Error::other(format!("descriptor {} cannot be watched", fd.as_raw_fd()))
}

fn open(path: &Path, way: Way) -> io::Result<OwnedFd> {
    let mut options = OpenOptions::new();
    options.read(way == Way::Read).write(way == Way::Write);
    options.custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits());
    Ok(options.open(path)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rt() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn a_shared_description_is_left_as_it_is() {
        rt().block_on(async {
            let (r, w) = nix::unistd::pipe().unwrap();
            let shared = r.try_clone().unwrap();
            let host = HostFd::adopt(r, Way::Read).unwrap();
            nix::unistd::write(&w, b"abc").unwrap();
            let mut buf = [0; 8];
            assert_eq!(host.read(&mut buf).await.unwrap(), 3);
            let flags = nix::fcntl::fcntl(&shared, nix::fcntl::FcntlArg::F_GETFL).unwrap();
            assert!(!OFlag::from_bits_truncate(flags).contains(OFlag::O_NONBLOCK));
            drop(w);
            assert_eq!(host.read(&mut buf).await.unwrap(), 0);
        });
    }

    #[test]
    fn sockets_files_and_null_work() {
        rt().block_on(async {
            let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
            let a = HostFd::adopt(a.into(), Way::Write).unwrap();
            let b = HostFd::adopt(b.into(), Way::Read).unwrap();
            a.write_all(b"hi").await.unwrap();
            let mut buf = [0; 8];
            assert_eq!(b.read(&mut buf).await.unwrap(), 2);
            let null = HostFd::adopt(std::fs::File::open("/dev/null").unwrap().into(), Way::Read).unwrap();
            assert_eq!(null.read(&mut buf).await.unwrap(), 0);
            let path = std::env::temp_dir().join(format!("kata-hostfd-{}", std::process::id()));
            let file = HostFd::append(&path).unwrap();
            file.write_all(b"line").await.unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"line");
            std::fs::remove_file(&path).unwrap();
        });
    }

    #[test]
    fn what_is_there_already_is_read_without_waiting_for_more() {
        rt().block_on(async {
            let (r, w) = nix::unistd::pipe().unwrap();
            let pipe = HostFd::adopt(r, Way::Read).unwrap();
            let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
            let socket = HostFd::adopt(b.into(), Way::Read).unwrap();
            nix::unistd::write(&w, b"abc").unwrap();
            nix::unistd::write(&a, b"de").unwrap();
            let mut buf = [0; 8];
            for (from, len) in [(&pipe, 3), (&pipe, 0), (&socket, 2), (&socket, 0)] {
                assert_eq!(from.read_now(&mut buf).unwrap(), len);
            }
        });
    }

    #[test]
    fn a_fifo_waits_for_its_first_writer_and_ends_with_the_last() {
        rt().block_on(async {
            let path = std::env::temp_dir().join(format!("kata-fifo-{}", std::process::id()));
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
            let r = HostFd::fifo(&path, Way::Read).unwrap();
            let mut buf = [0; 8];
            let early = tokio::time::timeout(std::time::Duration::from_millis(50), r.read(&mut buf)).await;
            assert!(early.is_err(), "no writer yet is not the end");
            let w = HostFd::fifo(&path, Way::Write).unwrap();
            w.write_all(b"x").await.unwrap();
            assert_eq!(r.read(&mut buf).await.unwrap(), 1);
            drop(w);
            assert_eq!(r.read(&mut buf).await.unwrap(), 0);
            std::fs::remove_file(&path).unwrap();
        });
    }
}
