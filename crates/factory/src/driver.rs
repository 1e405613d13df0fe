//! From a configuration to the driver it means.

use std::path::{Path, PathBuf};

use kata_config::{Accelerator, Config, ConfigError, Loaded};
use kata_vmm::Accel;
use kata_vmm_qemu::{Qemu, QemuConfig, QemuError};

/// The configuration in `file`, or the usual one of this installation (`<prefix>/bin/kata` is this program).
///
/// # Errors
/// [`ConfigError`], naming file and key.
pub fn config(file: Option<&Path>) -> Result<Loaded, ConfigError> {
    let exe = std::env::current_exe().unwrap_or_default();
    let prefix: PathBuf = exe.parent().and_then(Path::parent).unwrap_or(Path::new("/usr")).to_owned();
    kata_config::load(file, &prefix)
}

/// The accelerator that the configuration asks for, if it leaves no choice.
pub fn forced_accel(config: &Config) -> Option<Accel> {
    match config.hypervisor.qemu.accelerator {
        Accelerator::Auto => None,
        Accelerator::Kvm => Some(Accel::Kvm),
        Accelerator::Tcg => Some(Accel::Tcg),
    }
}

/// The driver.
///
/// # Errors
/// [`QemuError`] names what in the configuration cannot be.
pub fn driver(config: &Config) -> Result<Qemu, QemuError> {
    let q = &config.hypervisor.qemu;
    Qemu::new(QemuConfig {
        binary: q.path.clone(),
        accel: forced_accel(config),
        uid_range: Some(q.uid_range),
        machine: q.machine_type.clone(),
    })
}
