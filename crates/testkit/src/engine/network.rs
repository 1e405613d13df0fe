//! A network namespace that is an engine's host network: bridges, firewall rules and ports of its tests are in there, and
//! go with it.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;

use nix::sched::{CloneFlags, setns, unshare};

use crate::cmd::Cmd;

/// The namespace; it goes with this and the processes in it.
pub struct HostNetwork(File);

impl HostNetwork {
    /// A new one, with its loopback switched on.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new() -> HostNetwork {
        let made = std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET)?;
                File::open("/proc/thread-self/ns/net")
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        let this = HostNetwork(made.unwrap_or_else(|e| panic!("a network namespace: {e}")));
        this.run("ip", ["link", "set", "lo", "up"]).ok();
        this
    }

    fn flag(&self) -> String {
        format!("--net=/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// A command in it.
    pub fn run<S: AsRef<OsStr>>(&self, program: impl AsRef<OsStr>, args: impl IntoIterator<Item = S>) -> Cmd {
        Cmd::new("/usr/bin/nsenter").arg(self.flag()).arg(program).args(args)
    }

    /// Calls this on a thread that is in it, as are the threads that it starts.
    ///
    /// # Panics
    /// When it cannot be entered.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap_or_else(|e| panic!("the network namespace: {e}"));
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A daemon's command in it.
    pub(super) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("/usr/bin/nsenter");
        command.arg(self.flag()).arg(program);
        command
    }
}

impl Default for HostNetwork {
    fn default() -> Self {
        HostNetwork::new()
    }
}
