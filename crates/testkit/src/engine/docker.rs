//! dockerd, driven by docker.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::{CgroupParent, Daemon, Engine, HostNetwork, Release, unmount_below};
use crate::cmd::Cmd;
use crate::image;
use crate::oracle::handler;
use crate::runtime::{scratch, stage};
use crate::wait;

/// How long a sandbox that docker has deleted may still be going.
const GONE_WITHIN: Duration = Duration::from_secs(3);

/// A dockerd, with a containerd of its own, with our runtime as "kata" and the busybox image in it.
pub struct Docker {
    daemon: Option<Daemon>,
    parent: CgroupParent,
    dir: TempDir,
    release: Release,
    /// What is the host's network to it; `None`: it has no networks.
    network: Option<HostNetwork>,
}

impl Docker {
    /// Starts one and loads the image.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start() -> Docker {
        Docker::of(Release::Distribution)
    }

    /// The same of another release. A newer one runs our shim itself, by its containerd name; an older one only knows OCI
    /// command lines.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn of(release: Release) -> Docker {
        Docker::with(release, None)
    }

    /// One with networks: its bridges and ports are in a network of their own, not in the host's.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn networked(release: Release) -> Docker {
        Docker::with(release, Some(HostNetwork::new()))
    }

    fn with(release: Release, network: Option<HostNetwork>) -> Docker {
        let parent = CgroupParent(format!("kata-docker-{}", std::process::id()));
        let mut this = Docker { daemon: None, parent, dir: scratch(), release, network };
        let at = |name: &str| this.dir.path().join(name);
        let program = release.program("usr/sbin/dockerd");
        let mut command = match &this.network {
            Some(network) => network.command(program),
            None => Command::new(program),
        };
        command.env("PATH", release.path()).env("HOME", this.dir.path());
        command.arg("--data-root").arg(at("data")).arg("--exec-root").arg(at("exec")).arg("--pidfile").arg(at("pid"));
        command.arg("--host").arg(this.host()).arg("--config-file").arg(at("daemon.json"));
        command.arg("--cgroup-parent").arg(format!("/{}", this.parent.0));
        if this.network.is_none() {
            // Nothing of the host's is touched.
            let none =
                ["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"];
            command.args(none);
        }
        let kata = match release {
            Release::Distribution => serde_json::json!({ "path": stage().join("bin/kata-runtime") }),
            Release::Newer => serde_json::json!({ "runtimeType": super::containerd::RUNTIME }),
        };
        let config = serde_json::json!({ "runtimes": { "kata": kata } }).to_string();
        std::fs::write(at("daemon.json"), config).unwrap_or_else(|e| panic!("{}: {e}", at("daemon.json").display()));
        let mut daemon = Daemon::start("dockerd", command, at("log"));
        daemon.ready(|| {
            this.docker(["version"]).deadline(Duration::from_secs(5)).run().status.is_some_and(|s| s.success())
        });
        this.daemon = Some(daemon);
        this.docker(["load", "--input"]).arg(image::busybox()).ok();
        this
    }

    fn host(&self) -> String {
        format!("unix://{}", self.dir.path().join("d.sock").display())
    }

    /// A command of docker.
    pub fn docker<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Cmd {
        let config = self.dir.path().join("client");
        Cmd::new(self.release.program("usr/bin/docker"))
            .env("DOCKER_CONFIG", config)
            .arg("--host")
            .arg(self.host())
            .args(args)
    }

    /// `docker run` of the runtime under test without a network, with more flags; then come the image's name and the command.
    pub fn run<S: AsRef<OsStr>>(&self, flags: impl IntoIterator<Item = S>) -> Cmd {
        self.run_with(&handler(), flags)
    }

    /// The same with another runtime, to see what this docker does with it.
    pub fn run_with<S: AsRef<OsStr>>(&self, runtime: &str, flags: impl IntoIterator<Item = S>) -> Cmd {
        self.docker(["run", "--runtime", runtime, "--network", "none"]).args(flags)
    }

    /// `docker run` of the runtime under test with more flags, in the default network if they name none.
    pub fn run_connected<S: AsRef<OsStr>>(&self, flags: impl IntoIterator<Item = S>) -> Cmd {
        self.docker(["run", "--runtime", &handler()]).args(flags)
    }

    /// A command of docker's compose plugin, which is of the newer release, about the project in `file`.
    ///
    /// # Panics
    /// When it cannot be made known to this docker.
    pub fn compose<S: AsRef<OsStr>>(&self, file: &Path, args: impl IntoIterator<Item = S>) -> Cmd {
        let client = self.dir.path().join("client");
        let config = client.join("config.json");
        let plugins = Release::Newer.program("usr/libexec/docker/cli-plugins");
        let text = serde_json::json!({ "cliPluginsExtraDirs": [plugins] }).to_string();
        let written = std::fs::create_dir_all(&client).and_then(|()| std::fs::write(&config, text));
        written.unwrap_or_else(|e| panic!("{}: {e}", config.display()));
        self.docker(["compose", "--file"]).arg(file).args(args)
    }

    /// A command where docker publishes ports.
    ///
    /// # Panics
    /// When this docker has no networks.
    pub fn on_host<S: AsRef<OsStr>>(&self, program: &str, args: impl IntoIterator<Item = S>) -> Cmd {
        self.host_network().run(program, args)
    }

    /// A place for the test's own files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.daemon.as_ref().map(Daemon::log).unwrap_or_default()
    }

    /// A value of `docker inspect`.
    pub fn inspect(&self, id: &str, format: &str) -> String {
        self.docker(["inspect", "--format", format, id]).ok().out()
    }

    /// Fails the test if it still has containers, or what belongs to one.
    ///
    /// # Panics
    /// Then.
    pub fn holds_nothing(&self) {
        let out = self.docker(["ps", "--all", "--quiet"]).ok();
        assert_eq!(out.out(), "", "containers are left: {}", out.report());
        for place in ["exec/runtime-kata/moby", "exec/containerd/daemon/io.containerd.runtime.v2.task/moby"] {
            let left: Vec<PathBuf> = list(&self.dir.path().join(place));
            assert!(left.is_empty(), "directories of containers are left: {left:?}");
        }
        // A sandbox's daemon is in its cgroup for a moment after docker has its answer.
        wait::until("end of the containers' cgroups", GONE_WITHIN, || {
            let parents = self.parent.dirs();
            let mut left = parents.iter().flat_map(|dir| list(dir)).filter(|path| path.is_dir());
            left.next().is_none().then_some(())
        });
    }
}

impl Engine for Docker {
    fn command(&self, words: &[&str]) -> Cmd {
        self.docker(words)
    }

    fn run_connected(&self, flags: &[&str]) -> Cmd {
        self.run_connected(flags)
    }

    fn host_network(&self) -> &HostNetwork {
        self.network.as_ref().unwrap_or_else(|| panic!("this docker was started without networks"))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.file(name)
    }

    fn remove_all(&self, names: &[&str]) {
        self.docker(["rm", "--force"]).args(names).ok();
        self.holds_nothing();
    }
}

fn list(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect()
}

impl Drop for Docker {
    fn drop(&mut self) {
        if std::thread::panicking() && self.daemon.is_some() {
            let ids = self.docker(["ps", "--all", "--quiet"]).run().out();
            for id in ids.lines() {
                println!(
                    "{}",
                    self.docker(["logs", "--tail", "20", id]).deadline(Duration::from_secs(5)).run().report()
                );
                self.docker(["rm", "--force", id]).run();
            }
        }
        drop(self.daemon.take());
        unmount_below(self.dir.path());
    }
}
