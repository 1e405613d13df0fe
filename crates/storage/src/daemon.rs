//! The host's side of the file daemon: starts it in its jail and hands out the connection to it.

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use kata_vmm::VmExit;
use kata_vmm::spawn::{RLimit, Spawn, SpawnError, Spawned, self_exe};
use thiserror::Error;
use tokio::sync::watch;

use crate::Share;
use crate::virtiofsd::{CAPABILITIES, OWN_FILES, SETUP_CAPABILITY};

/// The descriptor of its listening socket.
const LISTENER_FD: RawFd = 3;
/// How long starting may take.
const START: Duration = Duration::from_secs(20);
/// How long a killed daemon may take to end.
const STOP: Duration = Duration::from_secs(5);
/// It holds a descriptor for each file that the guest remembers: as many as the host allows, this many at most.
const OPEN_FILES: u64 = 1_000_000;

/// Why the file daemon did not start.
#[derive(Debug, Error)]
pub enum FsDaemonError {
    /// It could not be spawned.
    #[error("cannot start the file daemon")]
    Spawn(#[from] SpawnError),
    /// A system call on the way.
    #[error("cannot {what} {path}")]
    Os {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The process that serves a share to one guest. It ends when its connection closes; it is killed when this is
/// dropped.
#[derive(Debug)]
pub struct FsDaemon {
    process: Spawned,
    connection: Mutex<Option<OwnedFd>>,
}

impl FsDaemon {
    /// Starts it for `share`, in `cgroups` (directories with a cgroup.procs).
    ///
    /// # Errors
    /// [`FsDaemonError`].
    pub async fn start(
        share: &Share,
        run_dir: &Path,
        cgroups: &[PathBuf],
        debug: bool,
    ) -> Result<FsDaemon, FsDaemonError> {
        let (listener, connection) = socket(&run_dir.join("virtiofsd.sock"))?;
        let process = Spawn::new(self_exe())
            .arg0("kata")
            .args(["virtiofsd", "--fd", &LISTENER_FD.to_string(), "--root"])
            .arg(share.dir().to_string_lossy())
            .args(["--log", if debug { "debug" } else { "warn" }])
            .mount_ns()
            .pid_ns()
            .net_ns()
            .ipc_ns()
            .cgroups(cgroups)
            .capabilities(&[CAPABILITIES, &[SETUP_CAPABILITY]].concat())
            .rlimit(RLimit::NoFile(OPEN_FILES))
            .rlimit(RLimit::Core(0))
            .fd(LISTENER_FD, listener.into())
            .start(Instant::now() + START)
            .await?;
        Ok(FsDaemon { process, connection: Mutex::new(Some(connection)) })
    }

    /// The connected stream for the VM's device.
    ///
    /// # Errors
    /// `NotConnected` after the first call: the daemon serves one VM.
    pub fn connect(&self) -> io::Result<OwnedFd> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        connection.take().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Its pid on the host.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// How many inodes and open files of the guest's it can hold, as the host allows.
    ///
    /// # Errors
    /// When /proc does not tell.
    pub fn file_limit(&self) -> io::Result<u64> {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", self.pid()))?;
        let soft = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next()?.parse().ok());
        soft.map(|soft: u64| soft.saturating_sub(OWN_FILES)).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// How it ended; level-triggered.
    pub fn exited(&self) -> watch::Receiver<Option<VmExit>> {
        self.process.exited()
    }

    /// The last lines that it logged.
    pub fn log_tail(&self) -> Vec<String> {
        self.process.stderr_tail()
    }

    /// Ends it. Nothing is lost: it writes what the guest writes at once.
    pub async fn stop(&mut self) {
        if let Err(e) = self.process.kill() {
            tracing::error!("cannot kill the file daemon: {e}");
        }
        if tokio::time::timeout(STOP, self.process.wait()).await.is_err() {
            tracing::error!(pid = self.pid(), "the file daemon was killed and yet is there, stuck in the kernel");
        }
    }
}

/// A listening socket and a connection that waits in its queue. The daemon wants a listening socket, and only we are
/// to connect to it: its name is gone when this returns.
fn socket(path: &Path) -> Result<(UnixListener, OwnedFd), FsDaemonError> {
    let os = |what| move |source| FsDaemonError::Os { what, path: path.to_owned(), source };
    if let Err(e) = std::fs::remove_file(path)
        && e.kind() != io::ErrorKind::NotFound
    {
        return Err(os("replace")(e));
    }
    let listener = UnixListener::bind(path).map_err(os("listen at"))?;
    let connection = UnixStream::connect(path).map_err(os("connect to"));
    std::fs::remove_file(path).map_err(os("remove"))?;
    Ok((listener, connection?.into()))
}
