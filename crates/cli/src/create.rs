//! `create` and `run`.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use kata_factory::launch;
use kata_oci::Spec;
use kata_sandbox::{Launch, cleanup};

use crate::args::CreateArgs;
use crate::client::Daemon;
use crate::error::{CliError, io};
use crate::stand_in::{StandIn, StandInSpec};
use crate::store::Store;
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
        undo(global, &a.id, Some(daemon)).await;
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
    global.store.add(&a.id, &bundle)?;
    match make_in(global, a, &bundle, &spec).await {
        Ok(made) => Ok(made),
        Err((err, daemon)) => {
            undo(global, &a.id, daemon).await;
            Err(err)
        }
    }
}

async fn make_in(
    global: &Global,
    a: &CreateArgs,
    bundle: &Path,
    spec: &Spec,
) -> Result<(StandIn, Daemon), (CliError, Option<Daemon>)> {
    let launched = launch(&Launch {
        owner: global.store.owner(),
        id: a.id.clone(),
        bundle: bundle.to_owned(),
        config: global.config.clone(),
        debug: global.debug,
        log: None,
        events: None,
    });
    let (run_dir, daemon_pid) = launched.map_err(|e| (e.into(), None))?;
    let gone = || CliError::Daemon("the sandbox's daemon ended at once; see its log".into());
    let daemon = Daemon::connect(&run_dir).await.ok_or_else(|| (gone(), None))?;
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
            network_of: daemon_pid,
            argv: &process.args,
        })?;
        daemon.create(&a.id, bundle, process.terminal).await?;
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

/// Takes back what `make` did.
async fn undo(global: &Global, id: &str, daemon: Option<Daemon>) {
    let run_dir = global.store.run_dir(id);
    if let Some(daemon) = daemon
        && daemon.shutdown(id).await.is_ok()
    {
        verbs::wait_gone(&run_dir).await;
    }
    if run_dir.exists()
        && let Err(err) = cleanup(&run_dir, None)
    {
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
