//! A later containerd's CRI plugin: the same pods (see `cri_pods.rs` for the oracle).

use std::time::Duration;

use kata_testkit::engine::Release;
use kata_testkit::leaks::Guard;
use kata_testkit::runtime::{Sandbox, kill9};
use kata_testkit_cri::api::{self, ContainerState};
use kata_testkit_cri::node::is_kata;
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

/// runc's shim does not serve it.
macro_rules! by_the_sandbox_api {
    () => {{
        if !is_kata() {
            println!("the oracle has no Sandbox API");
            return;
        }
        Node::of(Release::Newer, Some("shim"))
    }};
}

#[test]
fn a_pod_by_the_sandbox_api() {
    let _leaks = Guard::new();
    lives(by_the_sandbox_api!());
}

#[test]
fn what_the_sandbox_api_says_of_a_pod_is_what_its_containers_have() {
    let _leaks = Guard::new();
    let node = by_the_sandbox_api!();
    {
        let dns = api::DnsConfig {
            servers: vec!["10.96.0.10".into()],
            searches: vec!["test.svc.cluster.local".into()],
            options: vec!["ndots:5".into()],
        };
        let spec = node.pod("told").shared_pids().with(|config| {
            config.dns_config = Some(dns);
            let linux = config.linux.get_or_insert_default();
            linux.sysctls = [("net.ipv4.ip_unprivileged_port_start".to_owned(), "81".to_owned())].into();
        });
        let pod = spec.run();
        let (one, two) = (service(&pod, "one", 0), service(&pod, "two", 0));
        assert_eq!(one.out("cat /etc/hostname"), "told");
        let resolv_conf = "search test.svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5";
        assert_eq!(two.out("cat /etc/resolv.conf"), resolv_conf);
        assert_eq!(two.out("cat /proc/sys/net/ipv4/ip_unprivileged_port_start"), "81");
        // 64 MiB, as containerd's specs say where they leave it to the sandbox.
        assert_eq!(one.out("df -k /dev/shm | awk 'END { print $2 }'"), "65536");
        // The pid namespace is the pod's: each sees the other's processes.
        assert_eq!(one.out("ps | grep -c 'echo read[y]'"), "2");
        let request = api::PodSandboxStatusRequest { pod_sandbox_id: pod.id().into(), verbose: true };
        let status = node.client().pod_sandbox_status(request).unwrap();
        assert!(status.info.get("machine").is_some_and(|text| text.contains("vmmPid")), "{:?}", status.info);
        let request = api::PodSandboxStatsRequest { pod_sandbox_id: pod.id().into() };
        let stats = node.client().pod_sandbox_stats(request).unwrap().stats.unwrap_or_default();
        let cpu = stats.linux.unwrap_or_default().cpu.unwrap_or_default();
        assert!(cpu.usage_core_nano_seconds.is_some_and(|used| used.value > 0));
        pod.end();
    }
    node.holds_nothing();
}

#[test]
fn the_sandbox_api_tells_the_truth_of_pods_that_cannot_be_made_and_of_those_that_died() {
    let _leaks = Guard::new();
    let node = by_the_sandbox_api!();
    {
        // (containerd 2.1 itself crashes when it is asked for a pod in the node's network in this way.)
        let refused = node.pod("above").with(|config| {
            config.linux.get_or_insert_default().cgroup_parent = "/../above".into();
        });
        let refused = refused.try_run().map(|_| ()).unwrap_err();
        assert!(refused.message().contains("must not contain"), "{refused}");
        node.holds_nothing();
    }
    for part in ["vm", "fs", "daemon"] {
        let pod = node.pod(&format!("lost-{part}")).run();
        let one = service(&pod, "one", 0);
        kill9(Sandbox::find(pod.id()).pid(part));
        assert_ne!(one.ends(SOON).exit_code, 0, "after kill -9 of {part}");
        pod.becomes_not_ready(SOON);
        // containerd may still write one down, which then cannot be started.
        let late = pod.container("late").sh("true").try_create().and_then(|late| late.try_start());
        assert!(late.is_err(), "a container was started in a pod that is gone");
        pod.end();
    }
    node.holds_nothing();
}
