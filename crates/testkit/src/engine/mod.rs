//! Real engines from the distribution's packages, each in directories of its own, and gone with its driver.

mod common;
mod containerd;
mod docker;
mod network;
mod podman;
mod release;

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub use common::{Engine, HOST_PROGRAMS};
pub use containerd::{Containerd, RUNTIME as CONTAINERD_RUNTIME};
pub use docker::Docker;
pub use network::HostNetwork;
pub use podman::Podman;
pub use release::Release;

use crate::runtime::stage;

/// How long an engine may take to answer after its start.
const READY: Duration = Duration::from_secs(30);
/// How long what a container was in may be in use after its engine has ended.
const LEAVES: Duration = Duration::from_secs(3);
/// How long it may take to end before it is killed.
const STOPS: Duration = Duration::from_secs(15);

/// A PATH in which an engine finds the installation under test first.
pub fn path() -> String {
    format!("{}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", stage().display())
}

/// A daemon in the background. Told to end on drop, and killed if it does not.
pub struct Daemon {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts it; both its outputs go to the end of the file `log`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(name: &'static str, mut command: Command, log: PathBuf) -> Daemon {
        let file =
            File::options().create(true).append(true).open(&log).unwrap_or_else(|e| panic!("{}: {e}", log.display()));
        let twin = file.try_clone().unwrap_or_else(|e| panic!("{}: {e}", log.display()));
        let child = command.process_group(0).stdin(Stdio::null()).stdout(file).stderr(twin).spawn();
        Daemon { name, child: child.unwrap_or_else(|e| panic!("cannot start {name}: {e}")), log }
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it answers.
    ///
    /// # Panics
    /// When it does not in time, or ends.
    pub fn ready(&mut self, mut answers: impl FnMut() -> bool) {
        let start = Instant::now();
        while !answers() {
            let ended = self.child.try_wait().ok().flatten();
            assert!(ended.is_none(), "{} has ended ({ended:?}); its log: {}", self.name, self.log());
            assert!(start.elapsed() < READY, "{} does not answer; its log: {}", self.name, self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Kills it, as a crash would end it.
    pub fn kill(mut self) {
        // Gone already is as good.
        drop(self.child.kill());
        drop(self.child.wait());
    }

    fn signal(&self, signal: Signal) {
        // Gone already is as good.
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), signal);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::SIGTERM);
        }
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if start.elapsed() > STOPS {
                println!("{} does not end and is killed; its log: {}", self.name, self.log());
                drop(self.child.kill());
                drop(self.child.wait());
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if std::thread::panicking() {
            let log = self.log();
            let start = log.len().saturating_sub(6000);
            // From the start of a line, which is the start of a character too.
            let tail = log[..].char_indices().find(|(at, c)| *at >= start && *c == '\n').map_or(0, |(at, _)| at);
            println!("the end of the log of {}:{}", self.name, &log[tail..]);
        }
    }
}

/// Unmounts everything below an engine's directory that it left mounted. Engines keep some of their mounts for their
/// next start; there is none.
pub fn unmount_below(dir: &Path) {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points: Vec<&Path> = text.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new).collect();
    for point in points.iter().rev().filter(|point| point.starts_with(dir)) {
        if let Err(e) = umount2(*point, MntFlags::MNT_DETACH) {
            println!("cannot unmount {}: {e}", point.display());
        }
    }
}

/// A cgroup, in every hierarchy, below which an engine puts those of its containers. Made before the leak checker
/// looks for the first time, and removed at the end if it is empty: an engine leaves it behind with any runtime.
pub struct CgroupParent(pub String);

impl CgroupParent {
    /// It in every hierarchy.
    pub fn dirs(&self) -> Vec<PathBuf> {
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mounts = text.lines().filter(|line| line.contains(" - cgroup"));
        mounts.filter_map(|line| line.split(' ').nth(4)).map(|point| Path::new(point).join(&self.0)).collect()
    }
}

impl Drop for CgroupParent {
    fn drop(&mut self) {
        for dir in self.dirs() {
            // One that is not empty is a leak, and found as such. podman leaves its conmons' own cgroup behind; of pods it
            // removes those in hierarchies with a controller, and the others stay, with any runtime, empty.
            let remove = || {
                for inner in fs::read_dir(&dir).into_iter().flatten().flatten() {
                    drop(fs::remove_dir(inner.path()));
                }
                fs::remove_dir(&dir)
            };
            // A conmon leaves its cgroup, and a sandbox's daemon too, at its very end, when podman has long answered.
            let start = Instant::now();
            while dir.exists() && remove().is_err() && start.elapsed() < LEAVES {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}
