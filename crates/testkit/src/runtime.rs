//! Our own command line, as installed in the stage that is under test, with a `--root` of its own.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::bundle::Bundle;
use crate::cmd::{Cmd, Output};
use crate::wait;

/// The environment variable that names the stage: an installation's prefix. `cargo xtask test` sets it.
const STAGE: &str = "KATA_STAGE";
/// The same with the distribution's own kernel.
const STAGE_DEBIAN: &str = "KATA_STAGE_DEBIAN";

/// The installation under test.
///
/// # Panics
/// Without one.
pub fn stage() -> PathBuf {
    std::env::var_os(STAGE)
        .map(PathBuf::from)
        .unwrap_or_else(|| panic!("{STAGE} names no installation to test: run `cargo xtask test`"))
}

/// The installation with the distribution's kernel, where it could be made.
pub fn debian_stage() -> Option<PathBuf> {
    std::env::var_os(STAGE_DEBIAN).map(PathBuf::from)
}

/// The release of the kernel that this process runs on.
///
/// # Panics
/// Without a /proc.
pub fn host_kernel() -> String {
    let path = "/proc/sys/kernel/osrelease";
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}")).trim().to_owned()
}

/// A private directory for one test, with a short name: unix socket paths end at 107 bytes.
///
/// # Panics
/// When it cannot be made.
pub fn scratch() -> TempDir {
    let dir = tempfile::Builder::new().prefix("kt-").tempdir();
    dir.unwrap_or_else(|e| panic!("no temporary directory: {e}"))
}

/// `kata-runtime` with a root of its own. On drop, containers that are left there are deleted by force.
pub struct Runtime {
    program: PathBuf,
    dir: TempDir,
    flags: Vec<String>,
}

impl Runtime {
    /// Of the stage under test.
    pub fn new() -> Runtime {
        Runtime::of(&stage())
    }

    /// Of another installation.
    pub fn of(stage: &Path) -> Runtime {
        Runtime { program: stage.join("bin/kata-runtime"), dir: scratch(), flags: Vec::new() }
    }

    /// With this `configuration.toml` instead of the stage's. Its VMs boot, unless it has a `[factory]` of its own.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn configured(mut self, text: &str) -> Runtime {
        let file = self.dir.path().join("configuration.toml");
        let mut text = text.to_owned();
        if !text.contains("[factory]") {
            text.push_str("\n[factory]\nenable_template = false\n");
        }
        fs::write(&file, text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        self.flags.extend(["--kata-config".into(), file.display().to_string()]);
        self
    }

    /// Its program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Its `--root`.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// A place for the test's own files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command line.
    pub fn cmd<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Cmd {
        Cmd::new(&self.program).arg("--root").arg(self.root()).args(&self.flags).args(args)
    }

    /// `run` in the foreground.
    pub fn run(&self, bundle: &Bundle, id: &str) -> Cmd {
        self.cmd(["run", "--bundle"]).arg(bundle.write()).arg(id)
    }

    /// `run --detach`; what the container says goes to [`Runtime::log`].
    ///
    /// # Panics
    /// When it fails.
    pub fn run_detached(&self, bundle: &Bundle, id: &str) {
        let out = self.cmd(["run", "--detach", "--bundle"]).arg(bundle.write()).arg(id).output_to(&self.log(id)).run();
        assert_eq!(out.code(), 0, "{}\nit said: {}", out.report(), self.said(id));
    }

    /// `create`; what the container says goes to [`Runtime::log`].
    ///
    /// # Panics
    /// When it fails.
    pub fn create(&self, bundle: &Bundle, id: &str) {
        let out = self.cmd(["create", "--bundle"]).arg(bundle.write()).arg(id).output_to(&self.log(id)).run();
        assert_eq!(out.code(), 0, "{}\nit said: {}", out.report(), self.said(id));
    }

    /// Where a detached container's output goes.
    pub fn log(&self, id: &str) -> PathBuf {
        self.file(&format!("{id}.log"))
    }

    /// What a detached container has said.
    pub fn said(&self, id: &str) -> String {
        fs::read_to_string(self.log(id)).unwrap_or_default()
    }

    /// A shell command line in a running container.
    pub fn exec(&self, id: &str, script: &str) -> Cmd {
        self.cmd(["exec", id, "sh", "-c", script])
    }

    /// What `state` prints.
    ///
    /// # Panics
    /// When it fails, or prints no JSON.
    pub fn state(&self, id: &str) -> Value {
        json(&self.cmd(["state", id]).ok())
    }

    /// Its status in the words of the OCI specification.
    pub fn status(&self, id: &str) -> String {
        self.state(id)["status"].as_str().unwrap_or_default().to_owned()
    }

    /// Waits until it has this status.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn comes_to(&self, id: &str, status: &str, within: Duration) {
        wait::until(&format!("container {id} that is {status}"), within, || (self.status(id) == status).then_some(()));
    }

    /// The directory of a container's sandbox, found by the state file in it, as an administrator would.
    ///
    /// # Panics
    /// When there is none.
    pub fn sandbox(&self, id: &str) -> Sandbox {
        Sandbox::find(id)
    }

    /// Deletes a stopped container.
    ///
    /// # Panics
    /// When it fails.
    pub fn delete(&self, id: &str) {
        self.cmd(["delete", id]).ok();
    }
}

impl Default for Runtime {
    fn default() -> Self {
        Runtime::new()
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        let left: Vec<String> = fs::read_dir(self.root())
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok())
            .collect();
        for id in &left {
            let out = self.cmd(["delete", "--force", id]).run();
            println!("cleaning up {id}: {}", out.report());
        }
        assert!(left.is_empty() || std::thread::panicking(), "the test did not delete its containers {left:?}");
    }
}

/// A running sandbox, as its state file tells of it.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// Its directory on the host.
    pub dir: PathBuf,
    /// The state file.
    pub state: Value,
}

impl Sandbox {
    /// The one with this id.
    ///
    /// # Panics
    /// When there is none.
    pub fn find(id: &str) -> Sandbox {
        let dirs = fs::read_dir("/run/kata").unwrap_or_else(|e| panic!("/run/kata: {e}"));
        // One that has given its name up is about to go.
        let named = dirs.flatten().filter(|e| !e.file_name().as_encoded_bytes().starts_with(b"."));
        let mut found = named.filter_map(|entry| {
            let text = fs::read(entry.path().join("state.json")).ok()?;
            let state: Value = serde_json::from_slice(&text).ok()?;
            (state["id"] == id).then(|| Sandbox { dir: entry.path(), state })
        });
        found.next().unwrap_or_else(|| panic!("no sandbox {id} below /run/kata"))
    }

    /// The pid of "daemon", "vm" or "fs".
    ///
    /// # Panics
    /// When the state file tells of none.
    pub fn pid(&self, of: &str) -> i32 {
        let pid = self.state[of]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        pid.unwrap_or_else(|| panic!("no pid of {of} in {}", self.state))
    }

    /// The daemon's log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("daemon.log")).unwrap_or_default()
    }
}

/// Kills a process as a crash would.
///
/// # Panics
/// When it is gone already.
pub fn kill9(pid: i32) {
    use nix::sys::signal::{Signal, kill};
    kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap_or_else(|e| panic!("kill -9 {pid}: {e}"));
}

/// A command's stdout as JSON.
///
/// # Panics
/// When it is none.
pub fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("no JSON: {e}: {}", output.report()))
}
