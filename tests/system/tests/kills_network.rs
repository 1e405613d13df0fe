//! kill -9 of each process of a sandbox while docker connects it to a network: docker is told of an error, or the container's end
//! is; `rm --force` works, and nothing is left.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use kata_testkit::cmd::Running;
use kata_testkit::engine::{Docker, Release};
use kata_testkit::image::BUSYBOX;
use kata_testkit::leaks::Guard;
use kata_testkit::runtime::{Sandbox, kill9};

/// For what happens at once in a VM that runs, on a slow machine.
const SOON: Duration = Duration::from_secs(20);
/// What was killed must be told within this.
const TOLD_WITHIN: Duration = Duration::from_secs(10);
/// Of processes that went down with their sandbox (128 and SIGKILL).
const LOST: &str = "137";
/// The processes of a sandbox, as its state file names them.
const PARTS: [&str; 3] = ["vm", "fs", "daemon"];
/// The container to be, which is listening where docker publishes.
const VICTIM: [&str; 7] = ["--detach", "--name", "victim", "--publish", "8080:80", BUSYBOX, "sleep"];

/// The sandboxes that there are, those that wait in the pool aside.
fn sandboxes() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/run/kata").into_iter().flatten().flatten();
    // One that has given its name up is about to go.
    let named = entries.filter(|e| !e.file_name().as_encoded_bytes().starts_with(b"."));
    named.map(|e| e.path()).filter(|dir| dir.join("state.json").exists()).collect()
}

/// Waits until a command is so far that this interface is in the network of the new sandbox, and kills a part of that a moment
/// later. Returns how the command ended.
fn kill_when_there(command: Running, before: &[PathBuf], interface: &str, part: &str, after: u64) -> i32 {
    let find = || {
        let dir = sandboxes().into_iter().find(|dir| !before.contains(dir))?;
        let state: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("state.json")).ok()?).ok()?;
        let pid = |of: &str| state[of]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        // One that has just been taken out of the pool has no name yet, and is in the host's network.
        state["id"].as_str().filter(|id| id.len() == 64)?;
        let interfaces = std::fs::read_to_string(format!("/proc/{}/net/dev", pid("daemon")?)).ok()?;
        interfaces.lines().any(|line| line.trim_start().starts_with(interface)).then(|| pid(part)).flatten()
    };
    let start = Instant::now();
    let pid = loop {
        if let Some(pid) = find() {
            break pid;
        }
        assert!(start.elapsed() < SOON, "no {interface} in the sandbox's network; {}", command.stderr());
        std::thread::sleep(Duration::from_millis(1));
    };
    std::thread::sleep(Duration::from_millis(after));
    kill9(pid);
    let ended = command.wait();
    let code = ended.code();
    assert!(code == 0 || !ended.err().is_empty(), "a failure without a word: {}", ended.report());
    code
}

/// The end of a container that docker holds for started.
fn is_told(docker: &Docker, part: &str, after: u64) {
    let waited = docker.docker(["wait", "victim"]).deadline(TOLD_WITHIN).ok();
    assert_eq!(waited.out(), LOST, "kill -9 of {part} after {after} ms");
    assert_eq!(docker.inspect("victim", "{{.State.Running}}"), "false", "kill -9 of {part} after {after} ms");
}

fn new_containers(release: Release, delays: &[u64]) {
    let docker = Docker::networked(release);
    let mut codes = Vec::new();
    for part in PARTS {
        for &after in delays {
            let before = sandboxes();
            let run = docker.run_connected(VICTIM).arg("1000").deadline(SOON * 2).start();
            let code = kill_when_there(run, &before, "eth0", part, after);
            if code == 0 {
                is_told(&docker, part, after);
            } else {
                assert_ne!(
                    docker.inspect("victim", "{{.State.Running}}"),
                    "true",
                    "kill -9 of {part} after {after} ms"
                );
            }
            docker.docker(["rm", "--force", "victim"]).deadline(SOON).ok();
            docker.holds_nothing();
            codes.push((part, after, code));
        }
    }
    println!("{codes:?}");
    // The port is free, and so is the name: it works when nobody is killed.
    docker.run_connected(VICTIM).arg("1000").ok();
    docker.docker(["exec", "victim", "ip", "addr", "show", "eth0"]).ok().said("inet 172.17.");
    docker.docker(["rm", "--force", "victim"]).ok();
    docker.holds_nothing();
}

#[test]
fn while_a_new_container_is_connected() {
    let _leaks = Guard::new();
    new_containers(Release::Distribution, &[0, 10, 50, 150, 250, 350]);
}

/// It connects containers that are created already, with its own shim protocol.
#[test]
fn while_a_newer_docker_connects_a_new_container() {
    let _leaks = Guard::new();
    new_containers(Release::Newer, &[0, 40, 150]);
}

#[test]
fn while_another_network_is_connected() {
    let _leaks = Guard::new();
    let docker = Docker::networked(Release::Distribution);
    docker.docker(["network", "create", "--subnet", "10.78.0.0/24", "later"]).ok();
    for part in PARTS {
        for after in [0, 30, 150] {
            let before = sandboxes();
            docker.run_connected(VICTIM).arg("1000").ok();
            assert!(before.iter().all(|dir| *dir != Sandbox::find(&docker.inspect("victim", "{{.Id}}")).dir));
            let connect = docker.docker(["network", "connect", "later", "victim"]).deadline(SOON).start();
            // Docker itself has done its part by then; whether it says so depends on what it looks at afterwards.
            kill_when_there(connect, &before, "eth1", part, after);
            is_told(&docker, part, after);
            docker.docker(["rm", "--force", "victim"]).deadline(SOON).ok();
            docker.holds_nothing();
        }
    }
    // Nothing is connected to it any more.
    docker.docker(["network", "rm", "later"]).ok();
}
