//! `spec`: a config.json to start from.

use std::path::Path;

use serde_json::json;

use crate::error::{CliError, io};

/// `spec`.
pub fn spec(bundle: &Path, rootless: bool) -> Result<u8, CliError> {
    if rootless {
        return Err(CliError::Usage("spec --rootless: rootless use is not there yet".into()));
    }
    let path = bundle.join("config.json");
    if path.exists() {
        return Err(CliError::Usage(format!("{} exists; remove it first", path.display())));
    }
    let text = serde_json::to_string_pretty(&template()).map_err(|e| io("encode", &path)(e.into()))?;
    std::fs::write(&path, text + "\n").map_err(io("write", &path))?;
    Ok(0)
}

/// A shell in `rootfs`, with what docker would give it.
fn template() -> serde_json::Value {
    let caps = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let namespaces = ["pid", "network", "ipc", "uts", "mount", "cgroup"].map(|kind| json!({ "type": kind }));
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": source, "options": options });
    json!({
        "ociVersion": kata_oci::OCI_VERSION,
        "process": {
            "terminal": true,
            "user": { "uid": 0, "gid": 0 },
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": { "bounding": caps, "effective": caps, "permitted": caps, "inheritable": [], "ambient": [] },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "kata",
        "mounts": [
            mount("/proc", "proc", "proc", &[]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        ],
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": namespaces,
            "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                            "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_template_is_a_spec_that_we_take() {
        let dir = std::env::temp_dir().join(format!("kata-spec-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        super::spec(&dir, false).unwrap();
        let spec = kata_oci::load_spec(&dir).unwrap();
        assert_eq!(spec.process.unwrap().args, ["sh"]);
        assert!(super::spec(&dir, false).is_err(), "it overwrites nothing");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
