//! `create` and `run`.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use kata_factory::launch;
use kata_oci::Spec;
use kata_sandbox::{Launch, LaunchError, Place, StateFile, cleanup_container, place};

use crate::args::CreateArgs;
use crate::client::{Daemon, Failure};
use crate::error::{CliError, io};
use crate::stand_in::{StandIn, StandInSpec};
use crate::store::{Entry, Store};
use crate::verbs;

/// The global flags.
pub struct Global {
    /// `--root`.
    pub store: Store,
    /// `--debug`.
    pub debug: bool,
    /// `--kata-config`.
    pub config: Option<PathBuf>,
}

/// `create`.
pub async fn create(global: &Global, a: CreateArgs) -> Result<u8, CliError> {
    if a.detach || a.keep || a.no_subreaper {
        return Err(CliError::Usage("--detach, --keep and --no-subreaper are flags of run, not of create".into()));
    }
    let (stand_in, _) = make(global, &a).await?;
    stand_in.let_go();
    Ok(0)
}

/// `run`.
pub async fn run(global: &Global, a: CreateArgs) -> Result<u8, CliError> {
    let (stand_in, daemon) = make(global, &a).await?;
    if let Err(err) = daemon.start(&a.id, "").await {
        drop(stand_in);
        undo(global, &a.id, &global.store.get(&a.id)?, Some(daemon)).await;
        return Err(err.into());
    }
    if a.detach {
        stand_in.let_go();
        return Ok(0);
    }
    drop(daemon);
    let code = stand_in.wait().await;
    if !a.keep {
        // The container has ended, or its sandbox has: both are cleaned up the same way.
        verbs::delete(&global.store, &a.id, true).await?;
    }
    code
}

/// Everything up to a created container, or nothing.
async fn make(global: &Global, a: &CreateArgs) -> Result<(StandIn, Daemon), CliError> {
    no_descriptors(a.preserve_fds)?;
    let bundle = std::path::absolute(&a.bundle).map_err(io("use the bundle", &a.bundle))?;
    let spec = kata_oci::load_spec(&bundle)?;
    let place = place(&global.store.owner(), &spec)?;
    let sandbox = match place {
        Place::Own => None,
        Place::In(sandbox) => Some(sandbox),
    };
    let entry = global.store.add(&a.id, &bundle, sandbox)?;
    match make_in(global, a, &entry, &spec).await {
        Ok(made) => Ok(made),
        Err((err, daemon)) => {
            undo(global, &a.id, &entry, daemon).await;
            Err(err)
        }
    }
}

/// The sandbox that a container is to be made in: its directory, its daemon, and the daemon's pid.
async fn sandbox(global: &Global, id: &str, entry: &Entry) -> Result<(PathBuf, Daemon, i32), CliError> {
    let run_dir = global.store.run_dir(id, entry);
    if let Some(sandbox) = &entry.sandbox {
        let none = || CliError::NoSandbox { id: id.to_owned(), sandbox: sandbox.clone() };
        let daemon = Daemon::connect(&run_dir).await.ok_or_else(none)?;
        let pid = daemon_of(&run_dir)?;
        return Ok((run_dir, daemon, pid));
    }
    let launched = launch(&Launch {
        owner: global.store.owner(),
        id: id.to_owned(),
        bundle: entry.bundle.clone(),
        config: global.config.clone(),
        debug: global.debug,
        log: None,
        events: None,
    });
    match launched {
        Ok((run_dir, pid)) => match Daemon::connect(&run_dir).await {
            Some(daemon) => Ok((run_dir, daemon, pid)),
            None => {
                cleanup_container(&run_dir, id, None)?;
                Err(gone())
            }
        },
        // Containers that were started with the one of this id have outlived it: it comes back to them, as podman's infra
        // container does whose pod is started while some of it still stops.
        Err(err @ LaunchError::InUse { .. }) => match Daemon::connect(&run_dir).await {
            Some(daemon) if matches!(daemon.state(id, "").await, Err(Failure::NotFound(_))) => {
                let pid = daemon_of(&run_dir)?;
                Ok((run_dir, daemon, pid))
            }
            _ => Err(err.into()),
        },
        Err(err) => Err(err.into()),
    }
}

/// The pid of the daemon of a sandbox that somebody else has started.
fn daemon_of(run_dir: &Path) -> Result<i32, CliError> {
    let daemon = StateFile::load(run_dir)?.and_then(|state| state.daemon);
    daemon.map(|d| d.pid).ok_or_else(gone)
}

fn gone() -> CliError {
    CliError::Daemon("the sandbox's daemon ended at once; see its log".into())
}

async fn make_in(
    global: &Global,
    a: &CreateArgs,
    entry: &Entry,
    spec: &Spec,
) -> Result<(StandIn, Daemon), (CliError, Option<Daemon>)> {
    // The daemon is in the sandbox's network namespace.
    let (run_dir, daemon, network_of) = sandbox(global, &a.id, entry).await.map_err(|e| (e, None))?;
    let done = async {
        let process = spec.process.clone().unwrap_or_default();
        let stand_in = StandIn::start(&StandInSpec {
            run_dir: &run_dir,
            container: &a.id,
            exec: "",
            terminal: process.terminal,
            console_socket: a.console_socket.clone(),
            size: process.console_size.map(|s| [s.height, s.width]),
            first: None,
            network_of,
            argv: &process.args,
        })?;
        daemon.create(&a.id, &entry.bundle, process.terminal).await?;
        if let Some(file) = &a.pid_file {
            // Last: whoever waits for it finds a container that is created.
            write_pid(file, stand_in.pid())?;
        }
        Ok::<_, CliError>(stand_in)
    };
    match done.await {
        Ok(stand_in) => Ok((stand_in, daemon)),
        Err(err) => Err((err, Some(daemon))),
    }
}

/// Takes back what `make` did. Without a daemon nothing has been made, or nothing is left of it.
async fn undo(global: &Global, id: &str, entry: &Entry, daemon: Option<Daemon>) {
    let run_dir = global.store.run_dir(id, entry);
    let mut left = false;
    if let Some(daemon) = daemon {
        left = match verbs::ended_by(&daemon, id, true).await {
            Ok(()) => verbs::leave(daemon, &run_dir, id).await,
            // What others are in is not ours to end.
            Err(_) => run_dir.exists() && !verbs::serves_others(&run_dir, id).await,
        };
    }
    if left && let Err(err) = cleanup_container(&run_dir, id, None) {
        eprintln!("kata-runtime: {err}");
    }
    if let Err(err) = global.store.remove(id) {
        eprintln!("kata-runtime: {err}");
    }
}

/// `--preserve-fds`.
///
/// # Errors
/// When any is asked for.
pub fn no_descriptors(count: u32) -> Result<(), CliError> {
    if count == 0 {
        return Ok(());
    }
    let why = "a virtual machine's process cannot be given descriptors of the host's";
    Err(CliError::Usage(format!("--preserve-fds {count} is not possible: {why}")))
}

/// Writes a pid file atomically.
///
/// # Errors
/// Names the file.
pub fn write_pid(path: &Path, pid: i32) -> Result<(), CliError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temp = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let write = || {
        let mut f = std::fs::File::options().write(true).create(true).truncate(true).mode(0o644).open(&temp)?;
        write!(f, "{pid}")?;
        std::fs::rename(&temp, path)
    };
    write().map_err(io("write the pid file", path))
}
