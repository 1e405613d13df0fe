//! What two VMs must have in common for one to begin where the other was saved.

use std::fs;

use kata_vmm::{Accel, LaunchError, VmSpec, content_digest};
use sha2::{Digest, Sha256};

use crate::{Qemu, command};

/// Raised when what is saved changes in a way that nothing below tells.
const FORMAT: &str = "1";

/// The shape of the VM of `spec`.
pub(crate) fn shape(qemu: &Qemu, spec: &VmSpec) -> Result<String, LaunchError> {
    let named = if spec.binary.as_os_str().is_empty() { &qemu.config.binary } else { &spec.binary };
    let binary = fs::canonicalize(named).unwrap_or_else(|_| named.clone());
    let firmware = command::firmware(&binary, qemu.machine);
    let mut hash = Sha256::new();
    hash.update(format!("{FORMAT}\n{}\n", env!("CARGO_PKG_VERSION")));
    hash.update(command::shape_text(spec, qemu.machine, qemu.accel(), firmware));
    let mut files = vec![
        ("the QEMU binary", binary.clone()),
        ("the guest kernel", spec.boot.kernel.clone()),
        ("the guest image", spec.boot.initrd.clone()),
    ];
    files.extend(firmware.and_then(|name| command::firmware_file(&binary, name)).map(|file| ("the firmware", file)));
    for (what, path) in files {
        let digest = content_digest(&path).map_err(|e| LaunchError::Input {
            what,
            path: path.clone(),
            reason: e.to_string(),
            hint: "it must be readable to be started".to_owned(),
        })?;
        hash.update(format!("\n{what} {digest}"));
    }
    if qemu.accel() == Accel::Kvm {
        // Its CPU is the host's.
        hash.update(format!("\n{}\n{}", host_cpu(), kernel_release()));
    }
    Ok(hex::encode(hash.finalize()))
}

/// Model and features of the first CPU.
fn host_cpu() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let first = info.split("\n\n").next().unwrap_or_default();
    let tells = |line: &&str| {
        ["model", "flags", "Features", "CPU ", "vendor", "stepping", "microcode"]
            .iter()
            .any(|key| line.starts_with(key))
    };
    first.lines().filter(tells).collect::<Vec<_>>().join("\n")
}

/// KVM is part of the host's kernel.
fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default()
}
