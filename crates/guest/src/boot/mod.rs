//! From the kernel's hand-over to a guest in which containers can be made. Runs before the runtime, on one thread; every
//! step costs boot time, so there are few.
//!
//! ```text
//! modules ── switch_root to a tmpfs ── /proc /sys /dev ... ── cgroup2 ── limits, lo, host name
//! ```

mod cgroups;
mod kernel;
mod modules;
mod mounts;
mod root;

use std::fs;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use thiserror::Error;

use crate::hotplug;
use crate::logger;
use crate::params::Params;

/// Open files of the agent, and of containers whose spec says nothing: the kernel's `fs.nr_open`.
const OPEN_FILES: u64 = 1 << 20;

/// A step without which no container can run. The machine stops, with this on its console.
#[derive(Debug, Error)]
#[error("guest set-up failed: {step} ({path})")]
pub struct BootError {
    /// What was done.
    step: &'static str,
    /// To what.
    path: PathBuf,
    source: std::io::Error,
}

impl BootError {
    fn new(step: &'static str, path: impl Into<PathBuf>, source: impl Into<std::io::Error>) -> Self {
        BootError { step, path: path.into(), source: source.into() }
    }
}

/// Whether this process is in a pid namespace that somebody made: then its pid 1 is no machine's init. A machine's init
/// starts without /proc.
pub fn in_pid_namespace() -> bool {
    // PROC_PID_INIT_INO (linux/proc_ns.h): the number of the first one.
    const FIRST: u64 = 0xefff_fffc;
    fs::metadata("/proc/self/ns/pid").is_ok_and(|m| m.ino() != FIRST)
}

/// Sets the machine up. Only as PID 1 of a machine of its own.
///
/// # Errors
/// [`BootError`].
pub fn machine() -> Result<Params, BootError> {
    // The initrd's node: also before /dev is mounted there is somebody to tell.
    let console = fs::File::options().write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open("/dev/console");
    logger::init(log::LevelFilter::Info, console.ok());
    modules::load_all();
    root::switch()?;
    mounts::mount_all()?;
    let cmdline = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let params = Params::parse(&cmdline);
    logger::init(params.log, None);
    for warning in &params.warnings {
        log::warn!("{warning}");
    }
    cgroups::enable_controllers();
    raise_limits();
    let_it_rest();
    if let Err(e) = kata_sys::guest::link_up("lo") {
        log::warn!("the loopback interface stays down: {e}");
    }
    if let Err(e) = rustix::system::sethostname(b"localhost") {
        log::warn!("the guest has no host name: {e}");
    }
    hotplug::auto_online_memory();
    if params.check_kernel {
        kernel::check();
    }
    Ok(params)
}

/// What the kernel does several times a second in a guest that does nothing, for what a guest does not need
/// (proc_sys_vm(5)): looking whether free memory should be made contiguous, and summing up counters.
fn let_it_rest() {
    for (name, value) in [("compaction_proactiveness", "0"), ("stat_interval", "10")] {
        let path = format!("/proc/sys/vm/{name}");
        if let Err(e) = fs::write(&path, value) {
            log::debug!("{path} stays as it is: {e}");
        }
    }
}

/// What containers inherit unless their spec says otherwise. The number of processes is limited by cgroups, not by the
/// kernel's guess from the memory that the machine booted with.
fn raise_limits() {
    let limits = [
        (Resource::RLIMIT_NOFILE, OPEN_FILES),
        (Resource::RLIMIT_NPROC, RLIM_INFINITY),
        (Resource::RLIMIT_SIGPENDING, RLIM_INFINITY),
    ];
    for (limit, value) in limits {
        if let Err(e) = setrlimit(limit, value, value) {
            log::warn!("{limit:?} stays as it is: {e}");
        }
    }
}
