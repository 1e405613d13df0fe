//! A containerd of our own, driven by ctr: its own directories, socket and configuration, gone afterwards.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Engine, IMAGE, KEEP, Verb};
use crate::bench::command::{Daemon, answers, bounded, remove_cgroup, timed};
use crate::bench::contender::Contender;
use crate::run;

/// A running containerd; stopped on drop.
pub struct Ctr {
    daemon: Daemon,
    socket: PathBuf,
    /// Of containerd, and so the name of the cgroup above its containers'.
    namespace: String,
}

impl Ctr {
    /// Starts it with `bin` first in its `PATH`, where it finds our shim, and loads the image in `archive`.
    ///
    /// # Errors
    /// It does not answer; shows its log.
    pub fn start(work: &Path, name: &str, bin: &Path, archive: &Path) -> Result<Self> {
        let dir = work.join(name);
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
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = run::cmd("containerd", ["--config"]);
        command.arg(&config).env("PATH", format!("{}:{path}", bin.display()));
        let namespace = format!("kata-bench-{}", std::process::id());
        let daemon = Daemon::start(command, dir.join("log"), || answers(ctr(&socket, &namespace)))?;
        let this = Ctr { daemon, socket, namespace };
        this.timed(["image", "import"], |command| command.arg(archive))?;
        Ok(this)
    }

    fn timed<const N: usize>(
        &self,
        args: [&str; N],
        more: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Result<Duration> {
        let mut command = ctr(&self.socket, &self.namespace);
        timed(more(command.args(args))).with_context(|| format!("containerd's log: {}", self.daemon.log_tail()))
    }
}

fn ctr(socket: &Path, namespace: &str) -> Command {
    let mut command = bounded("ctr");
    command.arg("--address").arg(socket).args(["--namespace", namespace]);
    command
}

fn runtime<'a>(command: &'a mut Command, contender: &Contender) -> &'a mut Command {
    match contender {
        Contender::Other(other, program) => {
            command.args(["--runtime", other.containerd]);
            if other.containerd == "io.containerd.runc.v2" {
                command.arg("--runc-binary").arg(program);
            }
            command
        }
        Contender::Kata(kata) => {
            command.args(["--runtime", "io.containerd.kata.v2", "--runtime-config-path"]).arg(kata.config())
        }
    }
}

impl Engine for Ctr {
    fn name(&self) -> &'static str {
        "ctr"
    }

    fn run(&self, contender: &Contender, id: &str) -> Result<Duration> {
        self.timed(["run", "--rm"], |command| runtime(command, contender).args([IMAGE, id, "true"]))
    }

    fn begin(&self, contender: &Contender, id: &str) -> Result<Vec<(Verb, Duration)>> {
        let took = self.timed(["run", "--detach"], |command| runtime(command, contender).args([IMAGE, id]).args(KEEP));
        if took.is_err() {
            // What ctr does not do itself.
            drop(self.timed(["container", "delete", id], |command| command));
        }
        Ok(vec![("run --detach", took?)])
    }

    fn exec(&self, _: &Contender, id: &str, nth: usize) -> Result<Duration> {
        self.timed(["task", "exec", "--exec-id"], |command| command.args([&format!("exec-{nth}"), id, "true"]))
    }

    fn remove(&self, _: &Contender, id: &str) -> Result<Duration> {
        let task = self.timed(["task", "delete", "--force", id], |command| command)?;
        Ok(task + self.timed(["container", "delete", id], |command| command)?)
    }
}

impl Drop for Ctr {
    fn drop(&mut self) {
        remove_cgroup(&self.namespace);
    }
}
