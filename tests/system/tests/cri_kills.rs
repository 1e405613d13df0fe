//! kill -9 of each process of a pod's sandbox, under containerd's CRI plugin: what is told is true, and `StopPodSandbox` and
//! `RemovePodSandbox` leave nothing. These are about our own processes: the oracle has none of them.

use std::path::PathBuf;
use std::time::Duration;

use kata_testkit::leaks::Guard;
use kata_testkit::runtime::{Sandbox, kill9};
use kata_testkit::wait;
use kata_testkit_cri::api::{self, ContainerState};
use kata_testkit_cri::node::is_kata;
use kata_testkit_cri::volume::{Mounted, Projected};
use kata_testkit_cri::{Container, Node, Pod};

/// For what happens at once in a VM that runs, on a slow machine.
const SOON: Duration = Duration::from_secs(20);
/// What was killed must be told within this.
const TOLD_WITHIN: Duration = Duration::from_secs(10);
/// Of processes that went down with their sandbox (128 and SIGKILL).
const LOST: i32 = 137;
/// containerd's for a task whose shim it cannot ask (its `UnknownExitStatus`).
const UNKNOWN: i32 = 255;
/// The processes of a sandbox, as its state file names them.
const PARTS: [&str; 3] = ["vm", "fs", "daemon"];

fn idle<'a>(pod: &'a Pod<'a>, name: &str) -> Container<'a> {
    let container = pod.container(name).sh("echo ready; exec sleep 10000").start();
    container.says("ready", SOON);
    container
}

macro_rules! only_ours {
    () => {
        if !is_kata() {
            println!("the oracle has no such processes");
            return;
        }
    };
}

#[test]
fn every_container_of_the_pod_is_told_as_lost() {
    only_ours!();
    let _leaks = Guard::new();
    let node = Node::start();
    for part in PARTS {
        let pod = node.pod(&format!("lost-{part}")).port(28_090, 80).run();
        let config = Projected::new(&pod, "configmap", "settings", &[("a", "1")]);
        let memory = Mounted::memory(&pod, "memory", 1 << 20);
        let volumes = pod.container("volumes").bind_read_only(config.path(), "/c").bind(memory.path(), "/m");
        let volumes = volumes.sh("echo ready; exec sleep 10000").start();
        volumes.says("ready", SOON);
        let (one, two) = (idle(&pod, "one"), idle(&pod, "two"));
        let created = pod.container("created").sh("true").create();
        let exec = std::thread::scope(|scope| {
            let exec = scope.spawn(|| one.try_exec(&["sleep", "1000"], 60));
            std::thread::sleep(Duration::from_millis(300));
            kill9(Sandbox::find(pod.id()).pid(part));
            exec.join().unwrap()
        });
        // The exec's end is an error or a code that says so; never 0, never a hang.
        assert!(exec.as_ref().map_or(true, |exec| exec.code != 0), "{exec:?}");
        for container in [&one, &two, &volumes] {
            let status = container.ends(TOLD_WITHIN);
            // Of a shim that is gone containerd may say its own word for "unknown", whatever its clean-up finds out later.
            let code = status.exit_code;
            assert!(code == LOST || part == "daemon" && code == UNKNOWN, "after kill -9 of {part}: {status:?}");
            assert_eq!(status.reason, "Error", "after kill -9 of {part}: {status:?}");
        }
        pod.becomes_not_ready(TOLD_WITHIN);
        assert!(created.try_start().is_err(), "a container was started in a pod that is gone");
        assert!(one.try_exec(&["true"], 10).is_err(), "a command ran in a pod that is gone");
        assert!(pod.container("late").sh("true").try_create().is_err(), "a container was made in a pod that is gone");
        // A kubelet removes containers one by one, then the pod.
        if part == "vm" {
            for container in [&one, &two, &volumes, &created] {
                container.remove().unwrap_or_else(|e| panic!("RemoveContainer after kill -9 of {part}: {e}"));
            }
        }
        pod.end();
        drop(memory);
        node.holds_nothing();
    }
}

#[test]
fn while_a_pod_is_being_made() {
    only_ours!();
    let _leaks = Guard::new();
    let node = Node::start();
    for after in [0, 100, 300, 700] {
        for part in PARTS {
            let name = format!("early-{part}-{after}");
            let before = sandboxes();
            let made = std::thread::scope(|scope| {
                let made = scope.spawn(|| node.pod(&name).try_run());
                let pid = wait::until(&format!("{part} of the new sandbox"), SOON, || new_part(&before, part));
                std::thread::sleep(Duration::from_millis(after));
                kill9(pid);
                made.join().unwrap()
            });
            match made {
                Ok(pod) => {
                    pod.becomes_not_ready(TOLD_WITHIN);
                    pod.end();
                }
                Err(refused) => {
                    assert!(!refused.message().is_empty());
                }
            }
            // What failed is not always removed by containerd at once.
            for left in node.client().list_pod_sandbox(api::ListPodSandboxRequest { filter: None }).unwrap().items {
                let id = || left.id.clone();
                node.client().stop_pod_sandbox(api::StopPodSandboxRequest { pod_sandbox_id: id() }).unwrap();
                node.client().remove_pod_sandbox(api::RemovePodSandboxRequest { pod_sandbox_id: id() }).unwrap();
            }
            // Neither is a shim that died after it had told its address and before it was connected to, a moment of about a
            // millisecond: containerd 1.6 never asks for its clean-up. The next sandbox does that.
            if sandboxes().iter().any(|dir| !before.contains(dir)) {
                println!("forgotten: {part} after {after} ms");
                node.pod("next").run().end();
            }
            let left: Vec<PathBuf> = sandboxes().into_iter().filter(|dir| !before.contains(dir)).collect();
            assert!(left.is_empty(), "{left:?}");
            node.remove_pod_cgroups();
            node.holds_nothing();
        }
    }
}

/// The directories of all sandboxes: also of those in the pool, whose names tell them apart.
fn sandboxes() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/run/kata").into_iter().flatten().flatten();
    // One that has given its name up is about to go.
    entries.filter(|e| !e.file_name().as_encoded_bytes().starts_with(b".")).map(|e| e.path()).collect()
}

/// The pid of this part of a sandbox that was not there before and has a pod's name.
fn new_part(before: &[PathBuf], part: &str) -> Option<i32> {
    sandboxes().into_iter().filter(|dir| !before.contains(dir)).find_map(|dir| {
        let state: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("state.json")).ok()?).ok()?;
        state["id"].as_str().filter(|id| id.len() == 64)?;
        i32::try_from(state[part]["pid"].as_i64()?).ok()
    })
}

#[test]
fn while_containerd_is_away() {
    only_ours!();
    let _leaks = Guard::new();
    let mut node = Node::start();
    for part in PARTS {
        let (pod, main) = {
            let pod = node.pod(&format!("away-{part}")).run();
            let main = idle(&pod, "main");
            (pod.id().to_owned(), main.id().to_owned())
        };
        node.crash_and(|| kill9(Sandbox::find(&pod).pid(part)));
        let client = node.client();
        let status = wait::until("end of the container", TOLD_WITHIN, || {
            let request = api::ContainerStatusRequest { container_id: main.clone(), verbose: false };
            let status = client.container_status(request).unwrap().status.unwrap_or_default();
            (status.state() == ContainerState::ContainerExited).then_some(status)
        });
        // Whether containerd still finds somebody to ask depends on who died.
        assert!(status.exit_code != 0, "{status:?}");
        let id = || pod.clone();
        client.stop_pod_sandbox(api::StopPodSandboxRequest { pod_sandbox_id: id() }).unwrap();
        client.remove_pod_sandbox(api::RemovePodSandboxRequest { pod_sandbox_id: id() }).unwrap();
        node.remove_pod_cgroups();
        node.holds_nothing();
    }
}
