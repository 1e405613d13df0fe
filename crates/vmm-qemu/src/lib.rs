//! The QEMU driver: a machine of data, a command line of descriptors instead of paths, a jail, and QMP.

mod command;
mod input;
mod launch;
mod machine;
mod qmp;
mod shape;
mod snapshot;
mod uid;
mod vm;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use async_trait::async_trait;
use kata_vmm::{Accel, AccelChoice, Caps, LaunchError, Vm, VmRecord, VmSpec, Vmm};
use thiserror::Error;

use machine::Machine;

/// The driver's name in configurations, messages and records.
const NAME: &str = "qemu";
/// Where the locks of the VMMs' uids are.
fn uid_dir() -> PathBuf {
    Path::new(kata_types::HOST_RUN_DIR).join("uids")
}

/// How the driver runs QEMU; the same for all VMs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuConfig {
    /// The binary, for specifications that name none (an empty path).
    pub binary: PathBuf,
    /// The accelerator that the configuration demands; without one it is probed for.
    pub accel: Option<Accel>,
    /// First and last uid for VMMs, one each, which is also the gid; none: QEMU runs as the caller's user.
    pub uid_range: Option<(u32, u32)>,
    /// QEMU's machine type; empty: the architecture's default.
    pub machine: String,
}

impl Default for QemuConfig {
    fn default() -> Self {
        QemuConfig {
            binary: PathBuf::from(format!("/usr/bin/qemu-system-{}", std::env::consts::ARCH)),
            accel: None,
            // Above the ranges that distributions hand out to people and, by default, to subordinate ids.
            uid_range: Some((400_000, 465_535)),
            machine: String::new(),
        }
    }
}

/// Why the driver cannot be used as configured.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum QemuError {
    /// The machine type is not known.
    #[error("the machine type {name:?} is not known; on {arch} there is: {known}")]
    Machine {
        /// What was configured.
        name: String,
        /// This architecture.
        arch: String,
        /// What there is.
        known: String,
    },
    /// The range of uids cannot be.
    #[error("the range of uids {first}-{last} is empty or holds root; give two numbers above 0, the smaller first")]
    UidRange {
        /// The first.
        first: u32,
        /// The last.
        last: u32,
    },
}

/// QEMU.
#[derive(Debug)]
pub struct Qemu {
    config: QemuConfig,
    machine: &'static Machine,
    caps: Caps,
}

impl Qemu {
    /// Checks the configuration and chooses the accelerator (which blocks for two seconds at most, once per boot of
    /// the host).
    ///
    /// # Errors
    /// [`QemuError`] names what cannot be and what can.
    pub fn new(config: QemuConfig) -> Result<Qemu, QemuError> {
        let arch = std::env::consts::ARCH;
        let machine = Machine::find(arch, &config.machine).ok_or_else(|| QemuError::Machine {
            name: config.machine.clone(),
            arch: arch.to_owned(),
            known: Machine::names(arch).join(", "),
        })?;
        if let Some((first, last)) = config.uid_range
            && (first == 0 || last < first || last == u32::MAX)
        {
            return Err(QemuError::UidRange { first, last });
        }
        let accel = kata_vmm::choose_accel(config.accel);
        let caps = caps(accel);
        Ok(Qemu { config, machine, caps })
    }

    fn accel(&self) -> Accel {
        self.caps.accel.accel
    }
}

fn caps(accel: AccelChoice) -> Caps {
    Caps {
        hotplug_fs: true,
        hotplug_block: true,
        hotplug_nic: true,
        hotplug_memory: true,
        hotplug_cpu: accel.accel == Accel::Kvm,
        snapshots: true,
        vsock: Path::new("/dev/vhost-vsock").exists(),
        accel,
    }
}

#[async_trait]
impl Vmm for Qemu {
    fn name(&self) -> &'static str {
        NAME
    }

    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn shape(&self, spec: &VmSpec) -> Result<Option<String>, LaunchError> {
        shape::shape(self, spec).map(Some)
    }

    async fn launch(&self, mut spec: VmSpec, deadline: Instant) -> Result<Box<dyn Vm>, LaunchError> {
        if spec.binary.as_os_str().is_empty() {
            spec.binary.clone_from(&self.config.binary);
        }
        Ok(Box::new(launch::launch(self, spec, deadline).await?))
    }
}

/// Cleans up a VM whose daemon crashed: kills its process if it still runs (one that meanwhile has its pid is left
/// alone) and gives its uid back. May be called again.
///
/// # Errors
/// `TimedOut` if the process does not end by the deadline; else a system call's.
pub fn cleanup(record: &VmRecord, deadline: Instant) -> io::Result<()> {
    kata_vmm::spawn::kill_recorded(record.pid, record.start_time, deadline)?;
    match record.uid {
        Some(uid) => uid::release(&uid_dir(), uid),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_that_cannot_be_is_named() {
        let forced = QemuConfig { accel: Some(Accel::Tcg), ..QemuConfig::default() };
        let qemu = Qemu::new(forced.clone()).unwrap();
        assert!(qemu.caps().accel.forced && !qemu.caps().hotplug_cpu);
        let e = Qemu::new(QemuConfig { machine: "isapc".to_owned(), ..forced.clone() }).unwrap_err();
        assert!(e.to_string().contains("isapc") && e.to_string().contains("there is: "), "{e}");
        for range in [(0, 10), (10, 9), (1, u32::MAX)] {
            assert!(Qemu::new(QemuConfig { uid_range: Some(range), ..forced.clone() }).is_err());
        }
    }
}
