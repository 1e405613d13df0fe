//! The node's container engine: which it is, whether it has been restarted, and restarting it.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::args::EngineArg;
use crate::error::DeployError;
use crate::host::{Host, Moment, Process};

/// systemd itself gives up on a unit after 90 s.
const RESTART: Duration = Duration::from_secs(120);

/// An engine that kubelet can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// containerd with its CRI plugin.
    Containerd,
    /// CRI-O.
    Crio,
}

impl Engine {
    /// Its program and its systemd unit.
    pub fn name(self) -> &'static str {
        match self {
            Engine::Containerd => "containerd",
            Engine::Crio => "crio",
        }
    }

    /// The one of this node.
    ///
    /// # Errors
    /// None, or two that could be meant.
    pub fn find(host: &Host, arg: EngineArg, config: &Path) -> Result<Engine, DeployError> {
        match arg {
            EngineArg::Containerd => return Ok(Engine::Containerd),
            EngineArg::Crio => return Ok(Engine::Crio),
            EngineArg::Auto => {}
        }
        let both = [Engine::Containerd, Engine::Crio];
        let processes = host.processes();
        let running = both.map(|e| e.newest(&processes, config).is_some());
        let installed = both.map(|e| {
            ["/usr/bin", "/usr/local/bin"]
                .into_iter()
                .any(|dir| host.at(&Path::new(dir).join(e.name())).is_ok_and(|p| p.exists()))
        });
        for (found, how) in [(running, "running"), (installed, "installed")] {
            match found {
                [true, true] => return Err(DeployError::TwoEngines { how }),
                [true, false] => return Ok(Engine::Containerd),
                [false, true] => return Ok(Engine::Crio),
                [false, false] => {}
            }
        }
        Err(DeployError::NoEngine { root: host.root().to_owned() })
    }

    /// The process of it that was started last; with this configuration file, where one is named. Docker has a
    /// containerd of its own, with a configuration of its own.
    fn newest<'a>(self, processes: &'a [Process], config: &Path) -> Option<&'a Process> {
        let ours = processes.iter().filter(|p| {
            p.name == self.name()
                && (self == Engine::Crio || p.flag(&["--config", "-c"]).is_none_or(|file| Path::new(file) == config))
        });
        ours.max_by_key(|p| p.started)
    }

    /// Whether it has been started since `changed`; `None` if it does not run.
    ///
    /// # Errors
    /// A node without /proc.
    pub fn restarted(self, host: &Host, config: &Path, changed: &Moment) -> Result<Option<bool>, DeployError> {
        let processes = host.processes();
        let Some(process) = self.newest(&processes, config) else { return Ok(None) };
        Ok(Some(host.now()?.boot_id != changed.boot_id || process.started > changed.ticks))
    }

    /// The command that restarts it. Containers keep running: their shims and monitors are not the engine's to kill
    /// (KillMode=process in both engines' units).
    pub fn restart_command(self, host: &Host) -> Vec<String> {
        let inside = ["nsenter", "--target", "1", "--mount", "--"];
        let systemctl = ["systemctl", "restart", self.name()];
        // In a container, through the node's mount namespace to its systemd. It takes the node's pid namespace.
        let words = if host.is_ours() { [&[], &systemctl[..]].concat() } else { [&inside[..], &systemctl].concat() };
        words.into_iter().map(str::to_owned).collect()
    }
}

/// Runs a command that restarts an engine.
///
/// # Errors
/// [`DeployError::Restart`].
pub fn restart(command: &[String]) -> Result<(), DeployError> {
    let failed = |how: String| DeployError::Restart { command: command.join(" "), how };
    let Some((program, args)) = command.split_first() else { return Ok(()) };
    let spawned = Command::new(program).args(args).stdin(Stdio::null()).spawn();
    let mut child = spawned.map_err(|e| failed(format!("cannot be run ({e})")))?;
    let deadline = Instant::now() + RESTART;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(failed(format!("failed ({status})"))),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
            Ok(None) => {
                drop(child.kill());
                drop(child.wait());
                return Err(failed(format!("took more than {} s", RESTART.as_secs())));
            }
            Err(err) => return Err(failed(format!("cannot be waited for ({err})"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd;

    fn process(name: &str, argv: &[&str], started: u64) -> Process {
        Process { pid: 1, name: name.into(), argv: argv.iter().map(|a| (*a).to_owned()).collect(), started }
    }

    #[test]
    fn dockers_containerd_is_not_the_nodes() {
        let docker =
            process("containerd", &["containerd", "--config", "/var/run/docker/containerd/containerd.toml"], 9);
        let node = process("containerd", &["/usr/bin/containerd"], 5);
        let all = [docker.clone(), node];
        let config = Path::new(containerd::DEFAULT);
        assert_eq!(Engine::Containerd.newest(&all, config).unwrap().started, 5);
        assert!(Engine::Containerd.newest(&[docker], config).is_none());
        assert!(Engine::Crio.newest(&all, config).is_none());
        let k3s = [process("containerd", &["containerd", "-c", "/var/lib/k3s.toml"], 3)];
        assert!(Engine::Containerd.newest(&k3s, Path::new("/var/lib/k3s.toml")).is_some());
    }

    #[test]
    fn a_restart_that_fails_says_how() {
        restart(&["true".into()]).unwrap();
        let err = restart(&["sh".into(), "-c".into(), "exit 4".into()]).unwrap_err().to_string();
        assert!(err.contains("exit status: 4") && err.contains("by hand"), "{err}");
        assert!(restart(&["/no/such/program".into()]).unwrap_err().to_string().contains("cannot be run"));
        let there = Host::new(Path::new("/host")).unwrap();
        let words = Engine::Crio.restart_command(&there).join(" ");
        assert_eq!(words, "nsenter --target 1 --mount -- systemctl restart crio");
        let here = Host::new(Path::new("/")).unwrap();
        assert_eq!(Engine::Containerd.restart_command(&here).join(" "), "systemctl restart containerd");
    }
}
