//! containerd, driven by ctr.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::{CgroupParent, Daemon, Release, unmount_below};
use crate::cmd::Cmd;
use crate::image;
use crate::runtime::scratch;

/// What containerd calls our shim.
pub const RUNTIME: &str = "io.containerd.kata.v2";

/// A containerd with the busybox image in it.
pub struct Containerd {
    // Dropped in this order: the daemon ends before its files go.
    daemon: Option<Daemon>,
    _parent: CgroupParent,
    dir: TempDir,
    namespace: String,
    release: Release,
}

impl Containerd {
    /// Starts one and loads the image.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start() -> Containerd {
        Containerd::of(Release::Distribution)
    }

    /// The same of another release.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn of(release: Release) -> Containerd {
        let dir = scratch();
        // ctr puts containers below a cgroup of the namespace's name.
        let namespace = format!("kata-test-{}", std::process::id());
        let mut this = Containerd { daemon: None, _parent: CgroupParent(namespace.clone()), dir, namespace, release };
        this.daemon = Some(this.launch());
        this.ctr(["images", "import"]).arg(image::busybox()).ok();
        this
    }

    fn launch(&self) -> Daemon {
        let at = |name: &str| self.dir.path().join(name).display().to_string();
        // Each release has its own name for the plugin, and does not mind the other.
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.cri.v1.runtime\", \"io.containerd.cri.v1.images\"]\n\
             [grpc]\n  address = {:?}\n[debug]\n  level = \"debug\"\n",
            at("root"),
            at("state"),
            at("c.sock"),
        );
        let file = self.dir.path().join("config.toml");
        fs::write(&file, config).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let mut command = Command::new(self.release.program("usr/bin/containerd"));
        command.arg("--config").arg(&file).env("PATH", self.release.path());
        let mut daemon = Daemon::start("containerd", command, self.dir.path().join("log"));
        daemon
            .ready(|| self.ctr(["version"]).deadline(Duration::from_secs(5)).run().status.is_some_and(|s| s.success()));
        daemon
    }

    /// Ends the daemon and starts it again: its containers go on.
    ///
    /// # Panics
    /// When it does not come up again.
    pub fn restart(&mut self) {
        drop(self.daemon.take());
        self.daemon = Some(self.launch());
    }

    /// A command of ctr.
    pub fn ctr<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Cmd {
        let socket = self.dir.path().join("c.sock");
        Cmd::new(self.release.program("usr/bin/ctr"))
            .arg("--address")
            .arg(socket)
            .arg("--namespace")
            .arg(&self.namespace)
            .args(args)
    }

    /// `ctr run` of our runtime, up to the flags; then come the image's name, the container's, and its command.
    pub fn run<S: AsRef<OsStr>>(&self, flags: impl IntoIterator<Item = S>) -> Cmd {
        self.ctr(["run", "--runtime", RUNTIME]).args(flags)
    }

    /// A place for the test's own files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The containerd namespace of everything in it.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Where it keeps bundles of running tasks: empty when there are none.
    pub fn bundles(&self) -> PathBuf {
        self.dir.path().join("state/io.containerd.runtime.v2.task").join(&self.namespace)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.daemon.as_ref().map(Daemon::log).unwrap_or_default()
    }

    /// Fails the test if it still has containers, tasks, or directories of tasks.
    ///
    /// # Panics
    /// Then.
    pub fn holds_nothing(&self) {
        for what in ["containers", "tasks"] {
            let out = self.ctr([what, "list", "-q"]).ok();
            assert_eq!(out.out(), "", "{what} are left: {}", out.report());
        }
        let bundles = || -> Vec<PathBuf> {
            fs::read_dir(self.bundles()).into_iter().flatten().flatten().map(|e| e.path()).collect()
        };
        // That of a shim that was killed it removes in its own time.
        let start = std::time::Instant::now();
        while !bundles().is_empty() && start.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(50));
        }
        let left = bundles();
        assert!(left.is_empty(), "bundles are left: {left:?}");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let state = self.dir.path().join("state");
        let mounted: Vec<&str> =
            mounts.lines().filter(|l| l.split(' ').nth(4).is_some_and(|p| Path::new(p).starts_with(&state))).collect();
        assert!(mounted.is_empty(), "mounts are left: {mounted:?}");
    }

    fn force_everything_away(&self) {
        let tasks = self.ctr(["tasks", "list", "-q"]).run().out();
        for id in tasks.lines() {
            self.ctr(["tasks", "delete", "--force", id]).run();
        }
        for id in self.ctr(["containers", "list", "-q"]).run().out().lines() {
            self.ctr(["containers", "delete", id]).run();
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() && self.daemon.is_some() {
            self.force_everything_away();
        }
        drop(self.daemon.take());
        unmount_below(self.dir.path());
    }
}
