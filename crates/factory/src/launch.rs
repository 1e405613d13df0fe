//! A sandbox for a door: out of the pool if one waits there, else a daemon of its own. Always the same result.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kata_config::Config;
use kata_sandbox::{Launch, LaunchError, Templates, cleanup, vm_shape};

use crate::handover::{self, Name};
use crate::pool::{Pool, pool_key};
use crate::{config, driver};

/// A sandbox that serves, or is about to: its directory and its daemon's pid.
///
/// # Errors
/// [`LaunchError`]; nothing is left then, except for [`LaunchError::InUse`].
pub fn launch(l: &Launch) -> Result<(PathBuf, i32), LaunchError> {
    kata_sandbox::sweep();
    // A configuration that cannot be read is the daemon's to complain of: it says so to whoever wants to know.
    let Ok(loaded) = config(l.config.as_deref()) else { return kata_sandbox::launch(l) };
    let config = loaded.config;
    let pool = pool_of(&config);
    if let Some(pool) = &pool {
        let taken = from_pool(l, pool)?;
        if pool.keeper().is_none() {
            // It makes the template as well.
            start_keeper(l.config.as_deref());
        }
        if let Some(taken) = taken {
            return Ok(taken);
        }
    }
    let done = kata_sandbox::launch(l);
    // Afterwards: the start that is waited for goes first, and this one's look for a template with it.
    if pool.is_none() && lacks_template(&config) {
        start_keeper(l.config.as_deref());
    }
    done
}

/// The pool of a configuration that is to have one. Where something is wrong there is none: it is wrong for the sandbox's
/// daemon as well, which will say so.
fn pool_of(config: &Config) -> Option<Pool> {
    if config.factory.vm_cache_number == 0 {
        return None;
    }
    Some(Pool::of(&pool_key(config, &driver(config).ok()?).ok()?))
}

/// Whether a configuration is to have a template, and has none yet.
fn lacks_template(config: &Config) -> bool {
    let factory = &config.factory;
    let missing = || {
        let shape = vm_shape(config, &driver(config).ok()?).ok()??;
        Some(Templates::at(&factory.template_path).find(&shape).ok()?.is_none())
    };
    factory.enable_template && factory.vm_cache_number == 0 && missing().unwrap_or(false)
}

/// One that waits, named; `None`: none waits, or those that did were of no use.
fn from_pool(l: &Launch, pool: &Pool) -> Result<Option<(PathBuf, i32)>, LaunchError> {
    let run_dir = kata_sandbox::run_dir(&l.owner, &l.id);
    loop {
        match pool.take(&run_dir) {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                return Err(LaunchError::InUse { id: l.id.clone(), run_dir });
            }
            Err(e) => {
                tracing::warn!("the pool cannot be used: {e}");
                return Ok(None);
            }
        }
        let why = match handover::give(&Name::of(l, &run_dir)) {
            Ok(ready) => match (ready.pid, ready.error) {
                (Some(pid), _) => return Ok(Some((run_dir, pid))),
                // It may be the fault of what was asked for: a daemon of its own will say the same, or do it.
                (None, error) => {
                    let why = error.unwrap_or_default();
                    tracing::warn!("a sandbox of the pool could not be named: {why}");
                    remove(&run_dir);
                    return Ok(None);
                }
            },
            Err(e) => e,
        };
        // It died while it waited, or just now. There may be another.
        tracing::warn!("a sandbox of the pool was of no use: {why}");
        remove(&run_dir);
    }
}

fn remove(run_dir: &Path) {
    if let Err(err) = cleanup(run_dir, None) {
        tracing::warn!("{err}");
    }
}

/// Starts a keeper, which finds out by itself what there is to do, and does not wait for it.
pub(crate) fn start_keeper(config: Option<&Path>) {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("kata-factory").arg("factory-daemon");
    if let Some(config) = config {
        command.arg("--config").arg(config);
    }
    let started = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    if let Err(e) = started {
        tracing::warn!("the factory cannot be started: {e}");
    }
}
