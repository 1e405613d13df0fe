//! Making a template: a machine of nobody's is booted until its agent answers, and saved.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use kata_config::Config;
use kata_types::SandboxId;
use kata_vmm::{LaunchError, SaveError, Stop, VmSpec, Vmm};
use thiserror::Error;

use super::{Lock, MEMORY, STATE, Template, TemplateError, Templates, failed};
use crate::machine::{self, BootError, chain};

/// The agent has noticed that nobody talks to it any more, and the guest's kernel has done what it had put off: giving back
/// what its boot has freed comes last, two seconds after (mm/page_reporting.c, PAGE_REPORTING_DELAY).
const SETTLE: Duration = Duration::from_millis(2300);
/// How long the VMM of a saved guest may take to go.
const STOP: Duration = Duration::from_secs(5);

/// Why there is no template.
#[derive(Debug, Error)]
pub enum BuildError {
    /// Files and directories.
    #[error(transparent)]
    Files(#[from] TemplateError),
    /// The guest to be saved did not boot.
    #[error("the guest to be saved did not boot: {}", chain(.0))]
    Boot(#[from] BootError),
    /// It could not be saved.
    #[error("the guest could not be saved: {}", chain(.0))]
    Save(#[from] SaveError),
    /// This VMM has none.
    #[error("{0} cannot save guests: there are no templates with it")]
    Unsupported(&'static str),
}

impl From<LaunchError> for BuildError {
    fn from(err: LaunchError) -> Self {
        BuildError::Boot(err.into())
    }
}

/// The template of the VM that `config` means: the one there is, or a new one, for which it waits if somebody else is
/// making it.
///
/// # Errors
/// [`BuildError`]; nothing is left of the attempt.
pub async fn build(config: &Config, vmm: &dyn Vmm) -> Result<Template, BuildError> {
    let templates = Templates::at(&config.factory.template_path);
    let name = SandboxId::new("template").unwrap_or_else(|_| unreachable!("a valid id"));
    let shape = machine::vm_shape(config, vmm)?.ok_or(BuildError::Unsupported(vmm.name()))?;
    if let Some(there) = templates.find(&shape)? {
        return Ok(there);
    }
    let waiting = templates.clone();
    let lock = tokio::task::spawn_blocking(move || waiting.lock()).await;
    let lock = lock.map_err(|e| failed("lock", &config.factory.template_path)(std::io::Error::other(e)))??;
    if let Some(there) = templates.find(&shape)? {
        return Ok(there);
    }
    let dir = templates.begin(&lock)?;
    let made = save(config, machine::vm_spec(config, &name, &dir, &[]), vmm, &dir).await;
    let published = match made {
        Ok(()) => templates.publish(&dir, &shape).map_err(Into::into),
        Err(err) => Err(err),
    };
    if published.is_err() {
        clean(&templates, &lock);
    }
    published
}

fn clean(templates: &Templates, lock: &Lock) {
    if let Err(err) = templates.sweep(lock) {
        tracing::warn!("{err}");
    }
}

async fn save(config: &Config, spec: VmSpec, vmm: &dyn Vmm, dir: &Path) -> Result<(), BuildError> {
    let begun = Instant::now();
    let deadline = begun + Duration::from_secs(config.hypervisor.qemu.boot_timeout.into());
    let file = |name| {
        let path = dir.join(name);
        let opened = File::options().read(true).write(true).create_new(true).open(&path);
        opened.map_err(failed("make", &path))
    };
    let (state, memory) = (file(STATE)?, file(MEMORY)?);
    let mut vm = vmm.launch(spec, deadline).await?;
    vm.resume().await.map_err(BootError::Run)?;
    drop(machine::connect(vm.as_mut(), deadline).await?);
    tokio::time::sleep(SETTLE).await;
    let saved = vm.save(state, memory).await;
    vm.stop(Stop::Kill, Instant::now() + STOP).await;
    saved?;
    tracing::info!(took = ?begun.elapsed(), "a template is made");
    Ok(())
}
