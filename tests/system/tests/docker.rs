//! Docker, with our command line as a runtime by its path, without networks.

use std::time::Duration;

use kata_testkit::cmd::Cmd;
use kata_testkit::console::Terminal;
use kata_testkit::engine::Docker;
use kata_testkit::image::BUSYBOX;
use kata_testkit::leaks::Guard;
use kata_testkit::noise::Noise;
use kata_testkit::runtime::host_kernel;
use kata_testkit::wait;
use nix::sys::signal::Signal;

/// For what happens at once in a VM that runs, on a slow machine.
const SOON: Duration = Duration::from_secs(15);
/// Until a VM has started.
const STARTS: Duration = Duration::from_secs(60);
/// 100 MB take a while without hardware virtualisation.
const BULK: Duration = Duration::from_secs(300);

/// A container in the background.
fn detached(docker: &Docker, name: &str, flags: &[&str], script: &str) {
    docker.run(["--detach", "--name", name]).args(flags).args([BUSYBOX, "sh", "-c", script]).ok();
}

fn exec(docker: &Docker, flags: &[&str], name: &str, script: &str) -> Cmd {
    docker.docker(["exec"]).args(flags).args([name, "sh", "-c", script])
}

fn running(docker: &Docker, name: &str) -> bool {
    docker.inspect(name, "{{.State.Running}}") == "true"
}

#[test]
fn run_tells_the_containers_exit_code_and_runtimes_own_failures_apart() {
    let _leaks = Guard::new();
    let docker = Docker::start();
    let run = |command: &[&str]| docker.run(["--rm", BUSYBOX]).args(command).run();
    let out = run(&["uname", "-r"]).expect(0);
    assert!(!out.out().is_empty() && out.out() != host_kernel(), "{}", out.report());
    let out = run(&["sh", "-c", "echo out; echo err >&2; exit 7"]).expect(7);
    assert!(out.out() == "out" && out.err() == "err", "{}", out.report());
    run(&["/etc/not-a-program"]).expect(126).complained("permission denied");
    run(&["no-such-program"]).expect(127).complained("executable file not found in $PATH");
    run(&["/no/such/program"]).expect(127).complained("no such file or directory");
    docker.holds_nothing();
}

#[test]
fn exec_has_its_own_user_environment_directory_terminal_and_exit_code() {
    let _leaks = Guard::new();
    let docker = Docker::start();
    detached(&docker, "box", &[], "exec sleep 1000");
    let out = exec(&docker, &[], "box", "echo out; echo err >&2; exit 9").run().expect(9);
    assert!(out.out() == "out" && out.err() == "err", "{}", out.report());
    let flags = ["--user", "1000:2000", "--env", "A=b c", "--workdir", "/home"];
    let out = exec(&docker, &flags, "box", "id -u; id -g; echo $A; pwd").ok();
    assert_eq!(out.out(), "1000\n2000\nb c\n/home");
    assert_eq!(exec(&docker, &["--user", "worker"], "box", "id -un").ok().out(), "worker");
    assert_eq!(exec(&docker, &["--interactive"], "box", "wc -c").input(vec![b'x'; 100_000]).ok().out(), "100000");
    // docker of this age says 126 for both, with runc too.
    docker.run_with("runc", ["--detach", "--name", "beside"]).args([BUSYBOX, "sleep", "1000"]).ok();
    for (program, words) in
        [("no-such-program", "executable file not found"), ("/etc/not-a-program", "permission denied")]
    {
        let code = docker.docker(["exec", "beside", program]).run().code();
        docker.docker(["exec", "box", program]).run().expect(code).said(words);
    }
    docker.docker(["rm", "--force", "beside"]).ok();
    exec(&docker, &["--detach"], "box", "echo done > /tmp/detached").ok();
    wait::until("what a detached exec wrote", SOON, || {
        (exec(&docker, &[], "box", "cat /tmp/detached").run().out() == "done").then_some(())
    });

    let (mut terminal, slave) = Terminal::open(37, 111);
    let script = "tty; read -r line; echo \"you said $line\"; stty size; trap 'echo now $(stty size)' WINCH; echo ready; \
                  while [ ! -e /tmp/end ]; do sleep 0.1; done; exit 5";
    let tty = exec(&docker, &["--interactive", "--tty"], "box", script);
    let tty = tty.in_terminal(&slave);
    let tty = tty.start();
    terminal.shows("/dev/", SOON);
    terminal.type_in("hello\r");
    terminal.shows("you said hello", SOON);
    terminal.shows("37 111", SOON);
    terminal.shows("ready", SOON);
    terminal.resize(52, 130);
    tty.signal(Signal::SIGWINCH);
    terminal.shows("now 52 130", SOON);
    exec(&docker, &[], "box", "touch /tmp/end").ok();
    tty.wait().expect(5);
    docker.docker(["rm", "--force", "box"]).ok();
    docker.holds_nothing();
}

#[test]
fn run_in_a_terminal_has_its_size_and_follows_its_changes() {
    let _leaks = Guard::new();
    let docker = Docker::start();
    let (mut terminal, slave) = Terminal::open(41, 123);
    let script = "tty; read -r line; echo \"you said $line\"; stty size; trap 'echo now $(stty size)' WINCH; \
                  trap 'echo interrupted; exit 8' INT; echo ready; while :; do sleep 0.1; done";
    let run = docker.run(["--rm", "--interactive", "--tty", BUSYBOX, "sh", "-c", script]);
    let run = run.in_terminal(&slave);
    let run = run.deadline(STARTS * 2).start();
    terminal.shows("/dev/", STARTS);
    terminal.type_in("hello\r");
    terminal.shows("you said hello", SOON);
    terminal.shows("41 123", SOON);
    terminal.shows("ready", SOON);
    terminal.resize(50, 132);
    run.signal(Signal::SIGWINCH);
    terminal.shows("now 50 132", SOON);
    terminal.type_in("\x03");
    terminal.shows("interrupted", SOON);
    run.wait().expect(8);
    docker.holds_nothing();
}

#[test]
fn a_container_is_stopped_killed_paused_waited_for_and_restarted() {
    let _leaks = Guard::new();
    let docker = Docker::start();
    let script =
        "trap 'echo terminated; exit 42' TERM; trap 'echo usr1' USR1; echo started; while :; do sleep 0.1; done";
    detached(&docker, "life", &[], script);
    let logs = || docker.docker(["logs", "life"]).ok().out();
    let says = |text: &str| wait::until(text, SOON, || logs().ends_with(text).then_some(()));
    says("started");
    docker.docker(["kill", "--signal", "USR1", "life"]).ok();
    says("usr1");

    docker.docker(["pause", "life"]).ok();
    assert_eq!(docker.inspect("life", "{{.State.Status}}"), "paused");
    exec(&docker, &[], "life", "true").run().fails().complained("paused");
    docker.docker(["unpause", "life"]).ok();
    assert_eq!(docker.inspect("life", "{{.State.Status}}"), "running");

    // One line for the container's first process; docker runs the host's ps on the pids that we tell.
    let top = docker.docker(["top", "life", "-o", "pid,args"]).ok();
    assert!(top.out().contains("sh -c trap") && top.out().lines().count() == 2, "{}", top.report());

    let waiting = docker.docker(["wait", "life"]).start();
    docker.docker(["stop", "life"]).ok();
    assert_eq!(waiting.wait().expect(0).out(), "42");
    assert_eq!(docker.inspect("life", "{{.State.ExitCode}} {{.State.OOMKilled}}"), "42 false");
    says("terminated");
    exec(&docker, &[], "life", "true").run().fails().complained("not running");

    docker.docker(["start", "life"]).ok();
    says("started");
    docker.docker(["restart", "--time", "0", "life"]).ok();
    wait::until("second start in the log", SOON, || (logs().matches("started").count() == 3).then_some(()));
    docker.docker(["kill", "life"]).ok();
    wait::until("end of it", SOON, || (!running(&docker, "life")).then_some(()));
    assert_eq!(docker.inspect("life", "{{.State.ExitCode}}"), "137");
    docker.docker(["rm", "life"]).ok();
    docker.holds_nothing();
}

#[test]
fn a_process_that_ignores_the_signal_is_killed_when_stop_has_waited() {
    let _leaks = Guard::new();
    let docker = Docker::start();
    detached(&docker, "deaf", &[], "trap '' TERM; echo started; while :; do sleep 0.1; done");
    docker.docker(["stop", "--time", "1", "deaf"]).ok();
    assert_eq!(docker.inspect("deaf", "{{.State.ExitCode}}"), "137");
    docker.docker(["rm", "deaf"]).ok();
    docker.holds_nothing();
}

#[test]
fn volumes_tmpfs_and_shared_memory_are_what_was_asked_for() {
    let _leaks = Guard::new();
    let docker = Docker::start();
    let data = docker.file("volume");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("in"), "from the host").unwrap();
    std::fs::write(docker.file("one-file"), "single").unwrap();
    let volume = |from: &str, to: &str| format!("{}:{to}", docker.file(from).display());
    let script = "cat /rw/in /one; echo; echo from the guest > /rw/out; touch /ro/x 2>&1; echo kept > /named/f; \
                  df -k /t | tail -1 | awk '{print $2}'; df -k /dev/shm | tail -1 | awk '{print $2}'; \
                  cat /etc/hostname; grep -c $(hostname) /etc/hosts; touch /x 2>&1";
    let run = docker.run(["--rm", "--hostname", "inside", "--read-only", "--tmpfs", "/t:size=2m", "--shm-size", "8m"]);
    let run = run.args(["-v", &volume("volume", "/rw"), "-v", &format!("{}:ro", volume("volume", "/ro"))]);
    let run = run.args(["-v", &volume("one-file", "/one:ro"), "-v", "named:/named"]);
    let out = run.args([BUSYBOX, "sh", "-c", script]).run();
    let text = out.out();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "from the hostsingle", "{}", out.report());
    assert!(lines[1].contains("Read-only file system"), "{}", out.report());
    assert_eq!(lines[2..5], ["2048", "8192", "inside"], "{}", out.report());
    assert!(lines[6].contains("Read-only file system"), "{}", out.report());
    assert_eq!(std::fs::read_to_string(data.join("out")).unwrap(), "from the guest\n");
    // A named volume is there for the next container.
    docker.run(["--rm", "-v", "named:/n", BUSYBOX, "cat", "/n/f"]).ok().said("kept");
    docker.docker(["volume", "rm", "named"]).ok();
    docker.holds_nothing();
}

#[test]
fn limits_hold_in_the_guest_and_can_be_changed() {
    let _leaks = Guard::new();
    let docker = Docker::start();
    detached(&docker, "limited", &["--memory", "64m", "--cpus", "0.5", "--pids-limit", "50"], "exec sleep 1000");
    let read = |file: &str| exec(&docker, &[], "limited", &format!("cat /sys/fs/cgroup/{file}")).ok().out();
    assert_eq!(read("memory.max"), (64 << 20).to_string());
    assert_eq!(read("cpu.max"), "50000 100000");
    assert_eq!(read("pids.max"), "50");
    docker.docker(["update", "--memory", "96m", "--memory-swap", "96m", "limited"]).ok();
    assert_eq!(read("memory.max"), (96 << 20).to_string());
    docker.docker(["rm", "--force", "limited"]).ok();

    // Two CPUs, and memory beyond what a VM boots with.
    let cpus = std::thread::available_parallelism().unwrap().get().min(2);
    let out =
        docker.run(["--rm", "--memory", "1500m", "--tmpfs", "/t", "--cpus", &cpus.to_string(), BUSYBOX, "sh", "-c"]);
    let out =
        out.arg("nproc; dd if=/dev/zero of=/t/f bs=1M count=1200 2>/dev/null; wc -c < /t/f; awk '/MemTotal/ {print $2}' /proc/meminfo").ok();
    let text = out.out();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], cpus.to_string(), "{}", out.report());
    assert!(lines[2].parse::<u64>().unwrap() >= 1450 << 10, "{}", out.report());

    // A process that needs more than it may have is killed, and docker is told why.
    let greedy = docker.run(["--name", "greedy", "--memory", "32m", BUSYBOX, "sh", "-c"]);
    greedy.arg("head -c 200m /dev/zero | tail -c 150m | wc -c; [ $? = 0 ] && exit 1").run().fails();
    docker.docker(["rm", "greedy"]).ok();
    docker.holds_nothing();
}

#[test]
fn a_hundred_megabytes_pass_whole_in_both_directions() {
    let _leaks = Guard::new();
    let docker = Docker::start();
    let bytes = Noise::bytes(100 << 20);
    let run = docker.run(["--rm", "--interactive", "--log-driver", "none", BUSYBOX, "cat"]).deadline(BULK);
    let out = run.input(bytes.clone()).ok();
    assert!(out.stdout == bytes, "{} of {} bytes came back, or others", out.stdout.len(), bytes.len());
    docker.holds_nothing();
}

#[test]
fn what_cannot_be_done_is_refused_with_the_reason() {
    let _leaks = Guard::new();
    let docker = Docker::start();
    // A device of no kind that a guest has (Documentation/admin-guide/devices.txt: 240 is for experiments).
    let node = docker.file("device");
    let kind = nix::sys::stat::SFlag::S_IFCHR;
    let mode = nix::sys::stat::Mode::S_IRUSR;
    nix::sys::stat::mknod(&node, kind, mode, nix::sys::stat::makedev(240, 7)).unwrap();
    let node = node.display().to_string();
    docker.run(["--rm", "--device", &node, BUSYBOX, "true"]).run().expect(125).complained(&node);
    docker.holds_nothing();
}
