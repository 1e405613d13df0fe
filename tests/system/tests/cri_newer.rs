//! A later containerd's CRI plugin: the same pods (see `cri_pods.rs` for the oracle).

use std::time::Duration;

use kata_testkit::engine::Release;
use kata_testkit::leaks::Guard;
use kata_testkit_cri::api::{self, ContainerState};
use kata_testkit_cri::{Container, Node, Pod};

/// For what happens at once in a VM that runs, on a slow machine.
const SOON: Duration = Duration::from_secs(20);

fn service<'a>(pod: &'a Pod<'a>, name: &str, attempt: u32) -> Container<'a> {
    let script = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.1; done";
    let container = pod.container(name).attempt(attempt).sh(script).start();
    container.says("ready", SOON);
    container
}

/// A pod's life: containers that share and are replaced, streams, a crash of containerd in the middle, statistics, the end.
fn lives(mut node: Node) {
    let ids = {
        let pod = node.pod("newer").run();
        assert_eq!(pod.status().state(), api::PodSandboxState::SandboxReady);
        assert!(pod.ip().starts_with("10.213.0."), "{}", pod.ip());
        let (one, two) = (service(&pod, "one", 0), service(&pod, "two", 0));
        one.out("echo shared > /dev/shm/word");
        assert_eq!(two.out("cat /dev/shm/word; hostname"), "shared\nnewer");
        one.stop(SOON).unwrap();
        assert_eq!(one.ends(SOON).exit_code, 0);
        one.remove().unwrap();
        let one = service(&pod, "one", 1);
        assert_eq!(one.out("cat /dev/shm/word"), "shared");
        let exec = one.exec_with_streams(&["sh", "-c", "wc -c; exit 3"], false);
        exec.write(b"12345");
        exec.close_stdin();
        let ended = exec.end(SOON);
        assert_eq!((ended.code, ended.stdout.trim_ascii()), (Some(3), &b"5"[..]));
        let cpu = one.stats().cpu.unwrap_or_default().usage_core_nano_seconds.unwrap_or_default();
        assert!(cpu.value > 0);
        (pod.id().to_owned(), one.id().to_owned())
    };
    node.crash();
    let (pod, one) = ids;
    let client = node.client();
    let request = api::ContainerStatusRequest { container_id: one.clone(), verbose: false };
    let status = client.container_status(request).unwrap().status.unwrap_or_default();
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    let cmd = ["sh", "-c", "exit 4"].map(str::to_owned).to_vec();
    let done = client.exec_sync(api::ExecSyncRequest { container_id: one, cmd, timeout: 20 }).unwrap();
    assert_eq!(done.exit_code, 4);
    for _ in 0..2 {
        client.stop_pod_sandbox(api::StopPodSandboxRequest { pod_sandbox_id: pod.clone() }).unwrap();
    }
    for _ in 0..2 {
        client.remove_pod_sandbox(api::RemovePodSandboxRequest { pod_sandbox_id: pod.clone() }).unwrap();
    }
    node.remove_pod_cgroups();
    node.holds_nothing();
}

#[test]
fn a_pod_with_a_pause_container() {
    let _leaks = Guard::new();
    lives(Node::of(Release::Newer, None));
}
