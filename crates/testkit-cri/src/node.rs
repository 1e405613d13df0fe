//! A node: containerd with its CRI plugin, our runtime and runc, a network, and the directories a kubelet has.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kata_testkit::cmd::Cmd;
use kata_testkit::engine::{CgroupParent, Daemon, Release, unmount_below};
use kata_testkit::image;
pub use kata_testkit::oracle::{handler, is_kata};
use kata_testkit::runtime::scratch;
use tempfile::TempDir;

use crate::api;
use crate::client::Client;
use crate::config::{self, Ours};
use crate::network::Network;
use crate::pod::{PodSpec, remove_cgroup};

/// Where containerd keeps everything of Kubernetes'.
const NAMESPACE: &str = "k8s.io";

/// A running containerd with the tests' images.
pub struct Node {
    // Dropped in this order: the daemon ends before its network and its files go.
    daemon: Option<Daemon>,
    client: Client,
    network: Network,
    parent: CgroupParent,
    dir: TempDir,
    release: Release,
    /// What its configuration says of the runtime under test, which is in its PATH unless it says nothing.
    ours: Ours,
}

impl Node {
    /// Starts one and loads the images.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start() -> Node {
        Node::of(Release::Distribution, None)
    }

    /// The same of another release, and with another of its ways to make sandboxes of our runtime: `shim` for the
    /// Sandbox API, which containerd 2 has; `None` for its default.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn of(release: Release, sandboxer: Option<&'static str>) -> Node {
        Node::prepared(release, Ours::Present(sandboxer), |_| {})
    }

    /// Starts one whose configuration file does not have the runtime under test, nor its PATH, after `prepare` was given that
    /// file. It is not written again when containerd is started again.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_bare(release: Release, prepare: impl FnOnce(&Path)) -> Node {
        Node::prepared(release, Ours::Absent, prepare)
    }

    fn prepared(release: Release, ours: Ours, prepare: impl FnOnce(&Path)) -> Node {
        let dir = scratch();
        let parent = CgroupParent(format!("kata-kubepods-{}", std::process::id()));
        let network = Network::configure(dir.path());
        let client = Client::new(&dir.path().join("c.sock"));
        let mut node = Node { daemon: None, client, network, parent, dir, release, ours };
        let file = node.config_file();
        let text = config::containerd(node.dir.path(), release, ours, &node.network.settings());
        fs::write(&file, text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        prepare(&file);
        node.launch();
        for archive in [image::pause(), image::busybox()] {
            node.ctr(["images", "import"]).arg(archive).ok();
        }
        // The CRI plugin hears of new images from containerd's events.
        kata_testkit::wait::until("images in the CRI plugin", Duration::from_secs(15), || {
            let images = node.client.list_images().ok()?.images;
            let has = |name: &str| images.iter().any(|image| image.repo_tags.iter().any(|tag| tag == name));
            (has(image::PAUSE) && has(image::BUSYBOX)).then_some(())
        });
        node
    }

    /// containerd's configuration.
    pub fn config_file(&self) -> PathBuf {
        self.dir.path().join("config.toml")
    }

    fn launch(&mut self) {
        let mut command = Command::new(self.release.program("usr/bin/containerd"));
        command.arg("--config").arg(self.config_file());
        if self.ours != Ours::Absent {
            command.env("PATH", self.release.path());
        }
        let mut daemon = Daemon::start("containerd", command, self.dir.path().join("log"));
        let socket = self.dir.path().join("c.sock");
        daemon.ready(|| {
            UnixStream::connect(&socket).is_ok()
                && self.client.status(api::StatusRequest { verbose: false }).is_ok_and(|answer| {
                    let conditions = answer.status.unwrap_or_default().conditions;
                    ["RuntimeReady", "NetworkReady"].iter().all(|&wanted| {
                        conditions.iter().any(|condition| condition.r#type == wanted && condition.status)
                    })
                })
        });
        self.daemon = Some(daemon);
    }

    /// Kills containerd as a crash would, and starts it again: its pods go on.
    ///
    /// # Panics
    /// When it does not come up again.
    pub fn crash(&mut self) {
        self.crash_and(|| ());
    }

    /// The same, with something that happens while it is away.
    ///
    /// # Panics
    /// When it does not come up again.
    pub fn crash_and(&mut self, meanwhile: impl FnOnce()) {
        if let Some(daemon) = self.daemon.take() {
            daemon.kill();
        }
        meanwhile();
        self.launch();
    }

    /// Ends containerd and starts it again: its pods go on.
    ///
    /// # Panics
    /// When it does not come up again.
    pub fn restart(&mut self) {
        drop(self.daemon.take());
        self.launch();
    }

    /// The interface.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// A pod to be, of the runtime under test.
    pub fn pod(&self, name: &str) -> PodSpec<'_> {
        PodSpec::new(self, name)
    }

    /// The cgroup of all pods.
    pub fn cgroup(&self) -> &CgroupParent {
        &self.parent
    }

    /// A place for the test's own files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What containerd has logged.
    pub fn log(&self) -> String {
        self.daemon.as_ref().map(Daemon::log).unwrap_or_default()
    }

    /// A command of ctr, in Kubernetes' namespace.
    pub fn ctr<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Cmd {
        let socket = self.dir.path().join("c.sock");
        Cmd::new(self.release.program("usr/bin/ctr"))
            .arg("--address")
            .arg(socket)
            .arg("--namespace")
            .arg(NAMESPACE)
            .args(args)
    }

    /// Fails the test if containerd still has pods, containers, tasks, or directories and mounts of them.
    ///
    /// # Panics
    /// Then.
    pub fn holds_nothing(&self) {
        let pods = self.client.list_pod_sandbox(api::ListPodSandboxRequest { filter: None });
        assert!(pods.as_ref().is_ok_and(|pods| pods.items.is_empty()), "pods are left: {pods:?}");
        let all = self.client.list_containers(api::ListContainersRequest { filter: None });
        assert!(all.as_ref().is_ok_and(|all| all.containers.is_empty()), "containers are left: {all:?}");
        for what in ["containers", "tasks"] {
            let out = self.ctr([what, "list", "-q"]).ok();
            assert_eq!(out.out(), "", "{what} are left: {}", out.report());
        }
        let state = self.dir.path().join("state");
        let bundles = state.join("io.containerd.runtime.v2.task").join(NAMESPACE);
        let sandboxes = state.join("io.containerd.grpc.v1.cri");
        let by_shims = state.join("io.containerd.sandbox.controller.v1.shim").join(NAMESPACE);
        let places = [bundles, by_shims, sandboxes.join("sandboxes"), sandboxes.join("containers")];
        let left: Vec<PathBuf> = places.iter().flat_map(|place| entries(place)).collect();
        assert!(left.is_empty(), "directories are left: {left:?}");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mounted: Vec<&str> = mounts
            .lines()
            .filter(|line| line.split(' ').nth(4).is_some_and(|point| Path::new(point).starts_with(self.dir.path())))
            .collect();
        assert!(mounted.is_empty(), "mounts are left: {mounted:?}");
        let leases = entries(&self.dir.path().join("ipam").join(self.network.name()));
        let leases: Vec<_> = leases
            .iter()
            .filter(|file| !file.file_name().is_some_and(|n| n == "lock" || n.to_string_lossy().starts_with("last_")))
            .collect();
        assert!(leases.is_empty(), "addresses are still given out: {leases:?}");
        let cgroups = self.parent.dirs().into_iter().flat_map(|dir| entries(&dir)).filter(|path| path.is_dir());
        let cgroups: Vec<PathBuf> = cgroups.collect();
        assert!(cgroups.is_empty(), "cgroups are left: {cgroups:?}");
    }

    /// Removes the cgroups of pods that were removed, of which no [`crate::Pod`] is left.
    ///
    /// # Panics
    /// When something is left in one.
    pub fn remove_pod_cgroups(&self) {
        let pods = self.parent.dirs().into_iter().flat_map(|dir| entries(&dir)).filter(|path| path.is_dir());
        pods.for_each(|dir| remove_cgroup(&dir));
    }

    fn force_everything_away(&self) {
        let pods = self.client.list_pod_sandbox(api::ListPodSandboxRequest { filter: None });
        for pod in pods.map(|pods| pods.items).unwrap_or_default() {
            let id = || pod.id.clone();
            let stopped = self.client.stop_pod_sandbox(api::StopPodSandboxRequest { pod_sandbox_id: id() });
            let removed = self.client.remove_pod_sandbox(api::RemovePodSandboxRequest { pod_sandbox_id: id() });
            println!("cleaning up pod {}: {stopped:?}, {removed:?}", pod.id);
        }
    }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() && self.daemon.is_some() {
            self.force_everything_away();
        }
        drop(self.daemon.take());
        unmount_below(self.dir.path());
        if std::thread::panicking() {
            for dir in self.parent.dirs() {
                remove_cgroups(&dir);
            }
        }
    }
}

/// Removes the empty cgroups below this one.
fn remove_cgroups(dir: &Path) {
    for child in entries(dir).iter().filter(|path| path.is_dir()) {
        remove_cgroups(child);
        // One with processes in it is a leak, and found as such.
        drop(fs::remove_dir(child));
    }
}
