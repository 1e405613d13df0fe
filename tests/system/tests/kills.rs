//! kill -9 of every process of a sandbox, at rest and while it is being made: the container's end is told truthfully
//! and soon, `delete` works afterwards, and nothing is left.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use kata_testkit::bundle::Bundle;
use kata_testkit::cmd::{Cmd, Running};
use kata_testkit::engine::{CgroupParent, Containerd, Docker, Podman};
use kata_testkit::image::BUSYBOX;
use kata_testkit::leaks::Guard;
use kata_testkit::runtime::{Runtime, Sandbox, json, kill9, stage};
use kata_testkit::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

/// What was killed must be told within this.
const TOLD_WITHIN: Duration = Duration::from_secs(5);
/// Of processes that went down with their sandbox (128 and SIGKILL).
const LOST: i32 = 137;

/// A container that says it is ready, and then sleeps.
fn sleeper(rt: &Runtime) -> Bundle {
    Bundle::busybox(rt).sh("echo ready; exec sleep 1000")
}

/// Runs a container with an exec in it, lets `kill` do its work, and sees both end as lost, for a reason with one of
/// these `words` in it.
fn lost(bundle: &Bundle, rt: &Runtime, kill: impl FnOnce(&Runtime, &str), words: &str) {
    let id = "victim";
    let mut run = rt.cmd(["run", "--keep", "--bundle"]).arg(bundle.write()).arg(id).start();
    run.says("ready");
    let mut exec = rt.exec(id, "echo in it; exec sleep 1000").start();
    exec.says("in it");
    kill(rt, id);
    let start = Instant::now();
    for running in [run, exec] {
        ends(running, start, words);
    }
    let state = rt.state(id);
    assert_eq!((&state["status"], &state["pid"]), (&json!("stopped"), &json!(0)), "{state}");
    rt.cmd(["exec", id, "true"]).run().fails();
    rt.delete(id);
}

fn ends(mut running: Running, start: Instant, words: &str) {
    while !running.ended() {
        assert!(start.elapsed() < TOLD_WITHIN, "its end is not told within {} s", TOLD_WITHIN.as_secs());
        std::thread::sleep(Duration::from_millis(10));
    }
    running.wait().expect(LOST).complained(words);
}

#[test]
fn the_vmm() {
    let _leaks = Guard::new();
    let rt = Runtime::new();
    lost(&sleeper(&rt), &rt, |rt, id| kill9(rt.sandbox(id).pid("vm")), "the virtual machine killed by signal 9");
}

#[test]
fn the_file_daemon() {
    let _leaks = Guard::new();
    let rt = Runtime::new();
    lost(&sleeper(&rt), &rt, |rt, id| kill9(rt.sandbox(id).pid("fs")), "the file daemon killed by signal 9");
}

#[test]
fn the_daemon() {
    let _leaks = Guard::new();
    let rt = Runtime::new();
    lost(&sleeper(&rt), &rt, |rt, id| kill9(rt.sandbox(id).pid("daemon")), "daemon");
}

/// A process that is killed takes connections until it has closed its sockets, and docker deletes at once.
#[test]
fn the_daemon_that_a_delete_has_just_asked() {
    let _leaks = Guard::new();
    let rt = Runtime::new();
    let bundle = sleeper(&rt);
    rt.run_detached(&bundle, "victim");
    let daemon = rt.sandbox("victim").pid("daemon");
    kill(Pid::from_raw(daemon), Signal::SIGSTOP).unwrap();
    let delete = rt.cmd(["delete", "victim"]).start();
    let open = || std::fs::read_dir(format!("/proc/{}/fd", delete.pid())).into_iter().flatten().flatten();
    let is_socket =
        |path: PathBuf| std::fs::read_link(path).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"));
    wait::until("a request", TOLD_WITHIN, || open().any(|e| is_socket(e.path())).then_some(()));
    kill9(daemon);
    delete.wait().expect(0);
    rt.cmd(["state", "victim"]).run().fails().complained("does not exist");
}

#[test]
fn everything_at_once() {
    let _leaks = Guard::new();
    let rt = Runtime::new();
    let kill_all = |rt: &Runtime, id: &str| {
        let sandbox = rt.sandbox(id);
        for part in ["fs", "vm", "daemon"] {
            // The daemon's children go with it.
            let _ = kill(Pid::from_raw(sandbox.pid(part)), Signal::SIGKILL);
        }
    };
    lost(&sleeper(&rt), &rt, kill_all, "");
}

#[test]
fn the_agent() {
    let _leaks = Guard::new();
    let rt = Runtime::new();
    // A container without a pid namespace of its own sees PID 1 of the guest, the agent. Signals do not end an init,
    // so its code is overwritten, as a crash would have it.
    let bundle = sleeper(&rt).with(|spec| {
        spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|ns| ns["type"] != "pid");
        spec["linux"]["maskedPaths"] = json!([]);
        spec["linux"]["readonlyPaths"] = json!([]);
        for set in ["bounding", "effective", "permitted"] {
            spec["process"]["capabilities"][set].as_array_mut().unwrap().push(json!("CAP_SYS_PTRACE"));
        }
    });
    let crash = |rt: &Runtime, id: &str| {
        let script = "set -- $(grep ' r-xp ' /proc/1/maps | head -n 1 | tr '-' ' '); \
                      exec dd if=/dev/zero of=/proc/1/mem bs=4096 seek=$((0x$1 / 4096)) count=$(((0x$2 - 0x$1) / 4096)) \
                      conv=notrunc";
        // It goes down with what it destroys.
        rt.exec(id, script).run().fails();
    };
    lost(&bundle, &rt, crash, "Attempted to kill init");
}

#[test]
fn the_shim() {
    let _leaks = Guard::new();
    let rt = Runtime::new();
    let bundle = sleeper(&rt);
    let mut run = rt.cmd(["run", "--keep", "--bundle"]).arg(bundle.write()).arg("victim").start();
    run.says("ready");
    kill9(i32::try_from(rt.state("victim")["pid"].as_i64().unwrap()).unwrap());
    let start = Instant::now();
    ends(run, start, "");
    rt.comes_to("victim", "stopped", TOLD_WITHIN);
    rt.delete("victim");
    // An exec's shim takes only its own process along.
    let mut run = rt.cmd(["run", "--keep", "--bundle"]).arg(bundle.write()).arg("victim").start();
    run.says("ready");
    let exec = rt.cmd(["exec", "--detach", "--pid-file"]).arg(rt.file("pid")).args(["victim", "sleep", "2000"]);
    exec.output_to(&rt.file("exec.log")).ok();
    kill9(std::fs::read_to_string(rt.file("pid")).unwrap().parse().unwrap());
    wait::until("end of the exec's process", TOLD_WITHIN, || {
        (!rt.cmd(["ps", "victim"]).ok().out().contains("sleep 2000")).then_some(())
    });
    assert_eq!(rt.status("victim"), "running");
    rt.cmd(["kill", "victim", "KILL"]).ok();
    run.wait().expect(LOST);
    rt.delete("victim");
}

/// The command line is killed while it makes a container, sooner or later; then one cannot know what is there.
#[test]
fn the_command_line_while_it_creates() {
    let _leaks = Guard::new();
    let rt = Runtime::new();
    let bundle = sleeper(&rt);
    bundle.write();
    for after in [0, 5, 15, 30, 60, 120, 250, 500, 900, 1300] {
        let create = rt.cmd(["create", "--bundle"]).arg(bundle.path()).arg("half").output_to(&rt.log("half")).start();
        std::thread::sleep(Duration::from_millis(after));
        // It may have ended.
        let _ = kill(Pid::from_raw(create.pid()), Signal::SIGKILL);
        create.wait();
        rt.cmd(["delete", "--force", "half"]).ok();
        rt.cmd(["state", "half"]).run().expect(1).complained("does not exist");
    }
    // The id is free for another.
    rt.run(&bundle.sh("exit 3"), "half").run().expect(3);
}

/// The sandboxes that there are, by their directories.
fn sandboxes() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/run/kata").into_iter().flatten().flatten();
    // One that has given its name up is about to go.
    let named = entries.filter(|e| !e.file_name().as_encoded_bytes().starts_with(b"."));
    named.map(|e| e.path()).filter(|dir| dir.join("state.json").exists()).collect()
}

fn pid_in(dir: &Path, of: &str) -> Option<i32> {
    let state: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("state.json")).ok()?).ok()?;
    state[of]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok())
}

/// A part of the sandbox is killed while it is being made: `create` says what happened, and leaves nothing.
#[test]
fn a_part_while_the_guest_boots() {
    let _leaks = Guard::new();
    let rt = Runtime::new();
    let bundle = sleeper(&rt);
    bundle.write();
    let before = sandboxes();
    for after in [0, 50, 200, 500, 800] {
        for what in ["daemon", "qemu"] {
            let create =
                rt.cmd(["create", "--bundle"]).arg(bundle.path()).arg("early").output_to(&rt.log("early")).start();
            let dir = wait::until("the sandbox's state file", TOLD_WITHIN, || {
                sandboxes().into_iter().find(|dir| !before.contains(dir))
            });
            std::thread::sleep(Duration::from_millis(after));
            let daemon = pid_in(&dir, "daemon").unwrap();
            let victim = if what == "daemon" { Some(daemon) } else { child_named(daemon, "qemu-system") };
            if let Some(victim) = victim {
                kill9(victim);
            }
            let created = create.wait();
            let said = std::fs::read_to_string(rt.log("early")).unwrap();
            if created.code() != 0 {
                assert!(created.code() == 1 && !said.trim().is_empty(), "{}: {said}", created.report());
                assert!(what == "daemon" || said.contains("virtual machine"), "after {after} ms: {said}");
            }
            drop(std::fs::remove_file(rt.log("early")));
            rt.cmd(["delete", "--force", "early"]).ok();
        }
    }
}

/// A child of this process by the beginning of its name; it may not be there yet.
fn child_named(parent: i32, name: &str) -> Option<i32> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    let mut pids = children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok());
    pids.find(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.starts_with(name)))
}

/// The shim as containerd calls it, in a bundle that need not be there any more.
fn shim(id: &str, bundle: &Path, action: &str) -> Cmd {
    let shim = Cmd::new(stage().join("bin/containerd-shim-kata-v2")).args(["-namespace", "kata-forgotten", "-id", id]);
    shim.arg("-bundle").arg(bundle).arg(action)
}

/// An engine that knows of no sandbox asks for no clean-up (containerd 1.6 does so, when a shim dies between telling its address
/// and the first connection to it): whoever launches another sandbox cleans up, and touches nothing else.
#[test]
fn what_an_engine_has_forgotten_goes_when_the_next_sandbox_is_launched() {
    let _leaks = Guard::new();
    let rt = Runtime::new();
    let parent = CgroupParent(format!("kata-forgotten-{}", std::process::id()));
    let bundle = |id: &str| {
        let cgroup = format!("/{}/{id}", parent.0);
        let bundle = sleeper(&rt).with(|spec| spec["linux"]["cgroupsPath"] = json!(cgroup));
        bundle.write();
        bundle
    };
    let start = |id: &str, bundle: &Bundle| {
        shim(id, bundle.path(), "start").ok();
        Sandbox::find(id)
    };
    let killed = |sandbox: &Sandbox| {
        let stat = format!("/proc/{}", sandbox.pid("daemon"));
        kill9(sandbox.pid("daemon"));
        wait::until("end of the daemon", TOLD_WITHIN, || (!Path::new(&stat).exists()).then_some(()));
    };
    let cgroups = |id: &str| parent.dirs().iter().map(|dir| dir.join(id)).filter(|dir| dir.exists()).count();
    let launch_another = || rt.run(&Bundle::busybox(&rt).sh("exit 3"), "another").run().expect(3);

    // Nobody else's are touched: one that lives, though its bundle is gone, and a dead one that its engine can still delete.
    let (living_bundle, known_bundle) = (bundle("living"), bundle("known"));
    let (living, known) = (start("living", &living_bundle), start("known", &known_bundle));
    drop(living_bundle);
    killed(&known);

    for after in [0, 20, 200, 2000] {
        let forgotten_bundle = bundle("forgotten");
        let forgotten = start("forgotten", &forgotten_bundle);
        std::thread::sleep(Duration::from_millis(after));
        killed(&forgotten);
        drop(forgotten_bundle);
        launch_another();
        assert!(!forgotten.dir.exists(), "{} is left, {after} ms after its start", forgotten.dir.display());
        assert_eq!(cgroups("forgotten"), 0, "cgroups are left, {after} ms after its start");
    }
    // The next one of the same id has a bundle of the same name.
    let (first, second) = (bundle("forgotten"), bundle("forgotten"));
    killed(&start("forgotten", &first));
    std::fs::rename(first.path(), rt.file("old")).unwrap();
    std::fs::rename(second.path(), first.path()).unwrap();
    killed(&start("forgotten", &first));
    shim("forgotten", first.path(), "delete").ok();

    assert_eq!(pid_in(&living.dir, "daemon"), Some(living.pid("daemon")));
    assert!(known.dir.exists() && cgroups("known") > 0 && cgroups("living") > 0);
    shim("known", known_bundle.path(), "delete").ok();
    shim("living", &rt.file("gone"), "delete").ok();
    for id in ["living", "known", "forgotten"] {
        assert_eq!(cgroups(id), 0, "{id}");
    }
}

#[test]
fn under_containerd() {
    let _leaks = Guard::new();
    let containerd = Containerd::start();
    for part in ["vm", "fs", "daemon"] {
        let run = containerd.run(["--detach", BUSYBOX, "victim", "sleep", "1000"]);
        run.output_to(&containerd.file("victim.log")).ok();
        kill9(Sandbox::find("victim").pid(part));
        // With the daemon the task is gone, and containerd cleans up through our `delete`; else it is stopped.
        wait::until(&format!("end of the task whose {part} was killed"), TOLD_WITHIN, || {
            let rows = containerd.ctr(["task", "list"]).ok().out();
            (!rows.contains("RUNNING")).then_some(())
        });
        let deleted = containerd.ctr(["task", "delete", "victim"]).run();
        if part == "daemon" {
            deleted.fails().complained("not found");
        } else {
            deleted.expect(0).complained(&format!("exit with non-zero exit code {LOST}"));
        }
        containerd.ctr(["container", "delete", "victim"]).ok();
        containerd.holds_nothing();
    }
    // Whoever waits is told too.
    let mut run = containerd.run(["--rm", BUSYBOX, "waited", "sh", "-c", "echo ready; exec sleep 1000"]).start();
    run.says("ready");
    kill9(Sandbox::find("waited").pid("vm"));
    run.wait().expect(LOST);
    containerd.holds_nothing();
}

#[test]
fn a_sandbox_whose_launcher_has_gone_ends_by_itself() {
    let _leaks = Guard::new();
    let rt = Runtime::new();
    let bundle = Bundle::busybox(&rt).args(["sleep", "1000"]);
    let run_dir = Path::new("/run/kata").join(format!("{:032x}", std::process::id()));
    std::fs::DirBuilder::new().mode(0o700).create(&run_dir).unwrap();
    let mut daemon = std::process::Command::new(stage().join("bin/kata"))
        .args(["sandbox-daemon", "--id", "orphan", "--namespace", "kata-test", "--run-dir"])
        .arg(&run_dir)
        .arg("--bundle")
        .arg(bundle.write())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Nobody reads what it says.
    drop(daemon.stdout.take());
    let ended = wait::until("end of the sandbox", Duration::from_secs(30), || daemon.try_wait().unwrap());
    assert!(ended.success(), "{ended}");
    assert!(!run_dir.exists());
}

#[test]
fn under_docker() {
    let _leaks = Guard::new();
    let docker = Docker::start();
    for part in ["vm", "fs", "daemon"] {
        docker.run(["--detach", "--name", "victim", BUSYBOX, "sleep", "1000"]).ok();
        let id = docker.inspect("victim", "{{.Id}}");
        kill9(Sandbox::find(&id).pid(part));
        let waited = docker.docker(["wait", "victim"]).deadline(TOLD_WITHIN).ok();
        assert_eq!(waited.out(), LOST.to_string(), "after kill -9 of {part}");
        // It can be started again, and removed.
        docker.docker(["start", "victim"]).ok();
        docker.docker(["exec", "victim", "true"]).ok();
        docker.docker(["rm", "--force", "victim"]).ok();
        docker.holds_nothing();
    }
}

#[test]
fn under_podman() {
    let _leaks = Guard::new();
    let podman = Podman::new();
    for part in ["vm", "daemon"] {
        let run = podman.run(["--detach", "--name", "victim", BUSYBOX, "sleep", "1000"]);
        run.output_to(&podman.file("victim.log")).ok();
        let id = json(&podman.podman(["inspect", "victim"]).ok())[0]["Id"].as_str().unwrap().to_owned();
        kill9(Sandbox::find(&id).pid(part));
        let waited = podman.podman(["wait", "victim"]).deadline(TOLD_WITHIN).ok();
        assert_eq!(waited.out(), LOST.to_string(), "after kill -9 of {part}");
        podman.podman(["rm", "victim"]).ok();
        podman.holds_nothing();
    }
}
