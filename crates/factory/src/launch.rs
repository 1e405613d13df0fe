//! A sandbox for a door: out of the pool if one waits there, else a daemon of its own. Always the same result.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kata_config::Config;
use kata_sandbox::{Launch, LaunchError, Templates, cleanup};
use kata_types::SandboxId;
use kata_vmm::Vmm;

use crate::handover::{self, Name};
use crate::pool::{Pool, pool_key};
use crate::{config, driver};

/// A sandbox that serves, or is about to: its directory and its daemon's pid.
///
/// # Errors
/// [`LaunchError`]; nothing is left then, except for [`LaunchError::InUse`].
pub fn launch(l: &Launch) -> Result<(PathBuf, i32), LaunchError> {
    // A configuration that cannot be read is the daemon's to complain of: it says so to whoever wants to know.
    let Ok(loaded) = config(l.config.as_deref()) else { return kata_sandbox::launch(l) };
    let wanted = Wanted::of(&loaded.config);
    if let Some(pool) = &wanted.pool {
        let taken = from_pool(l, pool)?;
        if pool.keeper().is_none() {
            start_keeper(l.config.as_deref());
        }
        if let Some(taken) = taken {
            return Ok(taken);
        }
    }
    let done = kata_sandbox::launch(l);
    if !wanted.template {
        // Afterwards: the start that is waited for goes first.
        start_keeper(l.config.as_deref());
    }
    done
}

/// What there is for a configuration.
struct Wanted {
    /// Its pool, if it is to have one.
    pool: Option<Pool>,
    /// Whether its template is there, or is none of ours to make.
    template: bool,
}

impl Wanted {
    fn of(config: &Config) -> Wanted {
        Wanted::find(config).unwrap_or(Wanted { pool: None, template: true })
    }

    /// `None`: nothing, or something is wrong, which is wrong for the sandbox's daemon as well: it will say so.
    fn find(config: &Config) -> Option<Wanted> {
        let factory = &config.factory;
        if factory.vm_cache_number == 0 && !factory.enable_template {
            return None;
        }
        let vmm = driver(config).ok()?;
        if factory.vm_cache_number > 0 {
            // Its keeper makes the template.
            return Some(Wanted { pool: Some(Pool::of(&pool_key(config, &vmm).ok()?)), template: true });
        }
        let id = SandboxId::new("any").ok()?;
        let shape = vmm.shape(&kata_sandbox::vm_spec(config, &id, Path::new("/"), &[])).ok()??;
        let template = Templates::at(&factory.template_path).find(&shape).ok()?.is_some();
        Some(Wanted { pool: None, template })
    }
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
