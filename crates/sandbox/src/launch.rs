//! Starting a sandbox's daemon: the same for both doors.

use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::key::{self, Owner};

/// What the daemon is to serve.
#[derive(Debug, Clone)]
pub struct Launch {
    /// Whose sandbox.
    pub owner: Owner,
    /// Its id.
    pub id: String,
    /// The bundle of its first container.
    pub bundle: PathBuf,
    /// A configuration file that was named; `None`: the usual ones.
    pub config: Option<PathBuf>,
    /// Log at debug.
    pub debug: bool,
    /// Where the daemon writes its log; `None`: `daemon.log` in its directory.
    pub log: Option<PathBuf>,
    /// Where containerd takes events (its ttrpc socket).
    pub events: Option<String>,
}

/// The daemon's first and only word on its stdout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Its pid, when it serves.
    pub pid: Option<i32>,
    /// Why it does not.
    pub error: Option<String>,
}

/// Why there is no daemon.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// Its directory exists.
    #[error("{id} is in use: {run_dir} exists; delete it first")]
    InUse {
        /// The sandbox.
        id: String,
        /// Its directory.
        run_dir: PathBuf,
    },
    /// A file or process.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It said why not.
    #[error("{0}")]
    Refused(String),
    /// It ended without a word.
    #[error("the sandbox's daemon ended before it served{}", .log.as_ref().map(|l| format!("; its log: {l}")).unwrap_or_default())]
    Silent {
        /// The end of its log.
        log: Option<String>,
    },
}

/// Makes the sandbox's directory and starts its daemon there; returns when it serves. The directory is the lock on the
/// id: of two callers at once, one makes it.
///
/// # Errors
/// [`LaunchError`]; the directory is gone again, except for [`LaunchError::InUse`].
pub fn launch(l: &Launch) -> Result<(PathBuf, i32), LaunchError> {
    let run_dir = key::run_dir(&l.owner, &l.id);
    let io = |what, path: &Path| {
        let path = path.to_owned();
        move |source| LaunchError::Io { what, path, source }
    };
    let parent = Path::new(kata_types::HOST_RUN_DIR);
    // 0711: the VMM's own uid must pass through to nothing, and only by name.
    DirBuilder::new().recursive(true).mode(0o711).create(parent).map_err(io("make", parent))?;
    match DirBuilder::new().mode(0o700).create(&run_dir) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            return Err(LaunchError::InUse { id: l.id.clone(), run_dir });
        }
        Err(e) => return Err(io("make", &run_dir)(e)),
    }
    let served = spawn(l, &run_dir);
    if served.is_err()
        && let Err(err) = crate::cleanup(&run_dir, None)
    {
        tracing::warn!("{err}");
    }
    served.map(|pid| (run_dir, pid))
}

fn spawn(l: &Launch, run_dir: &Path) -> Result<i32, LaunchError> {
    let io = |what, path: &Path| {
        let path = path.to_owned();
        move |source| LaunchError::Io { what, path, source }
    };
    let log_path = run_dir.join("daemon.log");
    let log = File::options().create(true).append(true).open(&log_path).map_err(io("open", &log_path))?;
    let exe = Path::new("/proc/self/exe");
    let mut args: Vec<OsString> = vec!["--run-dir".into(), run_dir.into(), "--id".into(), l.id.clone().into()];
    args.extend(["--bundle".into(), l.bundle.clone().into()]);
    match &l.owner {
        Owner::Containerd(namespace) => args.extend(["--namespace".into(), namespace.into()]),
        Owner::Oci(root) => args.extend(["--root".into(), root.into()]),
    }
    for (flag, path) in [("--config", &l.config), ("--log", &l.log)] {
        if let Some(path) = path {
            args.extend([flag.into(), path.into()]);
        }
    }
    if let Some(address) = &l.events {
        args.extend(["--events".into(), address.into()]);
    }
    if l.debug {
        args.push("--debug".into());
    }
    let mut child = Command::new(exe)
        .arg0("kata-sandbox")
        .arg("sandbox-daemon")
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(io("start", exe))?;
    let mut said = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut said).map_err(io("read the answer of", exe))?;
    }
    match serde_json::from_str::<Ready>(said.trim()) {
        Ok(Ready { pid: Some(pid), .. }) => Ok(pid),
        Ok(Ready { error: Some(error), .. }) => {
            drop(child.wait());
            Err(LaunchError::Refused(error))
        }
        _ => {
            drop(child.kill());
            drop(child.wait());
            let log = std::fs::read_to_string(&log_path).ok().map(|t| t.trim().to_owned()).filter(|t| !t.is_empty());
            Err(LaunchError::Silent { log })
        }
    }
}
