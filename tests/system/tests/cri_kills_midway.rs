//! kill -9 of each process of a pod's sandbox while something of it is changed, under containerd's CRI plugin: an error or the
//! containers' end is told, the pod can be removed, and nothing is left. These are about our own processes: the oracle has none
//! of them.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kata_testkit::leaks::Guard;
use kata_testkit::runtime::{Sandbox, kill9};
use kata_testkit_cri::api;
use kata_testkit_cri::node::is_kata;
use kata_testkit_cri::volume::Projected;
use kata_testkit_cri::{Container, Node, Pod};

/// For what happens at once in a VM that runs, on a slow machine.
const SOON: Duration = Duration::from_secs(20);
/// What was killed must be told within this.
const TOLD_WITHIN: Duration = Duration::from_secs(10);
/// A success that is told so long after the kill is none; before, its answer may have been on its way.
const ON_ITS_WAY: Duration = Duration::from_secs(1);
/// Of processes that went down with their sandbox (128 and SIGKILL).
const LOST: i32 = 137;
/// containerd's for a task whose shim it cannot ask (its `UnknownExitStatus`).
const UNKNOWN: i32 = 255;
/// The processes of a sandbox, as its state file names them.
const PARTS: [&str; 3] = ["vm", "fs", "daemon"];
const MIB: i64 = 1 << 20;

macro_rules! only_ours {
    () => {
        if !is_kata() {
            println!("the oracle has no such processes");
            return;
        }
    };
}

/// Kills this part after so many milliseconds; returns when.
fn kill_after(sandbox: &Sandbox, part: &str, after: u64) -> Instant {
    std::thread::sleep(Duration::from_millis(after));
    kill9(sandbox.pid(part));
    Instant::now()
}

/// The container and its pod are told as lost, and both can be removed.
fn is_lost(node: &Node, pod: Pod<'_>, main: &str, part: &str, case: &str) {
    let start = Instant::now();
    let status = loop {
        let request = api::ContainerStatusRequest { container_id: main.to_owned(), verbose: false };
        let status = node.client().container_status(request).unwrap().status.unwrap_or_default();
        if status.state() == api::ContainerState::ContainerExited {
            break status;
        }
        assert!(start.elapsed() < TOLD_WITHIN, "{case}: the container's end is not told: {status:?}");
        std::thread::sleep(Duration::from_millis(20));
    };
    let code = status.exit_code;
    assert!(code == LOST || part == "daemon" && code == UNKNOWN, "{case}: {status:?}");
    pod.becomes_not_ready(TOLD_WITHIN);
    pod.end();
    node.holds_nothing();
}

#[test]
fn while_a_volume_is_updated() {
    only_ours!();
    let _leaks = Guard::new();
    let node = Node::start();
    for part in PARTS {
        for after in [0, 2, 10, 40, 120, 300] {
            let case = format!("kill -9 of {part} after {after} ms");
            let pod = node.pod(&format!("volume-{part}-{after}")).run();
            let moment = |n: u32| [("a", format!("moment {n}")), ("b", format!("moment {n}"))];
            let first = moment(0);
            let mut config = Projected::new(&pod, "configmap", "settings", &first.each_ref().map(|(f, t)| (*f, &**t)));
            let volume = config.path().to_owned();
            let main = pod.container("main").bind_read_only(&volume, "/c");
            // Both files of one moment; where that is replaced meanwhile, there is nothing to be said.
            let reads = "cd /c/..data && a=$(cat a) && b=$(cat b) && echo \"$a, $b\"";
            let main = main.sh(&format!("echo ready; while :; do {reads} 2> /dev/null; done")).start();
            main.says("moment 0, moment 0", SOON);
            let sandbox = Sandbox::find(pod.id());
            let dead = AtomicBool::new(false);
            let (exec, updates) = std::thread::scope(|scope| {
                let updates = scope.spawn(|| {
                    let mut n = 0;
                    while !dead.load(Ordering::Relaxed) {
                        n += 1;
                        config.update(&moment(n).each_ref().map(|(f, t)| (*f, &**t)));
                    }
                    n
                });
                let exec = scope.spawn(|| main.try_exec(&["sh", "-c", &format!("while :; do {reads}; done")], 60));
                let killed = kill_after(&sandbox, part, after);
                let exec = exec.join().unwrap();
                assert!(killed.elapsed() < TOLD_WITHIN, "{case}: the exec hung: {exec:?}");
                dead.store(true, Ordering::Relaxed);
                (exec, updates.join().unwrap())
            });
            assert!(exec.as_ref().map_or(true, |exec| exec.code != 0), "{case}: {exec:?}");
            assert!(updates > 0);
            // What was said is true, to the last line that is whole.
            let said = main.log().stdout;
            for line in said.lines().filter(|line| line.matches("moment").count() == 2) {
                let (a, b) = line.split_once(", ").unwrap_or_else(|| panic!("{case}: {line:?}"));
                assert_eq!(a, b, "{case}: files of two moments");
            }
            let id = main.id().to_owned();
            // A kubelet removes the volume when the containers have ended.
            main.ends(TOLD_WITHIN);
            fs::remove_dir_all(&volume).unwrap_or_else(|e| panic!("{case}: {}: {e}", volume.display()));
            is_lost(&node, pod, &id, part, &case);
        }
    }
}

fn limits(memory: i64, quota: i64) -> api::LinuxContainerResources {
    api::LinuxContainerResources {
        memory_limit_in_bytes: memory,
        cpu_quota: quota,
        cpu_period: 100_000,
        cpu_shares: 512,
        ..Default::default()
    }
}

fn limited<'a>(pod: &'a Pod<'a>, memory: i64, quota: i64) -> Container<'a> {
    let main = pod.container("main").sh("echo ready; exec sleep 10000").limits(|l| *l = limits(memory, quota)).start();
    main.says("ready", SOON);
    main
}

/// The limits as they are told: bytes, and microseconds of CPU in each 100 ms.
fn told(main: &Container<'_>) -> (i64, i64) {
    let told = main.status().resources.unwrap_or_default().linux.unwrap_or_default();
    (told.memory_limit_in_bytes, told.cpu_quota)
}

/// The machine grows before the limits do.
#[test]
fn while_a_container_and_its_machine_grow() {
    only_ours!();
    let _leaks = Guard::new();
    let node = Node::start();
    let (small, big) = ((64 * MIB, 50_000), (768 * MIB, 200_000));
    for part in PARTS {
        for after in [0, 10, 30, 80, 200, 500] {
            let case = format!("kill -9 of {part} after {after} ms");
            let pod = node.pod(&format!("grow-{part}-{after}")).run();
            let main = limited(&pod, small.0, small.1);
            let sandbox = Sandbox::find(pod.id());
            let (updated, answered, killed) = std::thread::scope(|scope| {
                let update = scope.spawn(|| (main.update(limits(big.0, big.1)), Instant::now()));
                let killed = kill_after(&sandbox, part, after);
                let (updated, answered) = update.join().unwrap();
                (updated, answered, killed)
            });
            let late = answered.saturating_duration_since(killed);
            assert!(late < TOLD_WITHIN, "{case}: no answer for {late:?}: {updated:?}");
            match updated {
                Ok(()) => assert!(late < ON_ITS_WAY, "{case}: a success {late:?} after it"),
                Err(refused) => {
                    println!("{case}: {}", refused.message());
                    assert!(!refused.message().is_empty());
                    assert_eq!(told(&main), small, "{case}: the limits are what they were");
                }
            }
            let id = main.id().to_owned();
            is_lost(&node, pod, &id, part, &case);
        }
    }
}

/// The machine shrinks after the limits have.
#[test]
fn while_a_machine_shrinks() {
    only_ours!();
    let _leaks = Guard::new();
    let node = Node::start();
    for part in PARTS {
        for after in [0, 50] {
            let case = format!("kill -9 of {part} after {after} ms");
            let pod = node.pod(&format!("shrink-{part}-{after}")).run();
            let main = limited(&pod, 512 * MIB, 200_000);
            let sandbox = Sandbox::find(pod.id());
            main.update(limits(64 * MIB, 50_000)).unwrap();
            assert_eq!(told(&main), (64 * MIB, 50_000));
            kill_after(&sandbox, part, after);
            let id = main.id().to_owned();
            is_lost(&node, pod, &id, part, &case);
        }
    }
}
