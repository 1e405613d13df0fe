//! Podman, which calls our command line itself and leaves a conmon with each container.

use std::time::Duration;

use kata_testkit::cmd::Cmd;
use kata_testkit::console::Terminal;
use kata_testkit::engine::Podman;
use kata_testkit::image::BUSYBOX;
use kata_testkit::leaks::Guard;
use kata_testkit::runtime::host_kernel;
use kata_testkit::wait;

/// For what happens at once in a VM that runs, on a slow machine.
const SOON: Duration = Duration::from_secs(15);
/// Until a VM has started.
const STARTS: Duration = Duration::from_secs(60);

/// A container in the background. conmon keeps the output of whoever started it.
fn detached(podman: &Podman, name: &str, script: &str) {
    let run = podman.run(["--detach", "--name", name, BUSYBOX, "sh", "-c", script]);
    run.output_to(&podman.file(&format!("{name}.log"))).ok();
}

fn exec(podman: &Podman, flags: &[&str], name: &str, script: &str) -> Cmd {
    podman.podman(["exec"]).args(flags).args([name, "sh", "-c", script])
}

fn inspect(podman: &Podman, name: &str, format: &str) -> String {
    podman.podman(["inspect", "--format", format, name]).ok().out()
}

#[test]
fn run_tells_the_containers_exit_code_and_runtimes_own_failures_apart() {
    let _leaks = Guard::new();
    let podman = Podman::new();
    let run = |command: &[&str]| podman.run(["--rm", BUSYBOX]).args(command).run();
    let out = run(&["uname", "-r"]).expect(0);
    assert!(!out.out().is_empty() && out.out() != host_kernel(), "{}", out.report());
    let out = run(&["sh", "-c", "echo out; echo err >&2; exit 7"]).expect(7);
    assert!(out.out() == "out" && out.err() == "err", "{}", out.report());
    run(&["/etc/not-a-program"]).expect(126).complained("permission denied");
    run(&["no-such-program"]).expect(127).complained("executable file");
    let out = podman.run(["--rm", "--interactive", BUSYBOX, "wc", "-c"]).input(vec![b'x'; 1 << 20]).ok();
    assert_eq!(out.out(), (1 << 20).to_string());
    podman.holds_nothing();
}

#[test]
fn a_container_lives_through_podmans_verbs() {
    let _leaks = Guard::new();
    let podman = Podman::new();
    detached(&podman, "life", "trap 'echo terminated; exit 42' TERM; echo started; while :; do sleep 0.1; done");
    let logs = || podman.podman(["logs", "life"]).ok().out();
    wait::until("its first words", SOON, || logs().contains("started").then_some(()));
    let rows = podman.podman(["ps", "--format", "{{.Names}} {{.Status}}"]).ok();
    assert!(rows.out().starts_with("life Up"), "{}", rows.report());

    let out = exec(&podman, &[], "life", "echo out; echo err >&2; exit 9").run().expect(9);
    assert!(out.out() == "out" && out.err() == "err", "{}", out.report());
    let flags = ["--user", "1000", "--env", "A=b c", "--workdir", "/home"];
    assert_eq!(exec(&podman, &flags, "life", "id -u; echo $A; pwd").ok().out(), "1000\nb c\n/home");
    podman.podman(["exec", "life", "no-such-program"]).run().expect(127);

    // podman looks into the /proc of the namespaces of the pid that stands for the container.
    let top = podman.podman(["top", "life", "args"]).ok();
    assert!(top.out().contains("sh -c trap") && top.out().lines().count() == 2, "{}", top.report());

    podman.podman(["pause", "life"]).ok();
    assert_eq!(inspect(&podman, "life", "{{.State.Status}}"), "paused");
    podman.podman(["unpause", "life"]).ok();

    podman.podman(["stop", "life"]).ok();
    assert_eq!(inspect(&podman, "life", "{{.State.Status}} {{.State.ExitCode}}"), "exited 42");
    assert!(logs().ends_with("terminated"), "{}", logs());
    podman.podman(["start", "life"]).output_to(&podman.file("again.log")).ok();
    wait::until("its second start", SOON, || (logs().matches("started").count() == 2).then_some(()));
    podman.podman(["kill", "--signal", "KILL", "life"]).ok();
    assert_eq!(podman.podman(["wait", "life"]).ok().out(), "137");
    podman.podman(["rm", "life"]).ok();

    detached(&podman, "forced", "exec sleep 1000");
    podman.podman(["rm", "--force", "--time", "0", "forced"]).ok();
    podman.holds_nothing();
}

#[test]
fn run_and_exec_in_a_terminal_have_its_size() {
    let _leaks = Guard::new();
    let podman = Podman::new();
    let (mut terminal, slave) = Terminal::open(41, 123);
    let script = "tty; read -r line; echo \"you said $line\"; stty size; read -r line; exit 5";
    let run = podman.run(["--rm", "--interactive", "--tty", "--name", "tty", BUSYBOX, "sh", "-c", script]);
    let run = run.in_terminal(&slave);
    let run = run.deadline(STARTS * 2).start();
    terminal.shows("/dev/", STARTS);
    terminal.type_in("hello\r");
    terminal.shows("you said hello", SOON);
    terminal.shows("41 123", SOON);

    let (mut second, slave2) = Terminal::open(30, 90);
    let exec = exec(&podman, &["--interactive", "--tty"], "tty", "tty; read -r line; stty size; exit 4");
    let exec = exec.in_terminal(&slave2);
    let exec = exec.start();
    second.shows("/dev/", SOON);
    second.type_in("x\r");
    second.shows("30 90", SOON);
    exec.wait().expect(4);

    terminal.type_in("end\r");
    run.wait().expect(5);
    podman.holds_nothing();
}

#[test]
fn volumes_limits_and_shared_memory_are_what_was_asked_for() {
    let _leaks = Guard::new();
    let podman = Podman::new();
    let data = podman.file("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("in"), "from the host").unwrap();
    let volume = |to: &str| format!("{}:{to}", data.display());
    let script = "cat /rw/in; echo; echo from the guest > /rw/out; touch /ro/x 2>&1; cat /sys/fs/cgroup/memory.max; \
                  df -k /dev/shm | tail -1 | awk '{print $2}'";
    let run =
        podman.run(["--rm", "--memory", "64m", "--shm-size", "8m", "-v", &volume("/rw"), "-v", &volume("/ro:ro")]);
    let out = run.args([BUSYBOX, "sh", "-c", script]).ok();
    let text = out.out();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "from the host", "{}", out.report());
    assert!(lines[1].contains("Read-only file system"), "{}", out.report());
    assert_eq!(lines[2..], ["67108864", "8192"], "{}", out.report());
    assert_eq!(std::fs::read_to_string(data.join("out")).unwrap(), "from the guest\n");
    podman.holds_nothing();
}
