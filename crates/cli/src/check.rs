//! `check`: what this host has and lacks, and what follows from it. Exit code 0 when containers can run.

use std::path::Path;
use std::process::Command;

use kata_vmm::{Accel, choose_accel};

use crate::env;
use crate::error::CliError;

enum Verdict {
    /// There.
    Yes,
    /// Not there; something else does its work.
    Without,
    /// Containers cannot run.
    Fatal,
}

struct Line {
    what: &'static str,
    verdict: Verdict,
    says: String,
}

/// `check`.
pub fn check(file: Option<&Path>, verbose: bool) -> Result<u8, CliError> {
    let loaded = env::load(file)?;
    let q = &loaded.config.hypervisor.qemu;
    let mut lines = Vec::new();
    let choice = choose_accel(kata_factory::forced_accel(&loaded.config));
    lines.push(match choice.accel {
        Accel::Kvm => line("accelerator", Verdict::Yes, format!("kvm: {}", choice.reason)),
        Accel::Tcg => line("accelerator", Verdict::Without, format!("tcg, software emulation: {}", choice.reason)),
    });
    lines.push(device("vsock", "/dev/vhost-vsock", "the agent is reached over virtio-serial, through the proxy"));
    lines.push(device("vhost-net", "/dev/vhost-net", "the VMM carries network packets itself"));
    lines.push(cgroups());
    lines.push(version_of("VMM", &q.path));
    lines.push(file_of("guest kernel", &q.kernel, "cargo xtask kernel, or hypervisor.qemu.kernel"));
    lines.push(file_of("guest initrd", &q.initrd, "cargo xtask image, or hypervisor.qemu.initrd"));
    lines.push(filesystem("overlay"));
    lines.push(if nix::unistd::geteuid().is_root() {
        line("privilege", Verdict::Yes, "root".into())
    } else {
        line("privilege", Verdict::Fatal, "not root; containers are started by root".into())
    });
    lines.push(resource_limit());
    let fatal = lines.iter().filter(|l| matches!(l.verdict, Verdict::Fatal)).count();
    for l in &lines {
        let mark = match l.verdict {
            Verdict::Yes => "ok  ",
            Verdict::Without => "note",
            Verdict::Fatal => "FAIL",
        };
        println!("{mark}  {:14} {}", l.what, l.says);
    }
    if verbose {
        println!(
            "      {:14} {}",
            "versions",
            format_args!("kata-runtime {}, kernel {}", env!("CARGO_PKG_VERSION"), kernel())
        );
        for f in &loaded.files {
            println!("      {:14} {}", "configuration", f.display());
        }
    }
    println!("{}", if fatal == 0 { "Containers can run here." } else { "Containers cannot run here: see FAIL." });
    Ok(u8::from(fatal > 0))
}

fn line(what: &'static str, verdict: Verdict, says: String) -> Line {
    Line { what, verdict, says }
}

fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

fn device(what: &'static str, path: &str, instead: &str) -> Line {
    match std::fs::File::open(path) {
        Ok(_) => line(what, Verdict::Yes, path.into()),
        Err(e) => line(what, Verdict::Without, format!("{path}: {e}; {instead}")),
    }
}

fn cgroups() -> Line {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let has = |kind: &str| mounts.lines().any(|l| l.contains(&format!(" - {kind} ")));
    match (has("cgroup"), has("cgroup2")) {
        (true, true) => line("cgroups", Verdict::Yes, "v1 and v2 (hybrid)".into()),
        (true, false) => line("cgroups", Verdict::Yes, "v1".into()),
        (false, true) => line("cgroups", Verdict::Yes, "v2".into()),
        (false, false) => {
            line("cgroups", Verdict::Without, "none mounted; the host cannot account for sandboxes".into())
        }
    }
}

fn version_of(what: &'static str, path: &Path) -> Line {
    match Command::new(path).arg("--version").output() {
        Ok(out) if out.status.success() => {
            let text = String::from_utf8_lossy(&out.stdout).lines().next().unwrap_or_default().to_owned();
            line(what, Verdict::Yes, format!("{}: {text}", path.display()))
        }
        Ok(out) => line(what, Verdict::Fatal, format!("{} --version failed: {}", path.display(), out.status)),
        Err(e) => {
            let what_to_do = "install Debian's qemu-system-x86 or qemu-system-arm, or set hypervisor.qemu.path";
            line(what, Verdict::Fatal, format!("{}: {e}; {what_to_do}", path.display()))
        }
    }
}

fn file_of(what: &'static str, path: &Path, hint: &str) -> Line {
    match std::fs::metadata(path) {
        Ok(m) => line(what, Verdict::Yes, format!("{} ({} KiB)", path.display(), m.len() / 1024)),
        Err(e) => line(what, Verdict::Fatal, format!("{}: {e}; {hint}", path.display())),
    }
}

fn filesystem(name: &'static str) -> Line {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|l| l.ends_with(&format!("\t{name}"))) {
        line("overlay", Verdict::Yes, "the kernel has it".into())
    } else {
        line("overlay", Verdict::Without, "not in the kernel (now); image layers need it or another snapshotter".into())
    }
}

/// CAP_SYS_RESOURCE is bit 24 (capabilities(7)).
fn resource_limit() -> Line {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let caps =
        status.lines().find_map(|l| l.strip_prefix("CapEff:")).and_then(|t| u64::from_str_radix(t.trim(), 16).ok());
    if caps.is_some_and(|c| c & (1 << 24) != 0) {
        line("limits", Verdict::Yes, "hard limits can be raised".into())
    } else {
        line(
            "limits",
            Verdict::Without,
            "no CAP_SYS_RESOURCE: host processes keep their limits; the guest's are free".into(),
        )
    }
}
