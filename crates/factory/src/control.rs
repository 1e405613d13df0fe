//! The factory as its user sees it: made ready, shown, taken away.

use std::path::Path;
use std::time::{Duration, Instant};

use kata_sandbox::{BuildError, TemplateError, Templates, build_template, vm_shape};
use kata_types::Mib;
use kata_vmm::spawn::kill_recorded;
use thiserror::Error;

use crate::launch::start_keeper;
use crate::pool::{Pool, PoolError, pool_key};
use crate::{config, driver};

/// How often a pool that fills is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long a sandbox may take to wait: one that boots, on a busy host.
const EACH: Duration = Duration::from_secs(60);
/// How long a keeper may take to let its sandboxes end.
const DRAIN: Duration = Duration::from_secs(15);

/// Why the factory could not be changed or looked at.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] kata_config::ConfigError),
    /// The driver.
    #[error(transparent)]
    Driver(#[from] kata_vmm_qemu::QemuError),
    /// The template could not be made.
    #[error("no template was made: {0}")]
    Build(#[from] BuildError),
    /// The templates' directory.
    #[error(transparent)]
    Templates(#[from] TemplateError),
    /// The pool's directory.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The configuration asks for nothing.
    #[error("there is nothing to make: factory.enable_template is false and factory.vm_cache_number is 0")]
    Nothing,
    /// It did not fill.
    #[error("the pool did not fill: {waiting} of {wanted} sandboxes wait; its keeper's log: {log}")]
    Unfilled {
        /// How many wait.
        waiting: usize,
        /// How many should.
        wanted: usize,
        /// Where to look.
        log: String,
    },
    /// The keeper does not go.
    #[error("the pool's keeper {pid} does not end: {source}")]
    Keeper {
        /// Its pid.
        pid: i32,
        /// Why not.
        source: std::io::Error,
    },
}

/// A template as it is shown.
#[derive(Debug, Clone, serde::Serialize)]
pub struct TemplateStatus {
    /// What it is a template of.
    pub shape: String,
    /// Whether a sandbox of the present configuration would begin from it.
    pub current: bool,
    /// On the host.
    pub mib: Mib,
}

/// A pool as it is shown.
#[derive(Debug, Clone, serde::Serialize)]
pub struct PoolStatus {
    /// Its key.
    pub key: String,
    /// Whether it is the one of the present configuration.
    pub current: bool,
    /// Its keeper's pid; none: nobody keeps it.
    pub keeper: Option<i32>,
    /// How many sandboxes can be taken.
    pub waiting: usize,
}

/// What there is.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Status {
    /// Where a new sandbox would come from: "pool", "template" or "boot", and why.
    pub next: String,
    /// All templates.
    pub templates: Vec<TemplateStatus>,
    /// All pools.
    pub pools: Vec<PoolStatus>,
}

/// Makes the template, if there is to be one, and fills the pool, if there is to be one.
///
/// # Errors
/// [`ControlError`].
pub async fn init(file: Option<&Path>) -> Result<(), ControlError> {
    let config = config(file)?.config;
    let vmm = driver(&config)?;
    let factory = &config.factory;
    if !factory.enable_template && factory.vm_cache_number == 0 {
        return Err(ControlError::Nothing);
    }
    if factory.enable_template {
        build_template(&config, &vmm).await?;
    }
    let wanted = factory.vm_cache_number as usize;
    if wanted == 0 {
        return Ok(());
    }
    let pool = Pool::of(&pool_key(&config, &vmm)?);
    if pool.keeper().is_none() {
        start_keeper(file);
    }
    let mut deadline = Instant::now() + EACH;
    let mut waiting = 0;
    while waiting < wanted {
        tokio::time::sleep(LOOK).await;
        let now = pool.waiting().len();
        if now != waiting {
            (waiting, deadline) = (now, Instant::now() + EACH);
        }
        if Instant::now() >= deadline {
            return Err(ControlError::Unfilled { waiting, wanted, log: pool.log().display().to_string() });
        }
    }
    Ok(())
}

/// What there is.
///
/// # Errors
/// [`ControlError`].
pub fn status(file: Option<&Path>) -> Result<Status, ControlError> {
    let config = config(file)?.config;
    let vmm = driver(&config)?;
    let factory = &config.factory;
    let shape = vm_shape(&config, &vmm).ok().flatten();
    let key = pool_key(&config, &vmm).ok();
    let templates: Vec<TemplateStatus> = Templates::at(&factory.template_path)
        .list()?
        .into_iter()
        .map(|t| TemplateStatus {
            current: Some(t.shape()) == shape.as_deref(),
            mib: t.size(),
            shape: t.shape().to_owned(),
        })
        .collect();
    let pools: Vec<PoolStatus> = Pool::all()
        .into_iter()
        .map(|pool| PoolStatus {
            current: Some(pool.key()) == key,
            keeper: pool.keeper().map(|keeper| keeper.pid),
            waiting: pool.waiting().len(),
            key: pool.key(),
        })
        .collect();
    let next = if factory.vm_cache_number > 0 && pools.iter().any(|p| p.current && p.waiting > 0) {
        "pool"
    } else if !factory.enable_template {
        "boot (factory.enable_template is false)"
    } else if templates.iter().any(|t| t.current) {
        "template"
    } else {
        "boot (there is no template of the present configuration yet)"
    };
    Ok(Status { next: next.to_owned(), templates, pools })
}

/// Ends the pool of this configuration, and those that nobody keeps, and removes every template of the configured
/// directory. Sandboxes that have a name go on.
///
/// # Errors
/// [`ControlError`]; what could be removed is removed all the same.
pub fn destroy(file: Option<&Path>) -> Result<(), ControlError> {
    let config = config(file)?.config;
    let mut done = Ok(());
    // A pool of an unusable configuration has no key; its keeper ends by itself.
    let current = driver(&config).ok().and_then(|vmm| pool_key(&config, &vmm).ok());
    for pool in Pool::all() {
        if Some(pool.key()) == current || pool.keeper().is_none() {
            done = done.and(end_pool(&pool));
        }
    }
    Templates::at(&config.factory.template_path).destroy()?;
    done
}

fn end_pool(pool: &Pool) -> Result<(), ControlError> {
    if let Some(keeper) = pool.keeper() {
        let pid = keeper.pid;
        let asked = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        if let Err(e) = asked {
            tracing::debug!("the keeper {pid}: {e}");
        }
        let deadline = Instant::now() + DRAIN;
        while keeper.alive() && Instant::now() < deadline {
            std::thread::sleep(LOOK);
        }
        // One that has ended meanwhile is none.
        let killed = kill_recorded(pid, keeper.start_time, Instant::now() + DRAIN);
        killed.map_err(|source| ControlError::Keeper { pid, source })?;
    }
    for left in pool.members() {
        pool.discard(&left);
    }
    Ok(pool.remove()?)
}
