//! What docker and podman have in common: tests of one are tests of the other.

use std::path::PathBuf;

use super::HostNetwork;
use crate::cmd::Cmd;

/// Flags of `run` for a container of busybox that has the host's programs in `/usr/bin`, with their libraries.
pub const HOST_PROGRAMS: [&str; 6] =
    ["--volume", "/usr:/usr:ro", "--volume", "/usr/lib:/lib:ro", "--volume", "/usr/lib64:/lib64:ro"];

/// An engine with docker's command line.
pub trait Engine {
    /// A command of it.
    fn command(&self, words: &[&str]) -> Cmd;

    /// `run` of the runtime under test with more flags, in the default network if they name none; then come the image's
    /// name and the command.
    fn run_connected(&self, flags: &[&str]) -> Cmd;

    /// What is the host's network to it.
    ///
    /// # Panics
    /// When it has no networks.
    fn host_network(&self) -> &HostNetwork;

    /// A place for the test's own files.
    fn file(&self, name: &str) -> PathBuf;

    /// Removes all these containers, whether they run or not, and fails the test if that leaves anything.
    ///
    /// # Panics
    /// Then.
    fn remove_all(&self, names: &[&str]);

    /// Starts a container in the background; `command` begins with the image's name.
    ///
    /// # Panics
    /// When it does not start.
    fn detached(&self, name: &str, flags: &[&str], command: &[&str]) {
        // What watches a container of podman's keeps the output of whoever started it.
        let log = self.file(&format!("{name}.log"));
        let run = self.run_connected(&["--detach", "--name", name, "--hostname", name]).args(flags).args(command);
        let out = run.output_to(&log).run();
        assert_eq!(out.code(), 0, "{}\nit said: {}", out.report(), std::fs::read_to_string(&log).unwrap_or_default());
    }

    /// A shell command line in a running container.
    fn exec(&self, name: &str, script: &str) -> Cmd {
        self.command(&["exec", name, "sh", "-c", script])
    }

    /// A value of `inspect`.
    fn value(&self, name: &str, format: &str) -> String {
        self.command(&["inspect", "--format", format, name]).ok().out()
    }
}
