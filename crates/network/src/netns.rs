//! Network namespaces. Work in another one is done by a thread that enters it and ends; sockets and taps that it made stay
//! in that namespace (network_namespaces(7)), whoever uses them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns, unshare};
use thiserror::Error;

/// The abstract socket that says whose a namespace is. Such names belong to the network namespace (unix(7)), and go with
/// whoever bound them.
const CLAIM: &[u8] = b"kata-sandbox-network";

/// Why a network namespace cannot be used.
#[derive(Debug, Error)]
pub enum NetnsError {
    /// It cannot be opened, made or entered.
    #[error("cannot {what} the network namespace {name}: {source}")]
    Os {
        /// What was tried.
        what: &'static str,
        /// Its path, or what it is.
        name: String,
        /// Why not.
        source: io::Error,
    },
    /// Something else is at that path.
    #[error("{path} is no network namespace")]
    NotOne {
        /// What was named.
        path: PathBuf,
    },
    /// It is the host's own.
    #[error(
        "host network: the sandbox's VM cannot share the host's network ({name}); use a network of the engine's and publish \
         ports, or none"
    )]
    Host {
        /// What was asked for.
        name: String,
    },
    /// Another sandbox has it.
    #[error(
        "the network namespace {name} belongs to another sandbox, whose VM has its interfaces; containers can share a network \
         only within one sandbox (a pod)"
    )]
    Claimed {
        /// Its path, or what it is.
        name: String,
    },
}

/// An open network namespace. It lives at least as long as this.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    name: String,
    /// Device and inode of its file: who it is.
    identity: (u64, u64),
}

impl Netns {
    fn new(fd: OwnedFd, name: String) -> io::Result<Netns> {
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Netns { fd, name, identity: (stat.st_dev, stat.st_ino) })
    }

    /// Opens the one at `path`: a bind mount (`/run/netns/x`) or a process's (`/proc/PID/ns/net`).
    ///
    /// # Errors
    /// [`NetnsError::Os`], [`NetnsError::NotOne`].
    pub fn open(path: &Path) -> Result<Netns, NetnsError> {
        let name = path.display().to_string();
        let os = |source| NetnsError::Os { what: "open", name: name.clone(), source };
        let file = File::open(path).map_err(os)?;
        // Not by its name: one that is bound somewhere has the name of that place.
        if !kata_sys::namespace::kind(&file).is_ok_and(|kind| kind == libc::CLONE_NEWNET) {
            return Err(NetnsError::NotOne { path: path.to_owned() });
        }
        Netns::new(file.into(), name.clone()).map_err(os)
    }

    /// The calling thread's.
    ///
    /// # Errors
    /// [`NetnsError::Os`].
    pub fn current() -> Result<Netns, NetnsError> {
        Netns::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// One that somebody has sent a descriptor of.
    ///
    /// # Errors
    /// [`NetnsError::Os`].
    pub fn adopt(fd: OwnedFd, name: &str) -> Result<Netns, NetnsError> {
        Netns::new(fd, name.to_owned()).map_err(|source| NetnsError::Os { what: "use", name: name.to_owned(), source })
    }

    /// A new one, with nothing but a loopback interface that is down. It goes when nobody has it any more.
    ///
    /// # Errors
    /// [`NetnsError::Os`].
    pub fn create() -> Result<Netns, NetnsError> {
        let name = "of the sandbox's own";
        let made = std::thread::scope(|scope| {
            let inside = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, || {
                unshare(CloneFlags::CLONE_NEWNET)?;
                Netns::new(File::open("/proc/thread-self/ns/net")?.into(), name.to_owned())
            })?;
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        made.map_err(|source| NetnsError::Os { what: "make", name: name.to_owned(), source })
    }

    /// The same one again.
    ///
    /// # Errors
    /// [`NetnsError::Os`].
    pub fn try_clone(&self) -> Result<Netns, NetnsError> {
        let os = |source| NetnsError::Os { what: "open", name: self.name.clone(), source };
        let fd = self.fd.try_clone().map_err(os)?;
        Ok(Netns { fd, name: self.name.clone(), identity: self.identity })
    }

    /// What messages call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether both are the same namespace.
    pub fn is(&self, other: &Netns) -> bool {
        self.identity == other.identity
    }

    /// Refuses the host's own namespace.
    ///
    /// # Errors
    /// [`NetnsError::Host`].
    pub fn refuse(&self, host: &Netns) -> Result<(), NetnsError> {
        if self.is(host) { Err(NetnsError::Host { name: self.name.clone() }) } else { Ok(()) }
    }

    /// Moves the calling thread into it, for good.
    ///
    /// # Errors
    /// [`NetnsError::Os`].
    pub fn enter(&self) -> Result<(), NetnsError> {
        setns(&self.fd, CloneFlags::CLONE_NEWNET).map_err(|e| NetnsError::Os {
            what: "enter",
            name: self.name.clone(),
            source: e.into(),
        })
    }

    /// Does `work` in it: at once if the calling thread is in it, else on a thread made for that, for which the caller
    /// waits.
    ///
    /// # Errors
    /// [`NetnsError::Os`] when it cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        let here = rustix::fs::stat("/proc/thread-self/ns/net");
        if here.is_ok_and(|here| (here.st_dev, here.st_ino) == self.identity) {
            return Ok(work());
        }
        std::thread::scope(|scope| {
            let inside = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, || {
                self.enter()?;
                Ok(work())
            });
            let inside = inside.map_err(|source| NetnsError::Os { what: "enter", name: self.name.clone(), source })?;
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Makes it this sandbox's until the claim is dropped: two that redirect the same interfaces would take each other's
    /// packets.
    ///
    /// # Errors
    /// [`NetnsError::Claimed`], [`NetnsError::Os`].
    pub fn claim(&self) -> Result<Claim, NetnsError> {
        let bound = self.run(|| {
            let address = SocketAddr::from_abstract_name(CLAIM)?;
            UnixDatagram::bind_addr(&address)
        })?;
        match bound {
            Ok(socket) => Ok(Claim { _socket: socket }),
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => Err(NetnsError::Claimed { name: self.name.clone() }),
            Err(source) => Err(NetnsError::Os { what: "claim", name: self.name.clone(), source }),
        }
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A namespace is taken while this is there; a kill releases it too.
#[derive(Debug)]
#[must_use]
pub struct Claim {
    _socket: UnixDatagram,
}
