//! Pods through containerd's CRI plugin, driven as a kubelet drives it. The same tests run with runc, to see that they
//! are right: `KATA_TEST_ORACLE=runc`.

use std::thread;
use std::time::Duration;

use kata_testkit::leaks::Guard;
use kata_testkit::runtime::host_kernel;
use kata_testkit_cri::api::{self, ContainerState};
use kata_testkit_cri::client::Code::NotFound;
use kata_testkit_cri::node::is_kata;
use kata_testkit_cri::{Container, Node, Pod};

/// For what happens at once in a VM that runs, on a slow machine.
const SOON: Duration = Duration::from_secs(20);
/// A second that a process has to end by itself.
const GRACE: Duration = Duration::from_secs(1);
/// Sleeps until it is told to end, as a well-behaved service.
const SERVICE: &str = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.1; done";

fn service<'a>(pod: &'a Pod<'a>, name: &str) -> Container<'a> {
    let container = pod.container(name).sh(SERVICE).start();
    container.says("ready", SOON);
    container
}

/// How it ended: exit code and reason.
fn ended(container: &Container<'_>) -> (i32, String) {
    let status = container.ends(SOON);
    assert!(status.finished_at >= status.created_at, "{status:?}");
    (status.exit_code, status.reason)
}

#[test]
fn three_containers_share_localhost_hostname_and_ipc_and_nothing_else() {
    let _leaks = Guard::new();
    let node = Node::start();
    let dns = api::DnsConfig {
        servers: vec!["10.213.0.53".into(), "fd6b:6174:6100::53".into()],
        searches: vec!["test.svc.cluster.local".into(), "cluster.local".into()],
        options: vec!["ndots:5".into()],
    };
    let pod = node.pod("trio").with(|config| {
        config.dns_config = Some(dns);
        let sysctls = [("net.ipv4.ip_unprivileged_port_start", "81"), ("kernel.shm_rmid_forced", "1")];
        let linux = config.linux.get_or_insert_default();
        linux.sysctls = sysctls.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    });
    let pod = pod.run();
    assert_eq!(pod.status().state(), api::PodSandboxState::SandboxReady);
    let serve = "mkdir /tmp/www; echo pong > /tmp/www/ping; exec httpd -f -p 127.0.0.1:8080 -h /tmp/www";
    let server = pod.container("server").sh(serve).start();
    let (one, two) = (service(&pod, "one"), service(&pod, "two"));
    let all = [&server, &one, &two];

    for container in all {
        assert_eq!(container.status().state(), ContainerState::ContainerRunning);
        assert_eq!(container.out("hostname"), "trio");
        assert_eq!(container.out("cat /etc/hostname"), "trio");
        let resolv = "search test.svc.cluster.local cluster.local\nnameserver 10.213.0.53\n\
                      nameserver fd6b:6174:6100::53\noptions ndots:5";
        assert_eq!(container.out("cat /etc/resolv.conf"), resolv);
        assert_eq!(container.out("cat /etc/hosts"), "127.0.0.1\tlocalhost");
        let parameters = "cd /proc/sys; cat net/ipv4/ip_unprivileged_port_start kernel/shm_rmid_forced";
        assert_eq!(container.out(parameters), "81\n1");
    }
    let kernel = one.out("uname -r");
    assert_eq!(kernel != host_kernel(), is_kata(), "{kernel}");

    // One network: localhost, and the pod's address, which the engine knows.
    assert_eq!(two.out("until wget -q -O - http://127.0.0.1:8080/ping; do sleep 0.1; done"), "pong");
    let address = pod.ip();
    assert!(!address.is_empty());
    for container in all {
        assert!(container.out("ip -4 -o addr show dev eth0").contains(&format!("{address}/24")));
    }

    // One IPC namespace and one /dev/shm of 64 MiB.
    let spaces = |container: &Container<'_>, of: &str| container.out(&format!("readlink /proc/self/ns/{of}"));
    for kind in ["ipc", "uts", "net"] {
        assert_eq!(spaces(&one, kind), spaces(&two, kind), "{kind}");
    }
    for kind in ["mnt", "pid"] {
        assert_ne!(spaces(&one, kind), spaces(&two, kind), "{kind}");
    }
    one.out("echo shared > /dev/shm/word");
    assert_eq!(two.out("cat /dev/shm/word"), "shared");
    let size = two.out("df -k /dev/shm | tail -n 1").split_whitespace().nth(1).map(str::to_owned);
    assert_eq!(size.as_deref(), Some("65536"));

    // What is each container's own: its processes, its file system.
    assert_eq!(one.out("cat /proc/1/cmdline | tr '\\0' ' '").split(' ').next(), Some("sh"));
    assert!(!two.out("ps").contains("httpd"), "processes of another container are seen: {}", two.out("ps"));
    one.out("echo mine > /tmp/mine");
    assert_ne!(two.exec("test -e /tmp/mine").code, 0);

    // Each ends by itself, and the others go on.
    one.stop(GRACE * 10).unwrap();
    assert_eq!(ended(&one), (0, "Completed".into()));
    assert_eq!(two.out("echo alive"), "alive");
    // It is the first process of its pid namespace, and has no handler: only SIGKILL ends it.
    server.stop(GRACE).unwrap();
    assert_eq!(ended(&server), (137, "Error".into()));
    pod.end();
    node.holds_nothing();
}

#[test]
fn init_containers_run_one_after_the_other_and_a_container_is_replaced_in_place() {
    let _leaks = Guard::new();
    let node = Node::start();
    let pod = node.pod("steps").run();
    let volume = kata_testkit_cri::volume::empty_dir(&pod, "work");
    for step in ["a", "b"] {
        let init =
            pod.container(step).sh(&format!("echo {step} >> /data/steps; echo {step} said")).bind(&volume, "/data");
        let init = init.start();
        assert_eq!(ended(&init), (0, "Completed".into()));
        assert_eq!(init.log().stdout, format!("{step} said\n"));
        // A kubelet removes them when it likes; one before, one after the main container.
        if step == "a" {
            init.remove().unwrap();
        }
    }
    let failed = pod.container("failed").sh("echo why > /dev/termination-log; exit 3").start();
    assert_eq!(ended(&failed), (3, "Error".into()));
    assert_eq!(failed.last_words(), "why\n");

    // The pod's only running container comes and goes, three times in three ways, and the pod stays.
    let sandbox = pod.id().to_owned();
    for attempt in 0..3 {
        let main = pod.container("main").attempt(attempt).sh(&format!("cat /data/steps; {SERVICE}"));
        let main = main.bind(&volume, "/data").start();
        main.says("ready", SOON);
        assert_eq!(main.log().stdout, "a\nb\nready\n");
        assert_eq!(main.out("hostname"), "steps");
        match attempt {
            0 => main.stop(GRACE * 10).unwrap(),
            1 => drop(main.try_exec(&["sh", "-c", "kill -TERM 1"], 10)),
            // Removed while it runs: the runtime kills it.
            _ => {}
        }
        if attempt < 2 {
            assert_eq!(ended(&main), (0, "Completed".into()));
        }
        main.remove().unwrap();
        assert_eq!(pod.status().state(), api::PodSandboxState::SandboxReady, "the sandbox {sandbox}");
    }
    // A container that was made and never started, and one whose program does not exist.
    pod.container("never").sh("true").create().remove().unwrap();
    let absent = pod.container("absent").with(|config| config.command = vec!["no-such-program".into()]).create();
    let refused = absent.try_start().expect_err("a program that does not exist");
    assert!(refused.message().contains("executable file not found in $PATH"), "{refused}");
    assert_eq!(ended(&absent), (128, "StartError".into()));
    absent.remove().unwrap();
    assert_eq!(service(&pod, "after").out("echo still here"), "still here");
    pod.end();
    node.holds_nothing();
}

#[test]
fn a_shared_pid_namespace_is_the_pods() {
    let _leaks = Guard::new();
    let node = Node::start();
    let pod = node.pod("pids").shared_pids().run();
    let (one, two) = (service(&pod, "one"), service(&pod, "two"));
    let spaces = |container: &Container<'_>| container.out("readlink /proc/self/ns/pid");
    assert_eq!(spaces(&one), spaces(&two));
    // The first process is nobody's container.
    assert!(!one.out("cat /proc/1/cmdline | tr '\\0' ' '").contains("echo ready"));
    assert_eq!(two.out("ps -o args | grep -c '^sh -c trap'"), "2");
    // One sees, signals, and looks into the file system of the other.
    one.out("echo mine > /tmp/mine; sleep 2000 > /dev/null 2>&1 &");
    let pid = "$(ps -o pid,args | awk '/sleep [2]000/ { print $1 }')";
    assert_eq!(two.out(&format!("cat /proc/{pid}/root/tmp/mine")), "mine");
    two.out(&format!("kill -KILL {pid}"));
    assert_ne!(one.exec("ps -o args | grep 'sleep [2]000'").code, 0);
    // A container's end takes all its processes along, as it would with a namespace of its own.
    one.out("(sleep 3000 & sleep 3001 &) > /dev/null 2>&1");
    one.stop(GRACE * 10).unwrap();
    assert_eq!(ended(&one), (0, "Completed".into()));
    one.remove().unwrap();
    kata_testkit::wait::until("end of the stopped container's processes", SOON, || {
        (!two.out("ps -o args").contains("sleep 300")).then_some(())
    });
    let three = service(&pod, "three");
    assert_eq!(spaces(&three), spaces(&two));
    pod.end();
    node.holds_nothing();
}

/// As `StopPodSandbox` and `RemovePodSandbox` are asked for by a kubelet that has forgotten what it asked for.
#[test]
fn stopping_and_removing_are_idempotent_in_every_order_and_state() {
    let _leaks = Guard::new();
    let node = Node::start();

    let pod = node.pod("often").run();
    let main = service(&pod, "main");
    let created = pod.container("created").sh("true").create();
    for _ in 0..2 {
        pod.stop().unwrap();
        assert_eq!(pod.status().state(), api::PodSandboxState::SandboxNotready);
    }
    assert_eq!(main.status().state(), ContainerState::ContainerExited);
    for _ in 0..2 {
        main.stop(GRACE).unwrap();
        created.stop(GRACE).unwrap();
    }
    assert!(pod.container("late").sh("true").try_create().is_err(), "a container in a pod that was stopped");
    for _ in 0..2 {
        main.remove().unwrap();
        created.remove().unwrap();
    }
    for _ in 0..2 {
        pod.remove().unwrap();
    }
    // What containerd has forgotten it says so of, which a kubelet takes for done.
    assert_eq!(pod.stop().unwrap_err().code(), NotFound);
    pod.forget();
    node.holds_nothing();

    // Removed while it runs, with a container in each state.
    let pod = node.pod("hard").run();
    service(&pod, "running");
    pod.container("created").sh("true").create();
    ended(&pod.container("exited").sh("exit 4").start());
    pod.remove().unwrap();
    pod.remove().unwrap();
    pod.forget();
    node.holds_nothing();

    // An empty one; and one that never was.
    let pod = node.pod("empty").run();
    pod.remove().unwrap();
    pod.forget();
    let never = "0123456789abcdef";
    let stopped = node.client().stop_pod_sandbox(api::StopPodSandboxRequest { pod_sandbox_id: never.into() });
    assert_eq!(stopped.unwrap_err().code(), NotFound);
    node.client().remove_pod_sandbox(api::RemovePodSandboxRequest { pod_sandbox_id: never.into() }).unwrap();
    node.holds_nothing();
}

#[test]
fn pods_outlive_their_containerd() {
    let _leaks = Guard::new();
    let mut node = Node::start();
    let (pod_id, main_id, short_id) = {
        let pod = node.pod("outlives").run();
        let main = service(&pod, "main");
        let short = pod.container("short").sh("echo begun; sleep 2; exit 5").start();
        short.says("begun", SOON);
        let ids = (pod.id().to_owned(), main.id().to_owned(), short.id().to_owned());
        // Without the destructor's help: containerd dies in the middle of all this.
        std::mem::forget(pod);
        ids
    };
    node.crash();
    let status = |id: &str| {
        let request = api::ContainerStatusRequest { container_id: id.into(), verbose: false };
        node.client().container_status(request).unwrap().status.unwrap_or_default()
    };
    let pods = node.client().list_pod_sandbox(api::ListPodSandboxRequest { filter: None }).unwrap().items;
    assert!(
        pods.len() == 1 && pods[0].id == pod_id && pods[0].state() == api::PodSandboxState::SandboxReady,
        "{pods:?}"
    );
    assert_eq!(status(&main_id).state(), ContainerState::ContainerRunning);
    let exec = |cmd: &str| {
        let cmd = ["sh", "-c", cmd].map(str::to_owned).to_vec();
        node.client().exec_sync(api::ExecSyncRequest { container_id: main_id.clone(), cmd, timeout: 10 }).unwrap()
    };
    assert_eq!((exec("echo in; exit 4").exit_code, exec("echo in").stdout), (4, b"in\n".to_vec()));
    // One that ended while nobody looked, or after.
    let short = kata_testkit::wait::until("end of the short container", SOON, || {
        let status = status(&short_id);
        (status.state() == ContainerState::ContainerExited).then_some(status)
    });
    assert_eq!(short.exit_code, 5);
    let stop = api::StopContainerRequest { container_id: main_id.clone(), timeout: 10 };
    node.client().stop_container(stop).unwrap();
    assert_eq!(status(&main_id).exit_code, 0);
    node.client().stop_pod_sandbox(api::StopPodSandboxRequest { pod_sandbox_id: pod_id.clone() }).unwrap();
    node.client().remove_pod_sandbox(api::RemovePodSandboxRequest { pod_sandbox_id: pod_id }).unwrap();
    node.remove_pod_cgroups();
    node.holds_nothing();
}

#[test]
fn twenty_pods_at_once() {
    const PODS: usize = 20;
    let _leaks = Guard::new();
    let node = Node::start();
    let begin = std::time::Instant::now();
    let addresses: Vec<String> = thread::scope(|scope| {
        let one = |n: usize| {
            let pod = node.pod(&format!("pod{n}")).run();
            let main = service(&pod, "main");
            assert_eq!(main.out("hostname"), format!("pod{n}"));
            pod.ip()
        };
        let pods: Vec<_> = (0..PODS).map(|n| scope.spawn(move || one(n))).collect();
        pods.into_iter().map(|pod| pod.join().unwrap()).collect()
    });
    println!("{PODS} pods run after {:.1} s", begin.elapsed().as_secs_f32());
    let mut distinct = addresses.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), PODS, "{addresses:?}");
    let pods = node.client().list_pod_sandbox(api::ListPodSandboxRequest { filter: None }).unwrap().items;
    assert!(pods.len() == PODS && pods.iter().all(|pod| pod.state() == api::PodSandboxState::SandboxReady), "{pods:?}");
    let begin = std::time::Instant::now();
    thread::scope(|scope| {
        for pod in &pods {
            let client = node.client();
            scope.spawn(move || {
                client.stop_pod_sandbox(api::StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() }).unwrap();
                client.remove_pod_sandbox(api::RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() }).unwrap();
            });
        }
    });
    println!("{PODS} pods are gone after {:.1} s", begin.elapsed().as_secs_f32());
    node.remove_pod_cgroups();
    node.holds_nothing();
}
