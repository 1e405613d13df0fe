//! Podman, which has no daemon: conmon watches each container.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use super::{CgroupParent, Engine, HostNetwork, path, unmount_below};
use crate::cmd::Cmd;
use crate::image;
use crate::oracle::{handler, is_kata};
use crate::runtime::{scratch, stage};

/// A podman with storage of its own, with the busybox image in it.
pub struct Podman {
    parent: CgroupParent,
    /// What `podman play kube` puts its pods below, whatever it is told.
    #[allow(dead_code, reason = "removed when it is dropped")]
    kube_parent: Option<CgroupParent>,
    /// What is the host's network to it; `None`: the host's.
    network: Option<HostNetwork>,
    dir: TempDir,
}

impl Podman {
    /// Makes the storage and loads the image.
    ///
    /// # Panics
    /// When it cannot.
    pub fn new() -> Podman {
        Podman::with(None)
    }

    /// One with networks: its bridges and ports are in a network of their own, not in the host's.
    ///
    /// # Panics
    /// When it cannot.
    pub fn networked() -> Podman {
        Podman::with(Some(HostNetwork::new()))
    }

    fn with(network: Option<HostNetwork>) -> Podman {
        let parent = CgroupParent(format!("kata-podman-{}", std::process::id()));
        let this = Podman { parent, kube_parent: None, network, dir: scratch() };
        // Its own default for open files is more than root may have where it lacks CAP_SYS_RESOURCE.
        let networks = this.file("networks");
        let config = format!(
            "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\ndefault_sysctls = []\n\
             [engine]\nevents_logger = \"file\"\ncgroup_manager = \"cgroupfs\"\n\
             [network]\nnetwork_backend = \"netavark\"\nnetwork_config_dir = {networks:?}\n"
        );
        for (name, text) in [("containers.conf", config.as_str()), ("registries.conf", "")] {
            let file = this.file(name);
            fs::write(&file, text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        }
        this.podman(["load", "--input"]).arg(image::busybox()).ok();
        this
    }

    /// The same, for pods out of files.
    ///
    /// # Panics
    /// When it cannot.
    pub fn with_kube_parent() -> Podman {
        let mut this = Podman::new();
        this.kube_parent = Some(CgroupParent("libpod_parent".to_owned()));
        this
    }

    /// A command of podman.
    pub fn podman<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Cmd {
        let podman = match &self.network {
            Some(network) => network.run("/usr/bin/podman", [""; 0]),
            None => Cmd::new("/usr/bin/podman"),
        };
        podman
            .env("PATH", path())
            .env("CONTAINERS_CONF", self.file("containers.conf"))
            .env("CONTAINERS_REGISTRIES_CONF", self.file("registries.conf"))
            .env("TMPDIR", self.dir.path())
            .arg("--root")
            .arg(self.file("root"))
            .arg("--runroot")
            .arg(self.file("run"))
            .arg("--tmpdir")
            .arg(self.file("tmp"))
            .arg("--runtime")
            .arg(if is_kata() { stage().join("bin/kata-runtime") } else { handler().into() })
            .args(args)
    }

    /// `podman run` without a network, with more flags; then come the image's name and the command.
    pub fn run<S: AsRef<OsStr>>(&self, flags: impl IntoIterator<Item = S>) -> Cmd {
        let parent = format!("--cgroup-parent=/{}", self.parent.0);
        self.podman(["run", "--network", "none", &parent]).args(flags)
    }

    /// A pod without a network beyond its loopback, with more flags.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn pod<S: AsRef<OsStr>>(&self, name: &str, flags: impl IntoIterator<Item = S>) {
        let parent = format!("--cgroup-parent=/{}", self.parent.0);
        self.podman(["pod", "create", "--network", "none", "--name", name, &parent]).args(flags).ok();
    }

    /// `podman run` in a pod, with more flags; then come the image's name and the command.
    pub fn run_in<S: AsRef<OsStr>>(&self, pod: &str, flags: impl IntoIterator<Item = S>) -> Cmd {
        self.podman(["run", "--pod", pod]).args(flags)
    }

    /// `podman run` in namespaces of another container, which the flags name; then come the image's name and the command.
    pub fn joined<S: AsRef<OsStr>>(&self, flags: impl IntoIterator<Item = S>) -> Cmd {
        let parent = format!("--cgroup-parent=/{}", self.parent.0);
        self.podman(["run", &parent]).args(flags)
    }

    /// `podman run` with more flags, in the default network if they name none.
    pub fn run_connected<S: AsRef<OsStr>>(&self, flags: impl IntoIterator<Item = S>) -> Cmd {
        let parent = format!("--cgroup-parent=/{}", self.parent.0);
        self.podman(["run", &parent]).args(flags)
    }

    /// A command where podman publishes ports.
    ///
    /// # Panics
    /// When this podman has no networks.
    pub fn on_host<S: AsRef<OsStr>>(&self, program: &str, args: impl IntoIterator<Item = S>) -> Cmd {
        self.host_network().run(program, args)
    }

    /// A place for the test's own files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Fails the test if it still has containers.
    ///
    /// # Panics
    /// Then.
    pub fn holds_nothing(&self) {
        let out = self.podman(["ps", "--all", "--quiet"]).ok();
        assert_eq!(out.out(), "", "containers are left: {}", out.report());
    }
}

impl Engine for Podman {
    fn command(&self, words: &[&str]) -> Cmd {
        self.podman(words)
    }

    fn run_connected(&self, flags: &[&str]) -> Cmd {
        self.run_connected(flags)
    }

    fn host_network(&self) -> &HostNetwork {
        self.network.as_ref().unwrap_or_else(|| panic!("this podman was made without networks"))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.file(name)
    }

    fn remove_all(&self, names: &[&str]) {
        self.podman(["rm", "--force", "--time", "0"]).args(names).ok();
        self.holds_nothing();
    }
}

impl Default for Podman {
    fn default() -> Self {
        Podman::new()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.podman(["rm", "--all", "--force", "--time", "0"]).run();
        }
        unmount_below(self.dir.path());
    }
}
