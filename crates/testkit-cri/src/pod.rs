//! Pods, made and ended as a kubelet does.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kata_testkit::wait;
use tonic::Status;

use crate::api;
use crate::client::Client;
use crate::container::ContainerSpec;
use crate::node::{Node, handler};
use crate::stream::Forward;

/// The range of a node's cgroup that its pods may use, which a parent in the hierarchy `cpuset` must tell.
const CPUSETS: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// A pod to be.
pub struct PodSpec<'a> {
    node: &'a Node,
    config: api::PodSandboxConfig,
    handler: String,
}

impl<'a> PodSpec<'a> {
    pub(crate) fn new(node: &'a Node, name: &str) -> PodSpec<'a> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let uid = format!("{:08x}-0000-4000-8000-{:012x}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let logs = node.file("logs").join(format!("test_{name}_{uid}"));
        let config = api::PodSandboxConfig {
            metadata: Some(api::PodSandboxMetadata {
                name: name.into(),
                uid: uid.clone(),
                namespace: "test".into(),
                attempt: 0,
            }),
            hostname: name.into(),
            log_directory: logs.display().to_string(),
            linux: Some(api::LinuxPodSandboxConfig {
                cgroup_parent: format!("/{}/pod{uid}", node.cgroup().0),
                security_context: Some(api::LinuxSandboxSecurityContext {
                    // A kubelet's default: processes of each container for themselves, the rest together.
                    namespace_options: Some(api::NamespaceOption {
                        pid: api::NamespaceMode::Container.into(),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        PodSpec { node, config, handler: handler() }
    }

    /// Changes what the kubelet would say.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut api::PodSandboxConfig)) -> PodSpec<'a> {
        change(&mut self.config);
        self
    }

    fn linux(&mut self) -> &mut api::LinuxPodSandboxConfig {
        self.config.linux.get_or_insert_default()
    }

    /// Another runtime handler than the one under test.
    #[must_use]
    pub fn handled_by(mut self, handler: &str) -> PodSpec<'a> {
        handler.clone_into(&mut self.handler);
        self
    }

    /// One pid namespace for all containers.
    #[must_use]
    pub fn shared_pids(mut self) -> PodSpec<'a> {
        let context = self.linux().security_context.get_or_insert_default();
        context.namespace_options.get_or_insert_default().pid = api::NamespaceMode::Pod.into();
        self
    }

    /// A port of the node that leads to one of the pod.
    #[must_use]
    pub fn port(mut self, host: i32, container: i32) -> PodSpec<'a> {
        let mapping = api::PortMapping { host_port: host, container_port: container, ..Default::default() };
        self.config.port_mappings.push(mapping);
        self
    }

    /// The sum of its containers' limits, as the kubelet tells it: bytes, and microseconds of CPU in each 100 ms.
    #[must_use]
    pub fn resources(mut self, memory: i64, quota: i64) -> PodSpec<'a> {
        self.linux().resources = Some(api::LinuxContainerResources {
            memory_limit_in_bytes: memory,
            cpu_quota: quota,
            cpu_period: 100_000,
            ..Default::default()
        });
        self
    }

    /// Makes it.
    ///
    /// # Panics
    /// With what the runtime said.
    pub fn run(self) -> Pod<'a> {
        self.try_run().unwrap_or_else(|e| panic!("RunPodSandbox: {e}"))
    }

    /// Makes it, or not.
    ///
    /// # Errors
    /// The runtime's; nothing is left then.
    ///
    /// # Panics
    /// When a directory or cgroup cannot be made.
    pub fn try_run(self) -> Result<Pod<'a>, Status> {
        let PodSpec { node, config, handler } = self;
        let uid = config.metadata.as_ref().map(|m| m.uid.clone()).unwrap_or_default();
        let dir = node.file("kubelet/pods").join(&uid);
        for dir in [&dir, Path::new(&config.log_directory)] {
            fs::create_dir_all(dir).unwrap_or_else(|e| panic!("cannot make {}: {e}", dir.display()));
        }
        let hosts = dir.join("etc-hosts");
        fs::write(&hosts, "127.0.0.1\tlocalhost\n").unwrap_or_else(|e| panic!("{}: {e}", hosts.display()));
        let cgroups = make_cgroups(node, &uid);
        let request = api::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler };
        match node.client().run_pod_sandbox(request) {
            Ok(answer) => Ok(Pod { node, id: answer.pod_sandbox_id, config, dir, cgroups }),
            Err(status) => {
                // What is left is found by [`Node::holds_nothing`].
                cgroups.iter().for_each(|dir| drop(try_to_remove_cgroup(dir)));
                Err(status)
            }
        }
    }
}

/// The pod's cgroup, which the kubelet makes before the pod, in every hierarchy.
fn make_cgroups(node: &Node, uid: &str) -> Vec<PathBuf> {
    let mut made = Vec::new();
    for parent in node.cgroup().dirs() {
        let dir = parent.join(format!("pod{uid}"));
        fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("cannot make {}: {e}", dir.display()));
        // An empty set lets no process in.
        for dir in [&parent, &dir] {
            for file in CPUSETS {
                let above = dir.parent().map(|above| above.join(file)).and_then(|file| fs::read_to_string(file).ok());
                if let Some(all) = above {
                    let file = dir.join(file);
                    fs::write(&file, all.trim()).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
                }
            }
        }
        made.push(dir);
    }
    made
}

/// As a kubelet does when the pod has ended.
///
/// # Panics
/// When something is left in it.
pub(crate) fn remove_cgroup(dir: &Path) {
    if let Err(last) = try_to_remove_cgroup(dir) {
        let held = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        panic!("the pod's cgroup {} cannot be removed: {last}; processes: {held:?}", dir.display());
    }
}

/// What is not empty stays busy; processes take a moment to go.
fn try_to_remove_cgroup(dir: &Path) -> std::io::Result<()> {
    let mut tried = fs::remove_dir(dir);
    for _ in 0..100 {
        if tried.is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
        tried = fs::remove_dir(dir);
    }
    tried
}

/// A pod.
pub struct Pod<'a> {
    node: &'a Node,
    id: String,
    config: api::PodSandboxConfig,
    dir: PathBuf,
    cgroups: Vec<PathBuf>,
}

impl<'a> Pod<'a> {
    /// What containerd calls it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its configuration.
    pub fn config(&self) -> &api::PodSandboxConfig {
        &self.config
    }

    /// Its node.
    pub fn node(&self) -> &'a Node {
        self.node
    }

    /// The interface.
    pub fn client(&self) -> &'a Client {
        self.node.client()
    }

    /// The kubelet's directory of it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its cgroup in every hierarchy of the host.
    pub fn cgroups(&self) -> &[PathBuf] {
        &self.cgroups
    }

    /// A container to be, of busybox.
    pub fn container(&self, name: &str) -> ContainerSpec<'_> {
        ContainerSpec::new(self, name)
    }

    /// What there is to tell of it.
    ///
    /// # Panics
    /// With what the runtime said.
    pub fn status(&self) -> api::PodSandboxStatus {
        let request = api::PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), verbose: false };
        let answer = self.client().pod_sandbox_status(request).unwrap_or_else(|e| panic!("PodSandboxStatus: {e}"));
        answer.status.unwrap_or_default()
    }

    /// Waits until the runtime tells that it ended.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn becomes_not_ready(&self, within: Duration) {
        wait::until(&format!("end of the pod {}", self.id), within, || {
            (self.status().state() == api::PodSandboxState::SandboxNotready).then_some(())
        });
    }

    /// Its address.
    pub fn ip(&self) -> String {
        self.status().network.unwrap_or_default().ip
    }

    /// `StopPodSandbox`.
    ///
    /// # Errors
    /// The runtime's.
    pub fn stop(&self) -> Result<(), Status> {
        let request = api::StopPodSandboxRequest { pod_sandbox_id: self.id.clone() };
        self.client().stop_pod_sandbox(request).map(drop)
    }

    /// `RemovePodSandbox`, alone.
    ///
    /// # Errors
    /// The runtime's.
    pub fn remove(&self) -> Result<(), Status> {
        let request = api::RemovePodSandboxRequest { pod_sandbox_id: self.id.clone() };
        self.client().remove_pod_sandbox(request).map(drop)
    }

    /// Stops and removes it, and its cgroup.
    ///
    /// # Panics
    /// With what the runtime said, or what is left in its cgroup.
    pub fn end(self) {
        self.stop().unwrap_or_else(|e| panic!("StopPodSandbox: {e}"));
        self.remove().unwrap_or_else(|e| panic!("RemovePodSandbox: {e}"));
        self.forget();
    }

    /// Removes the cgroup of a pod that was removed.
    ///
    /// # Panics
    /// When something is left in it.
    pub fn forget(self) {
        self.cgroups.iter().for_each(|dir| remove_cgroup(dir));
    }

    /// What it uses.
    ///
    /// # Panics
    /// With what the runtime said.
    pub fn stats(&self) -> api::LinuxPodSandboxStats {
        let request = api::PodSandboxStatsRequest { pod_sandbox_id: self.id.clone() };
        let answer = self.client().pod_sandbox_stats(request).unwrap_or_else(|e| panic!("PodSandboxStats: {e}"));
        answer.stats.and_then(|stats| stats.linux).unwrap_or_default()
    }

    /// Opens the way to a port of it, as `kubectl port-forward` does.
    ///
    /// # Panics
    /// With what the runtime said.
    pub fn forward(&self, port: u16) -> Forward {
        let request = api::PortForwardRequest { pod_sandbox_id: self.id.clone(), port: vec![i32::from(port)] };
        let answer = self.client().port_forward(request).unwrap_or_else(|e| panic!("PortForward: {e}"));
        Forward::open(&answer.url, port)
    }
}
