//! Limits, their changes, and statistics of pods (see `cri_pods.rs` for the oracle).

use std::net::TcpStream;
use std::time::Duration;

use kata_testkit::leaks::Guard;
use kata_testkit::wait;
use kata_testkit_cri::api;
use kata_testkit_cri::node::is_kata;
use kata_testkit_cri::{Container, Node, Pod};

/// For what happens at once in a VM that runs, on a slow machine.
const SOON: Duration = Duration::from_secs(20);
const MIB: i64 = 1 << 20;

fn limited<'a>(pod: &'a Pod<'a>, name: &str, memory: i64, quota: i64) -> Container<'a> {
    let container = pod.container(name).sh("echo ready; exec sleep 10000").limits(|limits| {
        limits.memory_limit_in_bytes = memory;
        limits.cpu_quota = quota;
        limits.cpu_period = 100_000;
        limits.cpu_shares = 512;
    });
    let container = container.start();
    container.says("ready", SOON);
    container
}

/// What the container's own cgroup says: bytes, and microseconds in each 100 ms. A guest has version 2.
fn in_cgroup(container: &Container<'_>) -> (i64, i64) {
    let script = "cd /sys/fs/cgroup; if [ -e memory.max ]; then cat memory.max; cut -d ' ' -f 1 cpu.max; \
                  else cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us; fi";
    let text = container.out(script);
    let mut numbers = text.lines().map(|line| line.parse().unwrap_or_else(|e| panic!("{line:?}: {e}")));
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// Touches so many MiB at once.
fn touch(container: &Container<'_>, mib: i64) -> i32 {
    container.try_exec(&["dd", "if=/dev/zero", "of=/dev/null", "count=1", &format!("bs={mib}M")], 60).unwrap().code
}

#[test]
fn limits_hold_and_can_be_changed_while_the_container_runs() {
    let _leaks = Guard::new();
    let node = Node::start();
    let pod = node.pod("limits").resources(160 * MIB, 70_000).run();
    let main = limited(&pod, "main", 96 * MIB, 50_000);
    let other = limited(&pod, "other", 64 * MIB, 20_000);
    assert_eq!(in_cgroup(&main), (96 * MIB, 50_000));
    assert_eq!(in_cgroup(&other), (64 * MIB, 20_000));
    assert_eq!(touch(&main, 48), 0);

    let update = |memory: i64, quota: i64| api::LinuxContainerResources {
        memory_limit_in_bytes: memory,
        cpu_quota: quota,
        cpu_period: 100_000,
        cpu_shares: 1024,
        ..Default::default()
    };
    main.update(update(128 * MIB, 80_000)).unwrap();
    assert_eq!(in_cgroup(&main), (128 * MIB, 80_000));
    assert_eq!(in_cgroup(&other), (64 * MIB, 20_000), "the other container's limits");
    let told = main.status().resources.unwrap_or_default().linux.unwrap_or_default();
    assert_eq!((told.memory_limit_in_bytes, told.cpu_quota), (128 * MIB, 80_000));
    // Far beyond what the pod had when it began: the machine must have grown to hold it.
    main.update(update(768 * MIB, 200_000)).unwrap();
    assert_eq!(in_cgroup(&main), (768 * MIB, 200_000));
    assert_eq!(touch(&main, 512), 0, "512 MiB of 768");
    assert_eq!(main.out("nproc"), "2");
    // And back; what is in use does not vanish.
    main.update(update(64 * MIB, 30_000)).unwrap();
    assert_eq!(in_cgroup(&main), (64 * MIB, 30_000));
    assert_eq!(main.status().state(), api::ContainerState::ContainerRunning);

    // The next container brings its own memory, and takes it along.
    let big = limited(&pod, "big", 640 * MIB, 0);
    assert_eq!(touch(&big, 400), 0);
    big.remove().unwrap();
    assert_eq!(touch(&other, 32), 0);
    pod.end();
    node.holds_nothing();
}

#[test]
fn a_container_that_takes_too_much_memory_is_told_as_killed_for_it() {
    let _leaks = Guard::new();
    let node = Node::start();
    let pod = node.pod("greedy").run();
    let other = limited(&pod, "other", 64 * MIB, 0);
    let greedy = pod.container("greedy").sh("echo begun; dd if=/dev/zero of=/dev/null bs=200M count=1; exit $?");
    let greedy = greedy.limits(|limits| limits.memory_limit_in_bytes = 32 * MIB).start();
    let status = greedy.ends(SOON);
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{status:?}");
    // An exec that is killed does not end its container.
    assert_eq!(touch(&other, 200), 137);
    assert_eq!(other.status().state(), api::ContainerState::ContainerRunning);
    assert_eq!(other.out("echo alive"), "alive");
    pod.end();
    node.holds_nothing();
}

fn value(of: Option<&api::UInt64Value>) -> u64 {
    of.map_or(0, |of| of.value)
}

#[test]
fn statistics_of_containers_and_pods_tell_what_they_use() {
    let _leaks = Guard::new();
    let node = Node::start();
    let pod = node.pod("stats").run();
    let main = limited(&pod, "main", 128 * MIB, 0);
    let idle = limited(&pod, "idle", 64 * MIB, 0);
    main.out("mkdir /tmp/www; dd if=/dev/zero of=/tmp/www/big bs=1M count=3 2> /dev/null; httpd -p 80 -h /tmp/www");
    let cpu =
        |stats: &api::ContainerStats| value(stats.cpu.as_ref().and_then(|cpu| cpu.usage_core_nano_seconds.as_ref()));
    let before = main.stats();
    main.out("end=$(($(date +%s) + 2)); while [ $(date +%s) -lt $end ]; do :; done");
    let after = main.stats();
    // Most of two seconds; the rest went to the machine's own work.
    let used = Duration::from_nanos(cpu(&after) - cpu(&before));
    assert!(used > Duration::from_millis(500) && used < Duration::from_secs(8), "{used:?}");
    assert!(cpu(&idle.stats()) < cpu(&after), "the idle container used more");
    let memory = after.memory.unwrap_or_default();
    let (set, usage) = (value(memory.working_set_bytes.as_ref()), value(memory.usage_bytes.as_ref()));
    assert!(set > 0 && usage >= set && usage <= (128 * MIB).unsigned_abs(), "{memory:?}");
    // Of its limit, what it has not taken.
    let available = value(memory.available_bytes.as_ref());
    assert!(available > 0 && available + set <= (128 * MIB).unsigned_abs(), "{memory:?}");
    assert!(value(memory.page_faults.as_ref()) > 0, "{memory:?}");
    assert_eq!(after.attributes.as_ref().map(|of| of.id.as_str()), Some(main.id()));

    // The same, of all containers of the pod.
    let filter = api::ContainerStatsFilter { pod_sandbox_id: pod.id().into(), ..Default::default() };
    let request = api::ListContainerStatsRequest { filter: Some(filter) };
    let all = node.client().list_container_stats(request).unwrap().stats;
    let mut ids: Vec<&str> = all.iter().filter_map(|stats| Some(stats.attributes.as_ref()?.id.as_str())).collect();
    ids.sort_unstable();
    let mut wanted = [main.id(), idle.id()];
    wanted.sort_unstable();
    assert_eq!(ids, wanted);
    assert!(all.iter().all(|stats| cpu(stats) > 0), "{all:?}");
    // containerd looks at the size of the writable layer once in a while.
    wait::until("size of the writable layer", SOON, || {
        let layer = main.stats().writable_layer?;
        (value(layer.used_bytes.as_ref()) >= 3 << 20 && value(layer.inodes_used.as_ref()) > 0).then_some(())
    });

    let before = pod.stats();
    for _ in 0..3 {
        let answer = get(&pod.ip(), "big");
        assert!(answer.len() > 3 << 20, "{} bytes", answer.len());
    }
    let after = pod.stats();
    let network = |stats: &api::LinuxPodSandboxStats| {
        let interface = stats.network.clone().unwrap_or_default().default_interface.unwrap_or_default();
        assert_eq!(interface.name, "eth0");
        (value(interface.rx_bytes.as_ref()), value(interface.tx_bytes.as_ref()))
    };
    let ((rx0, tx0), (rx1, tx1)) = (network(&before), network(&after));
    assert!(tx1 - tx0 > 9 << 20 && tx1 - tx0 < 12 << 20, "sent: {}", tx1 - tx0);
    assert!(rx1 > rx0 && rx1 - rx0 < 2 << 20, "received: {}", rx1 - rx0);
    let memory = after.memory.unwrap_or_default();
    let pod_cpu = after.cpu.unwrap_or_default();
    assert!(value(memory.working_set_bytes.as_ref()) > 0, "{memory:?}");
    // What the machine takes is the pod's: more than the second or two of its container.
    let pod_used = Duration::from_nanos(value(pod_cpu.usage_core_nano_seconds.as_ref()));
    assert!(pod_used > used, "{pod_used:?} of the pod, {used:?} of its container");
    assert_eq!(after.containers.len(), 2);

    // `ctr metrics` tells of the container too, in the host's words for it.
    let text = node.ctr(["task", "metrics", "--format", "json", main.id()]).ok();
    let metrics: serde_json::Value = serde_json::from_slice(&text.stdout).unwrap();
    assert!(
        metrics.pointer("/memory/usage/usage").and_then(serde_json::Value::as_u64).is_some_and(|n| n > 0),
        "{metrics}"
    );
    assert!(
        metrics.pointer("/cpu/usage/total").and_then(serde_json::Value::as_u64).is_some_and(|n| n > 0),
        "{metrics}"
    );
    if is_kata() {
        let networks = metrics.pointer("/network").and_then(serde_json::Value::as_array);
        let eth0 = networks.into_iter().flatten().find(|network| network["name"] == "eth0");
        assert!(eth0.is_some_and(|eth0| eth0["tx_bytes"].as_u64().is_some_and(|n| n > 9 << 20)), "{metrics}");
    }
    pod.end();
    node.holds_nothing();
}

/// The whole answer to a request to port 80.
fn get(address: &str, path: &str) -> Vec<u8> {
    use std::io::{Read, Write};
    let mut tcp = TcpStream::connect((address, 80)).unwrap_or_else(|e| panic!("{address}: {e}"));
    tcp.set_read_timeout(Some(SOON)).unwrap();
    write!(tcp, "GET /{path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer).unwrap();
    answer
}
