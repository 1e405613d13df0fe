//! A sandbox with a fake VMM and the real agent, and bundles of busybox for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kata_sandbox::{
    CreateRequest, Endpoint, Event, HostCgroup, Options, Origin, Owner, Sandbox, SandboxError, StdioSpec,
};
use kata_storage::View;
use kata_testkit::fake::{Calls, FakeVmm};
use kata_testkit::rootfs;
use kata_types::{Mib, SandboxId};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc;

/// For anything that a test waits for.
pub const SOON: Duration = Duration::from_secs(20);

/// A sandbox and what surrounds it.
pub struct Fixture {
    pub sandbox: Arc<Sandbox>,
    pub calls: Calls,
    events: mpsc::UnboundedReceiver<Event>,
    dir: TempDir,
}

impl Fixture {
    pub fn start() -> Fixture {
        Fixture::with_agent([std::env::current_exe().unwrap().into_os_string(), "agent-under-test".into()])
    }

    pub fn with_agent(agent: impl IntoIterator<Item = impl Into<std::ffi::OsString>>) -> Fixture {
        let dir = tempfile::Builder::new().prefix("ke-").tempdir().unwrap();
        let run_dir = dir.path().join("run");
        fs::create_dir(&run_dir).unwrap();
        let vmm = FakeVmm::new(agent);
        let calls = vmm.calls();
        let (tx, events) = mpsc::unbounded_channel();
        let mut config = kata_config::Config::default();
        config.hypervisor.qemu.default_memory = Mib(256);
        let sandbox = Sandbox::start(Options {
            id: SandboxId::new("engine").unwrap(),
            origin: Origin::of(&Owner::Containerd("engine".into()), dir.path(), &View::default()),
            run_dir,
            config,
            vmm: Arc::new(vmm),
            cgroup: HostCgroup::default(),
            network: None,
            hostname: "inside".into(),
            events: tx,
            view: View::default(),
            files: None,
        });
        Fixture { sandbox: sandbox.unwrap(), calls, events, dir }
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// A place for the test's own files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A bundle whose process is a shell script; `change` has the last word on its spec.
    pub fn bundle(&self, id: &str, script: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
        let dir = self.file(&format!("bundle-{id}"));
        let rootfs = dir.join("rootfs");
        if !rootfs.exists() {
            fs::create_dir_all(&rootfs).unwrap();
            rootfs::busybox(&rootfs);
        }
        let mut spec = json!({
            "ociVersion": "1.0.2",
            "process": { "args": ["sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 } },
            "root": { "path": "rootfs" },
            "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
            "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" }] },
        });
        change(&mut spec);
        fs::write(dir.join("config.json"), spec.to_string()).unwrap();
        dir
    }

    /// Makes a container whose outputs go to a file.
    pub async fn create(&self, id: &str, script: &str) -> Result<i32, SandboxError> {
        let bundle = self.bundle(id, script, |_| {});
        self.create_from(id, bundle, StdioSpec { stdout: Some(Endpoint::File(self.out(id))), ..StdioSpec::default() })
            .await
    }

    pub async fn create_from(&self, id: &str, bundle: PathBuf, stdio: StdioSpec) -> Result<i32, SandboxError> {
        let (id, pid) = (id.to_owned(), std::process::id().cast_signed());
        let request = CreateRequest { id, bundle, rootfs: Vec::new(), stdio, addresses: Default::default(), pid };
        tokio::time::timeout(SOON, self.sandbox.create(request)).await.expect("an answer to create")
    }

    /// Makes it and starts it.
    pub async fn run(&self, id: &str, script: &str) {
        self.create(id, script).await.unwrap();
        self.sandbox.start_process(id, "").await.unwrap();
    }

    pub fn exec(&self, id: &str, exec: &str, script: &str) -> Result<(), SandboxError> {
        let process =
            json!({ "args": ["sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 } });
        let process = serde_json::from_value(process).unwrap();
        let stdio = StdioSpec { stdout: Some(Endpoint::File(self.out(exec))), ..StdioSpec::default() };
        self.sandbox.add_exec(id, exec, process, stdio, Default::default(), 1)
    }

    /// The exit status of a process, and the reason if it was lost.
    pub async fn wait(&self, id: &str, exec: &str) -> (i32, Option<String>) {
        let process = self.sandbox.process(id, exec).unwrap();
        let exit = tokio::time::timeout(SOON, process.wait()).await.expect("an end");
        (exit.status, exit.reason)
    }

    fn out(&self, name: &str) -> PathBuf {
        self.file(&format!("{name}.out"))
    }

    /// What a process has said.
    pub fn said(&self, name: &str) -> String {
        fs::read_to_string(self.out(name)).unwrap_or_default()
    }

    /// Waits until it has said this.
    pub async fn says(&self, name: &str, text: &str) {
        until(text, || self.said(name).contains(text)).await;
    }

    /// The next event, by its name alone.
    pub async fn event(&mut self) -> String {
        let event = tokio::time::timeout(SOON, self.events.recv()).await.expect("an event").expect("an event");
        let text = format!("{event:?}");
        text.split(' ').next().unwrap_or_default().to_owned()
    }

    /// Kills the process that the state file names.
    pub fn kill(&self, of: &str) {
        let state: Value = serde_json::from_slice(&fs::read(self.run_dir().join("state.json")).unwrap()).unwrap();
        let pid = i32::try_from(state[of]["pid"].as_i64().unwrap()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    /// Ends it, and sees that nothing is left of it.
    pub async fn end(self) {
        self.sandbox.shutdown().await;
        let left: Vec<_> = mounts_below(self.dir.path());
        assert!(left.is_empty(), "mounts are left: {left:?}");
        assert!(!self.run_dir().join("share").exists(), "the share is left");
        assert_eq!(self.calls.all().iter().filter(|call| *call == "stop").count(), 1, "{:?}", self.calls.all());
    }
}

pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(SOON, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("no {what} in time"));
}

fn mounts_below(dir: &Path) -> Vec<String> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    text.lines()
        .filter(|l| l.split(' ').nth(4).is_some_and(|p| Path::new(p).starts_with(dir)))
        .map(str::to_owned)
        .collect()
}
