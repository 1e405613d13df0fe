//! The specs that CRI-O writes: what of them a runtime can tell a pod by.

use std::fs;
use std::path::{Path, PathBuf};

use kata_testkit::bundle::Bundle;
use kata_testkit::cmd::Cmd;
use kata_testkit::runtime::{Runtime, scratch};
use nix::mount::{MntFlags, umount2};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A pod's namespaces, pinned to files before any container is made, as `pinns` does.
pub struct Pinned {
    dir: TempDir,
    netns: String,
}

impl Pinned {
    pub fn new(name: &str) -> Pinned {
        let dir = scratch();
        let netns = format!("{name}-{}", std::process::id());
        Cmd::new("ip").args(["netns", "add", &netns]).ok();
        Cmd::new("ip").args(["-n", &netns, "link", "set", "lo", "up"]).ok();
        let pinned = Pinned { dir, netns };
        for kind in ["ipc", "uts"] {
            fs::write(pinned.file(kind), "").unwrap();
            Cmd::new("unshare").arg(format!("--{kind}={}", pinned.file(kind).display())).arg("true").ok();
        }
        pinned
    }

    fn file(&self, kind: &str) -> PathBuf {
        self.dir.path().join(kind)
    }

    fn namespaces(&self) -> Value {
        json!([
            { "type": "pid" },
            { "type": "mount" },
            { "type": "network", "path": format!("/var/run/netns/{}", self.netns) },
            { "type": "ipc", "path": self.file("ipc") },
            { "type": "uts", "path": self.file("uts") },
        ])
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        for kind in ["ipc", "uts"] {
            if let Err(e) = umount2(&self.file(kind), MntFlags::MNT_DETACH) {
                println!("cannot unmount the pinned {kind}: {e}");
            }
        }
        Cmd::new("ip").args(["netns", "delete", &self.netns]).run();
    }
}

fn bundle(runtime: &Runtime, pinned: &Pinned, kind: &str, id: &str, sandbox: &str) -> Bundle {
    Bundle::busybox(runtime).writable().with(|spec| {
        spec["linux"]["namespaces"] = pinned.namespaces();
        spec["hostname"] = json!("pod");
        spec["annotations"] = json!({
            "io.kubernetes.cri-o.ContainerType": kind,
            "io.kubernetes.cri-o.ContainerID": id,
            "io.kubernetes.cri-o.SandboxID": sandbox,
            "io.kubernetes.cri-o.Name": format!("k8s_{kind}_pod_test_{id}"),
            "io.kubernetes.cri-o.KubeName": "pod",
            "io.kubernetes.cri-o.Namespace": "test",
            "io.kubernetes.cri-o.Annotations": "{}",
            "io.kubernetes.pod.name": "pod",
            "io.kubernetes.pod.namespace": "test",
        });
        // As CRI-O does it for a pod of burstable quality.
        spec["process"]["oomScoreAdj"] = json!(0);
    })
}

/// The infra container: it waits, and stands for the pod.
pub fn sandbox(runtime: &Runtime, pinned: &Pinned, id: &str) -> Bundle {
    bundle(runtime, pinned, "sandbox", id, id).args(["sleep", "1000000"])
}

/// A container of the pod.
pub fn container(runtime: &Runtime, pinned: &Pinned, id: &str, sandbox: &str, script: &str) -> Bundle {
    bundle(runtime, pinned, "container", id, sandbox).sh(script)
}

/// What CRI-O writes for an exec: the container's process with another command.
pub fn process(bundle: &mut Bundle, dir: &Path, script: &str) -> PathBuf {
    let mut process = bundle.spec()["process"].clone();
    process["args"] = json!(["sh", "-c", script]);
    let file = dir.join("exec-process.json");
    fs::write(&file, process.to_string()).unwrap();
    file
}
