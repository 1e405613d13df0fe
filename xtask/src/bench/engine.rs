//! A containerd of our own: its own directories, socket and configuration, gone afterwards.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::run;

/// The image that is loaded.
pub const IMAGE: &str = "docker.io/library/bench:latest";
/// containerd answers within this.
const READY: Duration = Duration::from_secs(20);
/// Seconds after which a command of the engine's counts as hanging.
const DEADLINE: &str = "120";

/// Who runs the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// The yardstick.
    Runc,
    /// We.
    Kata,
}

impl Runtime {
    /// In the order in which they take turns.
    pub const BOTH: [Runtime; 2] = [Runtime::Runc, Runtime::Kata];

    /// For people, and for containers' ids.
    pub fn name(self) -> &'static str {
        match self {
            Runtime::Runc => "runc",
            Runtime::Kata => "kata",
        }
    }

    fn for_containerd(self) -> &'static str {
        match self {
            Runtime::Runc => "io.containerd.runc.v2",
            Runtime::Kata => "io.containerd.kata.v2",
        }
    }
}

/// A running containerd; stopped on drop.
pub struct Containerd {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Containerd {
    /// Starts it with `bin` first in its `PATH`, where it finds our shim.
    ///
    /// # Errors
    /// It does not answer within [`READY`]; names its log.
    pub fn start(work: &Path, bin: &Path) -> Result<Self> {
        let dir = work.join("containerd");
        fs::create_dir_all(&dir)?;
        let socket = dir.join("containerd.sock");
        let config = dir.join("config.toml");
        let at = |name: &str| dir.join(name).display().to_string();
        fs::write(
            &config,
            format!(
                "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
                 [grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
                at("root"),
                at("state"),
                at("containerd.sock"),
                at("containerd.sock.ttrpc"),
            ),
        )?;
        let log = dir.join("log");
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = run::cmd("containerd", ["--config"]);
        command.arg(&config).env("PATH", format!("{}:{path}", bin.display()));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
        let child = command.spawn().context("cannot start containerd")?;
        let mut this = Containerd { child, socket, log };
        let start = Instant::now();
        while !this.ctr(&["version"]).stdout(Stdio::null()).stderr(Stdio::null()).status()?.success() {
            ensure!(this.child.try_wait()?.is_none(), "containerd ended: {}", this.log_tail());
            ensure!(start.elapsed() < READY, "containerd does not answer: {}", this.log_tail());
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(this)
    }

    fn ctr(&self, args: &[&str]) -> Command {
        let mut command = run::cmd("timeout", [DEADLINE, "ctr", "--address"]);
        command.arg(&self.socket).args(args).stdin(Stdio::null());
        command
    }

    fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }

    /// Runs one command; returns how long it took.
    fn timed(&self, args: &[&str]) -> Result<Duration> {
        let mut command = self.ctr(args);
        let start = Instant::now();
        let output = command.output().context("cannot start ctr")?;
        let took = start.elapsed();
        if !output.status.success() {
            bail!(
                "`ctr {}` failed: {}: {}\ncontainerd's log: {}",
                args.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim(),
                self.log_tail()
            );
        }
        Ok(took)
    }

    /// Loads a docker-archive.
    ///
    /// # Errors
    /// ctr's.
    pub fn load(&self, archive: &Path) -> Result<()> {
        self.timed(&["image", "import", &archive.to_string_lossy()]).map(drop)
    }

    /// A whole `ctr run --rm … true`.
    ///
    /// # Errors
    /// ctr's, with containerd's last words.
    pub fn run(&self, runtime: Runtime, id: &str) -> Result<Duration> {
        self.timed(&["run", "--rm", "--runtime", runtime.for_containerd(), IMAGE, id, "true"])
    }

    /// A container that sleeps.
    ///
    /// # Errors
    /// As of [`Containerd::run`].
    pub fn run_detached(&self, runtime: Runtime, id: &str) -> Result<()> {
        let args = ["run", "--detach", "--runtime", runtime.for_containerd(), IMAGE, id, "sleep", "100000"];
        self.timed(&args).map(drop)
    }

    /// `true` in a running container.
    ///
    /// # Errors
    /// As of [`Containerd::run`].
    pub fn exec(&self, id: &str, exec_id: &str) -> Result<Duration> {
        self.timed(&["task", "exec", "--exec-id", exec_id, id, "true"])
    }

    /// Kills and removes a container.
    ///
    /// # Errors
    /// As of [`Containerd::run`].
    pub fn remove(&self, id: &str) -> Result<()> {
        self.timed(&["task", "delete", "--force", id])?;
        self.timed(&["container", "delete", id]).map(drop)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        run::succeeds("kill", &["-TERM", &self.child.id().to_string()]);
        drop(self.child.wait());
    }
}
