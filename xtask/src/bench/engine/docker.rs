//! A dockerd of our own: without networks, so that nothing of the host's is touched, or with docker's default network in a
//! network namespace that is its host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Engine, IMAGE, KEEP, Verb};
use crate::bench::command::{Daemon, answers, bounded, remove_cgroup, timed};
use crate::bench::contender::Contender;
use crate::bench::netns::Netns;
use crate::run;

/// By full path where Debian put it: another client may stand first in `PATH`.
const CLIENT: &str = "/usr/bin/docker";

/// A running dockerd with a containerd of its own; stopped on drop.
pub struct Docker {
    daemon: Daemon,
    dir: PathBuf,
    parent: String,
    network: Network,
    /// That its host is; removed after the daemon has ended.
    _host: Option<Netns>,
}

/// What its containers' network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// There is none.
    None,
    /// A veth on docker's bridge.
    Bridge,
}

impl Network {
    /// What the engine is called with it.
    pub fn engine(self) -> &'static str {
        match self {
            Network::None => "docker",
            Network::Bridge => "docker+net",
        }
    }

    /// What docker calls it.
    fn name(self) -> &'static str {
        match self {
            Network::None => "none",
            Network::Bridge => "bridge",
        }
    }
}

impl Docker {
    /// Starts it with every contender as a runtime, and loads the image in `archive`.
    ///
    /// With a network it has a namespace for its host, so that links, rules and settings of the host's own are left alone.
    ///
    /// # Errors
    /// It does not answer; shows its log.
    pub fn start(work: &Path, contenders: &[Contender], archive: &Path, network: Network) -> Result<Self> {
        let dir = work.join(network.engine());
        fs::create_dir_all(&dir)?;
        let runtimes: serde_json::Map<String, Value> = contenders
            .iter()
            .map(|contender| {
                let value = match contender {
                    Contender::Other(_, program) => json!({ "path": program }),
                    Contender::Kata(kata) => json!({
                        "path": kata.build().bin().join("kata-runtime"),
                        "runtimeArgs": ["--kata-config", kata.config()],
                    }),
                };
                (runtime(contender), value)
            })
            // Its own name is taken: it is built in.
            .filter(|(name, _)| name != "runc")
            .collect();
        let config = dir.join("daemon.json");
        fs::write(&config, json!({ "runtimes": runtimes }).to_string())?;
        let parent = format!("kata-bench-{}-{}", network.engine(), std::process::id());
        let host_netns = (network == Network::Bridge).then(|| Netns::new("docker")).transpose()?;
        let mut command = match &host_netns {
            // Not `ip netns exec`, which mounts another /sys, without cgroups.
            Some(netns) => run::cmd("nsenter", [&format!("--net={}", netns.path()), "dockerd", "--config-file"]),
            None => run::cmd("dockerd", ["--config-file"]),
        };
        command.arg(&config).arg("--data-root").arg(dir.join("data")).arg("--exec-root").arg(dir.join("exec"));
        command.arg("--pidfile").arg(dir.join("pid")).arg("--host").arg(host(&dir));
        command.args(["--cgroup-parent", &format!("/{parent}")]);
        if network == Network::None {
            command.args(["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"]);
            command.arg("--ip-masq=false");
        }
        let daemon = Daemon::start(command, dir.join("log"), || answers(client(&dir)))?;
        let this = Docker { daemon, dir, parent, network, _host: host_netns };
        this.timed(["load", "--input"], |command| command.arg(archive))?;
        Ok(this)
    }

    fn timed<const N: usize>(
        &self,
        args: [&str; N],
        more: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Result<Duration> {
        timed(more(client(&self.dir).args(args))).with_context(|| format!("dockerd's log: {}", self.daemon.log_tail()))
    }
}

fn host(dir: &Path) -> String {
    format!("unix://{}", dir.join("d.sock").display())
}

fn client(dir: &Path) -> Command {
    let program = if Path::new(CLIENT).exists() { CLIENT } else { "docker" };
    let mut command = bounded(program);
    command.env("DOCKER_CONFIG", dir.join("client")).arg("--host").arg(host(dir));
    command
}

fn runtime(contender: &Contender) -> String {
    contender.name().replace(' ', "-").to_lowercase()
}

impl Engine for Docker {
    fn name(&self) -> &'static str {
        self.network.engine()
    }

    fn run(&self, contender: &Contender, id: &str) -> Result<Duration> {
        let args = ["run", "--rm", "--network", self.network.name(), "--name", id, "--runtime", &runtime(contender)];
        self.timed(args, |command| command.args([IMAGE, "true"]))
    }

    fn begin(&self, contender: &Contender, id: &str) -> Result<Vec<(Verb, Duration)>> {
        let args = ["create", "--network", self.network.name(), "--name", id, "--runtime", &runtime(contender)];
        let create = self.timed(args, |command| command.arg(IMAGE).args(KEEP))?;
        let start = self.timed(["start", id], |command| command);
        if start.is_err() {
            drop(self.remove(contender, id));
        }
        Ok(vec![("create", create), ("start", start?)])
    }

    fn exec(&self, _: &Contender, id: &str, _: usize) -> Result<Duration> {
        self.timed(["exec", id, "true"], |command| command)
    }

    fn remove(&self, _: &Contender, id: &str) -> Result<Duration> {
        self.timed(["rm", "--force", id], |command| command)
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        remove_cgroup(&self.parent);
    }
}
