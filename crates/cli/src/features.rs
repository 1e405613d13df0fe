//! `features`: what this runtime can do, in the specification's JSON (features.md, 1.1).

use serde_json::json;

use crate::error::CliError;

/// `features`.
pub fn features() -> Result<u8, CliError> {
    let options = vec![
        "async",
        "atime",
        "bind",
        "defaults",
        "dev",
        "diratime",
        "dirsync",
        "exec",
        "iversion",
        "lazytime",
        "mand",
        "noatime",
        "nodev",
        "nodiratime",
        "noexec",
        "noiversion",
        "nolazytime",
        "nomand",
        "norelatime",
        "nostrictatime",
        "nosuid",
        "private",
        "rbind",
        "relatime",
        "remount",
        "ro",
        "rprivate",
        "rshared",
        "rslave",
        "runbindable",
        "rw",
        "shared",
        "silent",
        "slave",
        "strictatime",
        "suid",
        "sync",
        "unbindable",
    ];
    let capabilities: Vec<String> = capability_names();
    println!(
        "{}",
        json!({
            "ociVersionMin": "1.0.0",
            "ociVersionMax": "1.2.0",
            "hooks": ["prestart", "createRuntime", "poststart", "poststop"],
            "mountOptions": &options,
            "linux": {
                "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
                "capabilities": capabilities,
                "cgroup": { "v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": false },
                "seccomp": { "enabled": false },
                "apparmor": { "enabled": false },
                "selinux": { "enabled": false },
                "intelRdt": { "enabled": false },
            },
            "annotations": { "io.katacontainers.version": env!("CARGO_PKG_VERSION") },
        })
    );
    Ok(0)
}

/// capabilities(7), in the kernel's order.
fn capability_names() -> Vec<String> {
    let names = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE \
        NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE \
        SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE \
        AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF \
        CHECKPOINT_RESTORE";
    names.split_whitespace().map(|n| format!("CAP_{n}")).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn all_41_capabilities() {
        assert_eq!(super::capability_names().len(), 41);
    }
}
