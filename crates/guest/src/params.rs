//! The kernel parameters that are meant for the agent (names as upstream's, where upstream has them).

use std::time::Duration;

use log::LevelFilter;

/// How long to wait for a device that the host says it has plugged, unless a parameter says otherwise. Longer than
/// upstream's three seconds: without KVM a PCI scan alone takes part of a second.
const HOTPLUG_TIMEOUT: Duration = Duration::from_secs(10);

/// What the kernel command line says to the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Params {
    /// `agent.log=error|warn|info|debug|trace`.
    pub log: LevelFilter,
    /// `agent.hotplug_timeout=<seconds>`: for devices that the host has just plugged.
    pub hotplug_timeout: Duration,
    /// `agent.container_pipe_size=<bytes>`: of each stdio pipe; `None` leaves the agent's own choice.
    pub container_pipe_size: Option<usize>,
    /// `agent.check_kernel`: look whether the kernel has every option that containers need.
    pub check_kernel: bool,
    /// `agent.debug_console`: the host may look around in the guest.
    pub debug_console: bool,
    /// What could not be understood, one sentence each; logged once the logger works.
    pub warnings: Vec<String>,
}

impl Default for Params {
    fn default() -> Self {
        Params {
            log: LevelFilter::Info,
            hotplug_timeout: HOTPLUG_TIMEOUT,
            container_pipe_size: None,
            check_kernel: false,
            debug_console: false,
            warnings: Vec::new(),
        }
    }
}

impl Params {
    /// Reads a kernel command line. Words that do not begin with `agent.` are for others.
    pub fn parse(cmdline: &str) -> Self {
        let mut p = Params::default();
        for word in cmdline.split_whitespace() {
            let Some(setting) = word.strip_prefix("agent.") else { continue };
            let (key, value) = setting.split_once('=').unwrap_or((setting, ""));
            if let Err(why) = p.set(key, value) {
                p.warnings.push(format!("kernel parameter {word:?} is ignored: {why}"));
            }
        }
        p
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "log" => {
                self.log = value.parse().map_err(|_| "no such level; error, warn, info, debug, trace".to_owned())?
            }
            "hotplug_timeout" => {
                let secs = value.trim_end_matches('s').parse().map_err(|_| "not a number of seconds".to_owned())?;
                self.hotplug_timeout = Duration::from_secs(secs);
            }
            "container_pipe_size" => match value.parse() {
                Ok(0) => self.container_pipe_size = None,
                Ok(n) => self.container_pipe_size = Some(n),
                Err(_) => return Err("not a number of bytes".into()),
            },
            "check_kernel" => self.check_kernel = switch(value)?,
            "debug_console" => self.debug_console = switch(value)?,
            _ => return Err("this build does not know it".into()),
        }
        Ok(())
    }
}

/// A parameter that is there is on.
fn switch(value: &str) -> Result<bool, String> {
    match value {
        "" | "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err("neither true nor false".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_words_are_read_and_the_rest_is_named() {
        let p = Params::parse(
            "console=ttyS0 agent.log=debug agent.hotplug_timeout=7 agent.container_pipe_size=4096 agent.check_kernel \
             agent.debug_console agent.debug_console_vport=1 agent.frobnicate=1 agent.log=loud quiet\n",
        );
        assert_eq!(p.log, LevelFilter::Debug);
        assert_eq!(p.hotplug_timeout, Duration::from_secs(7));
        assert_eq!(p.container_pipe_size, Some(4096));
        assert!(p.check_kernel && p.debug_console);
        assert!(!Params::parse("agent.debug_console=false").debug_console && !Params::default().debug_console);
        let all = p.warnings.join("\n");
        assert_eq!(p.warnings.len(), 3, "{all}");
        for word in ["agent.debug_console_vport=1", "agent.frobnicate=1", "agent.log=loud"] {
            assert!(all.contains(word), "{all}");
        }
    }
}
