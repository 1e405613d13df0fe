//! containerd, driven by ctr, with our shim: a task's life through every call of the Task API.

use std::time::Duration;

use kata_testkit::cmd::{Cmd, Running};
use kata_testkit::console::Terminal;
use kata_testkit::engine::Containerd;
use kata_testkit::image::BUSYBOX;
use kata_testkit::leaks::Guard;
use kata_testkit::noise::Noise;
use kata_testkit::runtime::host_kernel;
use kata_testkit::wait;

/// For what happens at once in a VM that runs, on a slow machine.
const SOON: Duration = Duration::from_secs(15);
/// Until a VM has started.
const STARTS: Duration = Duration::from_secs(60);
/// 100 MB take a while without hardware virtualisation.
const BULK: Duration = Duration::from_secs(300);

/// A container and its task, in the background.
fn detached(containerd: &Containerd, id: &str, command: &[&str]) {
    let run = containerd.run(["--detach"]).args([BUSYBOX, id]).args(command);
    run.output_to(&containerd.file(&format!("{id}.log"))).ok();
}

fn exec(containerd: &Containerd, id: &str, name: &str, script: &str) -> Cmd {
    containerd.ctr(["task", "exec", "--exec-id", name, id, "sh", "-c", script])
}

/// What `ctr task list` says of it: "RUNNING", "STOPPED".
fn status(containerd: &Containerd, id: &str) -> String {
    let table = containerd.ctr(["task", "list"]).ok().out();
    let row = table.lines().find(|line| line.split_whitespace().next() == Some(id));
    row.and_then(|row| row.split_whitespace().nth(2)).unwrap_or("gone").to_owned()
}

fn comes_to(containerd: &Containerd, id: &str, wanted: &str) {
    wait::until(&format!("task {id} that is {wanted}"), SOON, || (status(containerd, id) == wanted).then_some(()));
}

/// Removes a stopped task and its container; ctr tells the exit code in a warning.
fn remove(containerd: &Containerd, id: &str, code: i32) {
    let warning = format!("exit with non-zero exit code {code}");
    containerd.ctr(["task", "delete", id]).ok().complained(&warning);
    containerd.ctr(["container", "delete", id]).ok();
}

#[test]
fn run_rm_is_in_a_kernel_of_its_own_and_passes_output_and_exit_codes() {
    let _leaks = Guard::new();
    let containerd = Containerd::start();
    let out = containerd.run(["--rm"]).args([BUSYBOX, "one", "uname", "-r"]).ok();
    assert!(!out.out().is_empty() && out.out() != host_kernel(), "{}", out.report());
    let script = "echo out; echo err >&2; id -u; hostname; exit 7";
    let out = containerd.run(["--rm"]).args([BUSYBOX, "two", "sh", "-c", script]).run().expect(7);
    assert!(out.out().starts_with("out\n0\n") && out.err() == "err", "{}", out.report());
    // What cannot run says so in runc's words, and nothing is left of it.
    for (id, command, words) in [
        ("four", "no-such-program", "executable file not found in $PATH"),
        ("five", "/etc/not-a-program", "permission denied"),
    ] {
        containerd.run(["--rm"]).args([BUSYBOX, id, command]).run().fails().complained(words).complained(command);
    }
    containerd.holds_nothing();
}

#[test]
fn flags_of_run_reach_the_guest() {
    let _leaks = Guard::new();
    let containerd = Containerd::start();
    let data = containerd.file("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("in"), "from the host").unwrap();
    let mount = |kind: &str, at: &str| format!("type=bind,src={},dst={at},options=rbind:{kind}", data.display());
    let script = "cat /rw/in; echo; echo from the guest > /rw/out; touch /ro/x 2>&1; \
                  pwd; echo $A";
    let run = containerd.run(["--rm", "--env", "A=b c", "--cwd", "/home"]);
    let run = run.args(["--mount", &mount("rw", "/rw"), "--mount", &mount("ro", "/ro")]);
    let out = run.args([BUSYBOX, "flags", "sh", "-c", script]).ok();
    let lines: Vec<&str> = out.stdout.split(|b| *b == b'\n').map(|l| std::str::from_utf8(l).unwrap()).collect();
    assert_eq!(lines[0], "from the host", "{}", out.report());
    assert!(lines[1].contains("Read-only file system"), "{}", out.report());
    assert_eq!(lines[2..4], ["/home", "b c"], "{}", out.report());
    assert_eq!(std::fs::read_to_string(data.join("out")).unwrap(), "from the guest\n");
    containerd.holds_nothing();
}

#[test]
fn a_task_lives_through_every_call_and_its_events_come_in_order() {
    let _leaks = Guard::new();
    let containerd = Containerd::start();
    let mut events = containerd.ctr(["events"]).deadline(STARTS * 2).start();
    let script = "trap 'exit 42' TERM; while :; do sleep 0.1; done";
    let run = containerd.run(["--detach", "--memory-limit", "67108864"]).args([BUSYBOX, "life", "sh", "-c", script]);
    run.output_to(&containerd.file("life.log")).ok();
    assert_eq!(status(&containerd, "life"), "RUNNING");

    exec(&containerd, "life", "e1", "echo out; echo err >&2; exit 9").run().expect(9).said("out").complained("err");
    let input = exec(&containerd, "life", "e2", "wc -c").input(vec![b'x'; 100_000]).ok();
    assert_eq!(input.out(), "100000");
    let out =
        containerd.ctr(["task", "exec", "--exec-id", "e3", "--cwd", "/home", "--user", "1000", "life", "sh", "-c"]);
    assert_eq!(out.arg("pwd; id -u").ok().out(), "/home\n1000");
    let missing = containerd.ctr(["task", "exec", "--exec-id", "e4", "life", "no-such-program"]).run();
    missing.fails().complained("executable file not found in $PATH");
    // An exec in the background is one more process, and ends with its own kill.
    let long = containerd.ctr(["task", "exec", "--detach", "--exec-id", "e5", "life", "sleep", "1000"]);
    long.output_to(&containerd.file("e5.log")).ok();
    let table = containerd.ctr(["task", "ps", "life"]).ok();
    assert!(table.out().lines().count() >= 3, "a head, the first process and the exec: {}", table.report());
    containerd.ctr(["task", "kill", "--exec-id", "e5", "--signal", "KILL", "life"]).ok();

    let metrics = containerd.ctr(["task", "metrics", "--format", "json", "life"]).ok();
    let metrics: serde_json::Value = serde_json::from_slice(&metrics.stdout).unwrap();
    let some = |pointer: &str| metrics.pointer(pointer).and_then(serde_json::Value::as_u64).is_some_and(|n| n > 0);
    assert_eq!(metrics.pointer("/memory/usage/limit"), Some(&(64 << 20).into()), "{metrics}");
    assert!(some("/memory/usage/usage") && some("/cpu/usage/total") && some("/pids/current"), "{metrics}");

    containerd.ctr(["task", "pause", "life"]).ok();
    assert_eq!(status(&containerd, "life"), "PAUSED");
    containerd.ctr(["task", "resume", "life"]).ok();
    assert_eq!(status(&containerd, "life"), "RUNNING");

    let running = containerd.ctr(["task", "delete", "life"]).run();
    running.fails().complained("running");
    containerd.ctr(["task", "kill", "life"]).ok();
    comes_to(&containerd, "life", "STOPPED");
    remove(&containerd, "life", 42);
    containerd.holds_nothing();

    in_order(
        &mut events,
        &[
            "/tasks/create",
            "/tasks/start",
            "/tasks/exec-added",
            "/tasks/exec-started",
            "/tasks/exit",
            "/tasks/paused",
            "/tasks/resumed",
            "/tasks/exit",
            "/tasks/delete",
        ],
    );
    events.signal(nix::sys::signal::Signal::SIGTERM);
    events.wait();
}

/// Waits until these topics were told one after the other; others may lie between.
fn in_order(events: &mut Running, topics: &[&str]) {
    wait::until("last event", SOON, || events.stdout().contains(topics[topics.len() - 1]).then_some(()));
    let told = events.stdout();
    let mut lines = told.lines();
    for topic in topics {
        assert!(lines.any(|line| line.contains(topic)), "{topic} is not in its place in {topics:?}: {told}");
    }
    // The container's own exit is told once, with its status.
    let exits: Vec<&str> =
        told.lines().filter(|l| l.contains("/tasks/exit") && l.contains("\"id\":\"life\"")).collect();
    assert!(exits.len() == 1 && exits[0].contains("42"), "{exits:?}");
}

#[test]
fn a_terminal_has_its_size_and_follows_its_changes() {
    let _leaks = Guard::new();
    let containerd = Containerd::start();
    let (mut terminal, slave) = Terminal::open(41, 123);
    let script = "tty; stty size; read -r line; echo \"you said $line\"; \
                  trap 'echo now $(stty size)' WINCH; echo ready; while [ ! -e /tmp/end ]; do sleep 0.1; done; exit 5";
    let run = containerd.run(["--rm", "--tty"]).args([BUSYBOX, "tty", "sh", "-c", script]);
    let run = run.in_terminal(&slave);
    let run = run.deadline(STARTS * 2).start();
    terminal.shows("/dev/", STARTS);
    // ctr tells the size when the task runs, which may be after the shell's first look.
    terminal.type_in("hello\r");
    terminal.shows("you said hello", SOON);
    terminal.shows("ready", SOON);
    terminal.resize(50, 132);
    run.signal(nix::sys::signal::Signal::SIGWINCH);
    terminal.shows("now 50 132", SOON);
    exec(&containerd, "tty", "end", "touch /tmp/end").ok();
    run.wait().expect(5);
    containerd.holds_nothing();
}

#[test]
fn a_hundred_megabytes_pass_whole_in_both_directions() {
    let _leaks = Guard::new();
    let containerd = Containerd::start();
    let bytes = Noise::bytes(100 << 20);
    let run = containerd.run(["--rm"]).args([BUSYBOX, "bulk", "cat"]).deadline(BULK);
    let out = run.input(bytes.clone()).ok();
    assert!(out.stdout == bytes, "{} of {} bytes came back, or others", out.stdout.len(), bytes.len());
    containerd.holds_nothing();
}

#[test]
fn a_task_outlives_its_containerd() {
    let _leaks = Guard::new();
    let mut containerd = Containerd::start();
    detached(&containerd, "outlives", &["sh", "-c", "trap 'exit 6' TERM; while :; do sleep 0.1; done"]);
    containerd.restart();
    assert_eq!(status(&containerd, "outlives"), "RUNNING");
    exec(&containerd, "outlives", "e1", "exit 3").run().expect(3);
    containerd.ctr(["task", "kill", "outlives"]).ok();
    comes_to(&containerd, "outlives", "STOPPED");
    remove(&containerd, "outlives", 6);

    detached(&containerd, "killed", &["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"]);
    containerd.ctr(["task", "kill", "--signal", "KILL", "killed"]).ok();
    comes_to(&containerd, "killed", "STOPPED");
    remove(&containerd, "killed", 137);
    containerd.holds_nothing();
}

#[test]
fn a_wrong_runtime_configuration_is_told_to_the_user_and_leaves_nothing() {
    let _leaks = Guard::new();
    let containerd = Containerd::start();
    let config = containerd.file("configuration.toml");
    std::fs::write(&config, "[hypervisor.qemu]\nkernel = \"/nowhere/vmlinux\"\n").unwrap();
    let options = containerd.run(["--rm", "--runtime-config-path"]).arg(&config);
    let out = options.args([BUSYBOX, "wrong", "true"]).run().fails();
    assert!(out.err().contains("/nowhere/vmlinux"), "{}", out.report());
    containerd.holds_nothing();
}
