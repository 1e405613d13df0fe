//! Several containers in one VM: pods of podman, of containerd's CRI annotations, and of CRI-O's over the OCI command line;
//! and containers that join another's namespaces.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use kata_testkit::bundle::Bundle;
use kata_testkit::cmd::Cmd;
use kata_testkit::engine::{Containerd, Podman};
use kata_testkit::image::BUSYBOX;
use kata_testkit::leaks::Guard;
use kata_testkit::runtime::{Runtime, kill9};
use kata_testkit::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// For what happens at once in a VM that runs, on a slow machine.
const SOON: Duration = Duration::from_secs(15);

/// Sandboxes that have these containers, by their state files: each with the pid of its VMM, if that runs.
fn machines(ids: &[&str]) -> BTreeSet<i64> {
    let dirs = std::fs::read_dir("/run/kata").into_iter().flatten().flatten();
    let states = dirs.filter_map(|dir| std::fs::read(dir.path().join("state.json")).ok());
    let states = states.filter_map(|text| serde_json::from_slice::<Value>(&text).ok());
    let ours = states.filter(|state| ids.iter().any(|id| state["containers"][id].is_object()));
    let pids = ours.filter_map(|state| state["vm"]["pid"].as_i64());
    let runs = |pid: &i64| {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm"));
        comm.is_ok_and(|comm| comm.starts_with("qemu-system"))
    };
    pids.filter(runs).collect()
}

fn exec(podman: &Podman, name: &str, script: &str) -> Cmd {
    podman.podman(["exec", name, "sh", "-c", script])
}

fn id(podman: &Podman, name: &str) -> String {
    podman.podman(["inspect", "--format", "{{.Id}}", name]).ok().out()
}

#[test]
fn a_podman_pod_is_one_machine_whose_containers_share_localhost() {
    let _leaks = Guard::new();
    let podman = Podman::new();
    podman.pod("pod", ["--share", "ipc,net,uts"]);
    let member = |name: &str, script: &str| {
        let run = podman.run_in("pod", ["--detach", "--name", name, BUSYBOX, "sh", "-c", script]);
        run.output_to(&podman.file(&format!("{name}.log"))).ok();
    };
    member("server", "echo hello from the server > /dev/shm/x; exec nc -ll -p 8080 -e cat /dev/shm/x");
    member("client", "exec sleep 1000");
    let ids = [id(&podman, "server"), id(&podman, "client")];
    assert_eq!(machines(&[&ids[0], &ids[1]]).len(), 1, "one VM for both");

    let heard = || exec(&podman, "client", "nc 127.0.0.1 8080 < /dev/null").run().out();
    wait::until("an answer over localhost", SOON, || (heard() == "hello from the server").then_some(()));
    let of = |name: &str| exec(&podman, name, "cat /dev/shm/x; hostname; readlink /proc/self/ns/ipc").ok().out();
    assert_eq!(of("client"), of("server"));
    assert!(of("client").contains("\npod\n"), "the pod's name is the host name: {}", of("client"));
    // Each sees its own processes.
    assert_eq!(exec(&podman, "client", "cat /proc/1/comm").ok().out(), "sleep");

    // One that ended is started again, in the same machine, and podman's list is true meanwhile.
    let before = machines(&[&ids[1]]);
    podman.podman(["stop", "--time", "0", "server"]).ok();
    exec(&podman, "client", "true").ok();
    podman.podman(["start", "server"]).output_to(&podman.file("again.log")).ok();
    wait::until("an answer again", SOON, || (heard() == "hello from the server").then_some(()));
    assert_eq!(machines(&[&ids[0], &ids[1]]), before);

    // podman stops and deletes the infra container first.
    podman.podman(["pod", "stop", "--time", "0", "pod"]).ok();
    podman.podman(["pod", "start", "pod"]).output_to(&podman.file("pod.log")).ok();
    wait::until("an answer once more", SOON, || (heard() == "hello from the server").then_some(()));
    assert_eq!(machines(&[&ids[0], &ids[1]]).len(), 1);
    podman.podman(["pod", "rm", "--force", "--time", "0", "pod"]).ok();
    podman.holds_nothing();
}

#[test]
fn a_podman_pod_may_share_its_pids() {
    let _leaks = Guard::new();
    let podman = Podman::new();
    podman.pod("pids", ["--share", "ipc,net,uts,pid"]);
    for (name, seconds) in [("one", "1111"), ("two", "2222")] {
        let run = podman.run_in("pids", ["--detach", "--name", name, BUSYBOX, "sleep", seconds]);
        run.output_to(&podman.file(&format!("{name}.log"))).ok();
    }
    let seen = exec(&podman, "one", "ps -o args").ok().out();
    assert!(seen.contains("sleep 1111") && seen.contains("sleep 2222"), "{seen}");
    assert_eq!(exec(&podman, "two", "cat /proc/1/comm").ok().out(), "pause");
    // By the other container's pid.
    exec(&podman, "two", "kill -9 $(ps -o pid,args | awk '$2 == \"sleep\" && $3 == 1111 { print $1 }')").ok();
    assert_eq!(podman.podman(["wait", "one"]).ok().out(), "137");
    exec(&podman, "two", "true").ok();
    podman.podman(["pod", "rm", "--force", "--time", "0", "pids"]).ok();
    podman.holds_nothing();
}

#[test]
fn podman_plays_a_pod_of_two_containers_with_a_volume() {
    let _leaks = Guard::new();
    let podman = Podman::with_kube_parent();
    let yaml = podman.file("pod.yaml");
    let container = |name: &str, script: &str| {
        json!({ "name": name, "image": BUSYBOX, "command": ["sh", "-c", script],
                "volumeMounts": [{ "name": "data", "mountPath": "/data" }] })
    };
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "played" },
        "spec": {
            "containers": [
                container("writer", "echo written > /data/file; exec sleep 1000"),
                container("reader", "until cat /data/file; do sleep 0.2; done; exec sleep 1000"),
            ],
            "volumes": [{ "name": "data", "emptyDir": {} }],
        },
    });
    std::fs::write(&yaml, pod.to_string()).unwrap();
    podman.podman(["play", "kube", "--network", "none"]).arg(&yaml).output_to(&podman.file("play.log")).ok();
    let logs = || podman.podman(["logs", "played-reader"]).run().out();
    wait::until("what the other has written", SOON, || logs().contains("written").then_some(()));
    let ids = [id(&podman, "played-writer"), id(&podman, "played-reader")];
    assert_eq!(machines(&[&ids[0], &ids[1]]).len(), 1);
    podman.podman(["play", "kube", "--down"]).arg(&yaml).ok();
    podman.podman(["volume", "rm", "--all", "--force"]).ok();
    podman.holds_nothing();
}

#[test]
fn a_podman_container_joins_another() {
    let _leaks = Guard::new();
    let podman = Podman::new();
    let run = podman.run(["--detach", "--name", "first", BUSYBOX, "sh", "-c", "echo x > /dev/shm/x; exec sleep 3333"]);
    run.output_to(&podman.file("first.log")).ok();
    let join = ["--network", "container:first", "--ipc", "container:first", "--pid", "container:first"];
    let second = podman.joined(join);
    let out = second.args(["--rm", BUSYBOX, "sh", "-c", "tr '\\0' ' ' < /proc/1/cmdline; cat /dev/shm/x"]).ok();
    assert_eq!(out.out(), "sleep 3333 x");
    exec(&podman, "first", "true").ok();
    podman.podman(["rm", "--force", "--time", "0", "first"]).ok();
    podman.holds_nothing();
}

/// `ctr run --detach` of a container in containerd's CRI plugin's words.
fn cri(containerd: &Containerd, id: &str, kind: &str, flags: &[String], command: &[&str]) -> Cmd {
    let annotations = [
        "--annotation".to_owned(),
        format!("io.kubernetes.cri.container-type={kind}"),
        "--annotation".to_owned(),
        "io.kubernetes.cri.sandbox-id=pod".to_owned(),
    ];
    let run = containerd.run(["--detach"]).args(annotations).args(flags).args([BUSYBOX, id]).args(command);
    run.output_to(&containerd.file(&format!("{id}.log")))
}

fn pid(containerd: &Containerd, id: &str) -> String {
    let table = containerd.ctr(["task", "list"]).ok().out();
    let row = table.lines().find(|line| line.split_whitespace().next() == Some(id)).unwrap_or_default().to_owned();
    row.split_whitespace().nth(1).unwrap_or_default().to_owned()
}

/// The flags by which a member shares what the pod's sandbox stands for.
fn shares(pid: &str, kinds: &[&str]) -> Vec<String> {
    kinds.iter().flat_map(|kind| ["--with-ns".to_owned(), format!("{kind}:/proc/{pid}/ns/{kind}")]).collect()
}

fn task_exec(containerd: &Containerd, id: &str, name: &str, script: &str) -> Cmd {
    containerd.ctr(["task", "exec", "--exec-id", name, id, "sh", "-c", script])
}

/// Kills a task and deletes it with its container.
fn end(containerd: &Containerd, id: &str) {
    containerd.ctr(["task", "kill", "--signal", "KILL", id]).ok();
    let stopped =
        || containerd.ctr(["task", "list"]).ok().out().lines().any(|l| l.starts_with(id) && l.ends_with("STOPPED"));
    wait::until("a stopped task", SOON, || stopped().then_some(()));
    containerd.ctr(["task", "delete", id]).run();
    containerd.ctr(["container", "delete", id]).ok();
}

#[test]
fn containerds_annotations_make_one_daemon_and_one_machine_of_a_pod() {
    let _leaks = Guard::new();
    let mut containerd = Containerd::start();
    cri(&containerd, "pod", "sandbox", &[], &["no-such-program"]).ok();
    let daemon = pid(&containerd, "pod");
    let with = shares(&daemon, &["ipc", "uts"]);
    cri(&containerd, "a", "container", &with, &["sh", "-c", "exec sleep 1000"]).ok();
    cri(&containerd, "b", "container", &with, &["sh", "-c", "exec sleep 1000"]).ok();
    assert_eq!((pid(&containerd, "a"), pid(&containerd, "b")), (daemon.clone(), daemon.clone()), "one daemon");
    assert_eq!(machines(&["pod", "a", "b"]).len(), 1);
    let ipc = |id: &str| task_exec(&containerd, id, "ns", "readlink /proc/self/ns/ipc").ok().out();
    assert_eq!(ipc("a"), ipc("b"));
    let refused = task_exec(&containerd, "pod", "x", "true").run();
    assert!(refused.code() != 0 && refused.err().contains("stands for its pod"), "{}", refused.report());
    containerd.ctr(["task", "metrics", "pod"]).ok();

    end(&containerd, "a");
    task_exec(&containerd, "b", "still", "true").ok();
    cri(&containerd, "a", "container", &with, &["sh", "-c", "exec sleep 1000"]).ok();
    // containerd comes back and finds all of them.
    containerd.restart();
    for id in ["a", "b"] {
        task_exec(&containerd, id, "back", "true").ok();
    }
    // In whatever order.
    end(&containerd, "pod");
    task_exec(&containerd, "b", "on", "true").ok();
    end(&containerd, "a");
    task_exec(&containerd, "b", "more", "true").ok();
    end(&containerd, "b");
    containerd.holds_nothing();
    let gone = || !Path::new(&format!("/proc/{daemon}")).exists();
    wait::until("the daemon's end", SOON, || gone().then_some(()));
}

#[test]
fn a_pods_daemon_is_killed_and_each_container_is_told_and_deleted() {
    let _leaks = Guard::new();
    let containerd = Containerd::start();
    cri(&containerd, "pod", "sandbox", &[], &["pause"]).ok();
    let daemon = pid(&containerd, "pod");
    let with = shares(&daemon, &["ipc", "uts", "pid"]);
    cri(&containerd, "a", "container", &with, &["sleep", "1000"]).ok();
    kill9(daemon.parse().unwrap());
    let bundles = || std::fs::read_dir(containerd.bundles()).map_or(0, Iterator::count);
    wait::until("no bundle of a task", SOON, || (bundles() == 0).then_some(()));
    // Its sandbox is gone: nothing is made in its place.
    containerd.ctr(["container", "delete", "a"]).ok();
    let refused = cri(&containerd, "a", "container", &with, &["sleep", "1000"]).run();
    let said = std::fs::read_to_string(containerd.file("a.log")).unwrap();
    assert!(refused.code() != 0 && said.contains("the sandbox pod, which does not run"), "{said}");
    containerd.ctr(["container", "delete", "a"]).run();
    containerd.ctr(["container", "delete", "pod"]).ok();
    containerd.holds_nothing();
}

/// A bundle as CRI-O makes one.
fn cri_o(rt: &Runtime, kind: &str, script: &str) -> Bundle {
    let annotations = json!({ "io.kubernetes.cri-o.ContainerType": kind, "io.kubernetes.cri-o.SandboxID": "pod" });
    Bundle::busybox(rt).sh(script).with(|spec| {
        spec["annotations"] = annotations;
        for ns in spec["linux"]["namespaces"].as_array_mut().unwrap() {
            match ns["type"].as_str() {
                Some("ipc") => ns["path"] = "/var/run/ipcns/0a1b".into(),
                Some("uts") => ns["path"] = "/var/run/utsns/0a1b".into(),
                _ => {}
            }
        }
    })
}

#[test]
fn cri_os_calls_of_the_oci_command_line() {
    let _leaks = Guard::new();
    let rt = Runtime::new();
    // conmon's: create, start, state, kill, delete of each id.
    let member = cri_o(&rt, "container", "hostname > /dev/null; echo member; exec sleep 1000");
    let early = rt.cmd(["create", "--bundle"]).arg(member.write()).arg("a").output_to(&rt.log("a")).run();
    assert!(early.code() == 1 && rt.said("a").contains("sandbox pod"), "{}", rt.said("a"));
    let (pause, other) = (cri_o(&rt, "sandbox", "exit 99"), cri_o(&rt, "container", "exec sleep 1000"));
    rt.create(&pause, "pod");
    rt.cmd(["start", "pod"]).ok();
    assert_eq!(rt.status("pod"), "running");
    rt.run_detached(&member, "a");
    rt.run_detached(&other, "b");
    assert_eq!(machines(&["pod", "a", "b"]).len(), 1);
    let pids: BTreeSet<i64> = ["pod", "a", "b"].map(|id| rt.state(id)["pid"].as_i64().unwrap()).into();
    assert_eq!(pids.len(), 3, "each has a process of its own that stands for it");
    let ipc = |id: &str| rt.exec(id, "readlink /proc/self/ns/ipc").ok().out();
    assert_eq!(ipc("a"), ipc("b"));
    assert!(rt.exec("pod", "true").run().expect(255).err().contains("stands for its pod"));
    let stats = rt.cmd(["events", "--stats", "pod"]).ok().out();
    assert!(stats.contains("\"cpu\""), "{stats}");

    // An id that is used again.
    rt.cmd(["delete", "--force", "a"]).ok();
    rt.run_detached(&member, "a");
    rt.exec("a", "true").ok();
    // The shim that stands for a container is killed: that container ends, and no other.
    let victim = i32::try_from(rt.state("b")["pid"].as_i64().unwrap()).unwrap();
    kill9(victim);
    rt.comes_to("b", "stopped", SOON);
    rt.exec("a", "true").ok();
    rt.cmd(["kill", "pod", "TERM"]).ok();
    rt.comes_to("pod", "stopped", SOON);
    rt.cmd(["delete", "pod"]).ok();
    // A second time changes nothing for those that are left.
    rt.cmd(["delete", "--force", "pod"]).ok();
    rt.exec("a", "true").ok();
    rt.cmd(["delete", "b"]).ok();
    rt.cmd(["delete", "--force", "a"]).ok();

    // The daemon of a pod is killed: each is deleted on its own.
    rt.create(&pause, "pod");
    rt.cmd(["start", "pod"]).ok();
    rt.run_detached(&member, "a");
    kill9(rt.sandbox("pod").pid("daemon"));
    rt.comes_to("a", "stopped", SOON);
    rt.comes_to("pod", "stopped", SOON);
    for id in ["pod", "a"] {
        rt.cmd(["delete", id]).ok();
    }
}

/// Has a part of its own file read that nothing has read before, and ends without waiting for it, or for anything else of the
/// host's.
const READER: &str = r#"
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
__attribute__((aligned(4096))) const volatile char unread[8 << 20] = {1};
static long call(long n, long a, long b, long c) {
    __asm__ volatile("syscall" : "+a"(n) : "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return n;
}
int main(void) {
    char c;
    call(SYS_write, 1, (long)"up\n", 3);
    long ok = call(SYS_read, 0, (long)&c, 1) == 1;
    ok = ok && !call(SYS_madvise, (long)unread + (4 << 20), 4 << 20, MADV_WILLNEED);
    call(SYS_exit_group, !ok, 0, 0);
}
"#;

/// Linux ends the superblock of a virtio-fs submount with its last mount, even while something of it is still being read, and
/// then stumbles over what it has freed (see `mounts` in kata-jail).
#[test]
fn a_container_that_ends_while_it_reads_leaves_its_pods_guest_well() {
    let _leaks = Guard::new();
    let rt = Runtime::new();
    let (pause, other) = (cri_o(&rt, "sandbox", "exit 99"), cri_o(&rt, "container", "exec sleep 1000"));
    rt.create(&pause, "pod");
    rt.cmd(["start", "pod"]).ok();
    rt.run_detached(&other, "other");
    let reader = cri_o(&rt, "container", "").args(["/reader"]);
    let program = reader.rootfs().join("reader");
    Cmd::new("gcc").args(["-static", "-x", "c", "-o"]).arg(program).arg("-").input(READER).ok();
    let mut run = rt.cmd(["run", "--bundle"]).arg(reader.write()).arg("reader").held_input().start();
    run.says("up\n");
    // What is read is read for as long as the file daemon stands still.
    let files = Pid::from_raw(rt.sandbox("pod").pid("fs"));
    kill(files, Signal::SIGSTOP).unwrap();
    run.stdin().write_all(b"x").unwrap();
    // From here on it is being removed, which waits for what is read.
    wait::until("the reader's end", SOON, || (rt.status("reader") == "stopped").then_some(()));
    kill(files, Signal::SIGCONT).unwrap();
    run.wait().expect(0);
    assert!(rt.exec("other", "wc -c < /bin/busybox").ok().out().parse::<u64>().unwrap() > 100_000);
    for id in ["other", "pod"] {
        rt.cmd(["delete", "--force", id]).ok();
    }
}
