//! What a fresh machine lacks: Debian packages and Rust targets. Nothing is touched where all is there.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::{paths, run};

/// To build the host program and to run a VM.
pub const BUILD: &[&str] = &["gcc", "libc6-dev", "libcap-ng-dev", "libseccomp-dev", "pkg-config"];
/// To run a VM.
pub const RUN: &[&str] = &["qemu-system-x86"];
/// For the demo's bundle.
pub const DEMO: &[&str] = &["busybox-static"];
/// To build the tuned kernel.
pub const KERNEL: &[&str] = &[
    "make",
    "gcc",
    "flex",
    "bison",
    "bc",
    "libelf-dev",
    "libssl-dev",
    "linux-source-6.12",
    "xz-utils",
    "python3-minimal",
];
/// To build the minimal QEMU. Besides these it takes Meson, of a release of its own.
pub const QEMU: &[&str] = &[
    "binutils",
    "dpkg-dev",
    "gcc",
    "libc6-dev",
    "libfdt-dev",
    "libglib2.0-dev",
    "libpixman-1-dev",
    "libseccomp-dev",
    "make",
    "ninja-build",
    "pkg-config",
    "python3-venv",
    "xz-utils",
    "zlib1g-dev",
];
/// Those of them whose code ends up inside the binary, the compiler's own included.
pub const QEMU_LINKED: &[&str] = &[
    "gcc",
    "libc6-dev",
    "libfdt-dev",
    "libglib2.0-dev",
    "libpcre2-dev",
    "libpixman-1-dev",
    "libseccomp-dev",
    "zlib1g-dev",
];
/// What checks licences, sources and advisories of dependencies.
pub const LICENCE_CHECK: (&str, &str) = ("cargo-deny", "0.20.2");
/// A vsock device in a program of its own: the agent's vsock is tested with it where the host's kernel has none.
pub const VSOCK_DEVICE: (&str, &str) = ("vhost-device-vsock", "0.3.0");
/// The engines and tools of the whole-system tests.
pub const TEST: &[&str] = &[
    "busybox-static",
    "catatonit",
    "conmon",
    "containerd",
    "containernetworking-plugins",
    "crun",
    "debootstrap",
    "docker.io",
    "iperf3",
    "iptables",
    "iproute2",
    "jq",
    "netavark",
    "podman",
    "runc",
    "util-linux",
];

/// Installs the Debian packages among `packages` that are missing.
///
/// # Errors
/// Not Debian (names the packages), no root and no sudo, or apt's failure.
pub fn ensure(packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|p| !installed(p)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !run::succeeds("apt-get", &["--version"]) {
        bail!(
            "this is not a Debian system (no apt-get); please install what these Debian packages hold: {}",
            missing.join(" ")
        );
    }
    eprintln!("    installing Debian packages: {}", missing.join(" "));
    if lists_are_old() {
        apt(&["update"])?;
    }
    let mut install = vec!["install", "-y", "-q", "--no-install-recommends"];
    install.extend(&missing);
    if apt(&install).is_err() {
        eprintln!("    that failed; once more with fresh package lists");
        apt(&["update"])?;
        apt(&install).context("the packages could not be installed; install them by hand and run this again")?;
    }
    Ok(())
}

fn installed(package: &str) -> bool {
    run::cmd("dpkg-query", ["-W", "-f", "${db:Status-Abbrev}", package])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|out| out.status.success() && out.stdout.starts_with(b"ii"))
}

/// Package lists that are absent or more than a week old.
fn lists_are_old() -> bool {
    let Ok(entries) = std::fs::read_dir("/var/lib/apt/lists") else { return true };
    let newest = entries
        .flatten()
        .filter(|e| {
            e.file_name().to_string_lossy().ends_with("Packages")
                || e.file_name().to_string_lossy().contains("Packages.")
        })
        .filter_map(|e| e.metadata().and_then(|m| m.modified()).ok())
        .max();
    let week = Duration::from_secs(7 * 24 * 3600);
    newest.is_none_or(|t| SystemTime::now().duration_since(t).is_ok_and(|age| age > week))
}

/// A program from crates.io that tests need and Debian does not have: its path, in the cache.
///
/// # Errors
/// A build that fails, or a cache that cannot be written.
pub fn program(name: &str, version: &str) -> Result<PathBuf> {
    let tools = paths::cache_dir().join("tools");
    let dir = tools.join(format!("{name}-{version}"));
    let done = dir.join("bin").join(name);
    if done.exists() {
        return Ok(done);
    }
    std::fs::create_dir_all(&tools).with_context(|| format!("cannot make {}", tools.display()))?;
    // Renamed when it is complete; of two runs at once the second finds the first one's.
    let new = tools.join(format!(".{name}-{version}.{}", std::process::id()));
    let mut install = run::cargo(["install", "--quiet", "--locked", name, "--version", version, "--root"]);
    let built =
        run::check(install.arg(&new).stdout(std::io::stderr())).and_then(|()| match std::fs::rename(&new, &dir) {
            Err(err) if !done.exists() => Err(err).with_context(|| format!("cannot keep {}", dir.display())),
            _ => Ok(()),
        });
    crate::kernel::remove_tree(&new)?;
    built.map(|()| done)
}

/// Fetches the package lists anew.
///
/// # Errors
/// No root and no sudo, or apt's failure.
pub fn update_lists() -> Result<()> {
    apt(&["update"])
}

fn apt(args: &[&str]) -> Result<()> {
    let env = "DEBIAN_FRONTEND=noninteractive";
    let mut command = if am_root() {
        run::cmd("env", [env, "apt-get"])
    } else if run::succeeds("sudo", &["--version"]) {
        run::cmd("sudo", ["env", env, "apt-get"])
    } else {
        bail!("installing packages takes root, and there is no sudo; run as root: apt-get {}", args.join(" "));
    };
    // apt's progress goes to stderr, so that stdout stays a chore's result.
    // Somebody else's apt is waited for.
    command.args(["-o", "DPkg::Lock::Timeout=300"]).args(args).stdin(Stdio::null()).stdout(std::io::stderr());
    run::check(&mut command)
}

/// Whether we are root.
pub fn am_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// How the guest's programs are built: the target and what rustc must be told.
pub struct GuestTarget {
    /// The target triple.
    pub triple: &'static str,
    /// Flags for rustc, so that the program is static.
    pub rustflags: &'static str,
}

/// At a fixed address: QEMU without KVM translates code anew for every address that it runs at, and the agent's helpers
/// run for every container and process (docs/decisions/0006).
const FIXED: &str = "-C relocation-model=static";
const FIXED_CRT_STATIC: &str = "-C relocation-model=static -C target-feature=+crt-static";

/// musl where rustup has or gets it; else glibc, linked statically.
pub fn guest_target() -> GuestTarget {
    let musl = match std::env::consts::ARCH {
        "aarch64" => "aarch64-unknown-linux-musl",
        _ => "x86_64-unknown-linux-musl",
    };
    if target_is_installed(musl) || (run::succeeds("rustup", &["target", "add", musl]) && target_is_installed(musl)) {
        return GuestTarget { triple: musl, rustflags: FIXED };
    }
    eprintln!("    the Rust target {musl} cannot be had; the agent is linked statically with glibc instead");
    let gnu = match std::env::consts::ARCH {
        "aarch64" => "aarch64-unknown-linux-gnu",
        _ => "x86_64-unknown-linux-gnu",
    };
    GuestTarget { triple: gnu, rustflags: FIXED_CRT_STATIC }
}

fn target_is_installed(target: &str) -> bool {
    run::output(run::cmd("rustc", ["--print", "target-libdir", "--target", target]).stderr(Stdio::null()))
        .is_ok_and(|dir| std::path::Path::new(dir.trim()).is_dir())
}
