//! The OCI command line: a container's life through every verb.

use std::time::Duration;

use kata_testkit::bundle::Bundle;
use kata_testkit::leaks::Guard;
use kata_testkit::runtime::{Runtime, debian_stage, host_kernel, json};
use kata_testkit::{skip, wait};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// For what happens at once in a VM that runs, on a slow machine.
const SOON: Duration = Duration::from_secs(15);

#[test]
fn run_is_a_process_in_a_kernel_of_its_own_whose_output_and_exit_code_arrive() {
    let _leaks = Guard::new();
    let rt = Runtime::new();
    let bundle = Bundle::busybox(&rt).sh("uname -r; echo complaint >&2; exit 7");
    let out = rt.run(&bundle, "first").run().expect(7);
    assert!(!out.out().is_empty() && out.out() != host_kernel(), "{}", out.report());
    assert!(out.ended && out.err() == "complaint", "{}", out.report());
    // Nothing is left to delete.
    rt.cmd(["state", "first"]).run().expect(1).complained("first");
}

#[test]
fn a_bundle_with_runcs_own_spec_runs() {
    let _leaks = Guard::new();
    let rt = Runtime::new();
    let bundle = Bundle::busybox(&rt).with_runc_spec().sh("echo $$ $(hostname); exit 3");
    let out = rt.run(&bundle, "runcs").run().expect(3);
    assert_eq!(out.out(), "1 runc");
}

#[test]
fn the_distributions_own_kernel_runs_a_container_too() {
    let Some(stage) = debian_stage() else { skip!("there is no installation with the distribution's kernel") };
    let _leaks = Guard::new();
    let rt = Runtime::of(&stage);
    let bundle = Bundle::busybox(&rt).sh("uname -r; cat /proc/self/mountinfo; exit 5");
    let out = rt.run(&bundle, "debian").run().expect(5);
    assert!(out.out().contains("amd64") || out.out().contains("arm64"), "{}", out.report());
}

#[test]
fn the_tuned_kernel_has_what_containers_need_and_the_guests_log_is_in_the_hosts() {
    let _leaks = Guard::new();
    let rt = Runtime::new().configured("[hypervisor.qemu]\nkernel_params = \"agent.check_kernel\"\n");
    let bundle = Bundle::busybox(&rt).args(["sleep", "1000"]);
    rt.create(&bundle, "checked");
    let sandbox = rt.sandbox("checked");
    // Written by the agent, with its level and where it comes from.
    wait::until("the agent's verdict in the daemon's log", SOON, || sandbox.log().contains("the kernel").then_some(()));
    let log = sandbox.log();
    let line = log.lines().find(|line| line.contains("the kernel")).unwrap();
    assert!(line.contains("INFO") && line.contains("guest: kata_guest::boot::kernel"), "{line}");
    assert!(line.contains("the kernel has every option that containers need"), "{line}");
    rt.delete("checked");
}

#[test]
fn a_container_lives_through_every_verb() {
    let _leaks = Guard::new();
    let rt = Runtime::new();
    let bundle = Bundle::busybox(&rt)
        .writable()
        .with(|spec| spec["annotations"] = json!({ "org.example.note": "kept" }))
        .sh("echo started; trap 'echo terminated; exit 42' TERM; while :; do echo x >> /tmp/ticks; sleep 0.1; done");
    let pid_file = rt.file("pid");
    let created = rt.cmd(["create", "--pid-file"]).arg(&pid_file).arg("--bundle").arg(bundle.write()).arg("life");
    created.output_to(&rt.log("life")).ok();

    // Created: it stands in `state`, its stand-in's pid in the file, and nothing of its own has run.
    let state = rt.state("life");
    let pid: i32 =
        std::fs::read_to_string(&pid_file).unwrap().parse().expect("a pid, and no line end, as runc does it");
    assert_eq!(state["status"], "created");
    assert_eq!(state["pid"], pid);
    assert_eq!(state["id"], "life");
    assert_eq!(state["bundle"], bundle.path().to_str().unwrap());
    assert_eq!(state["annotations"]["org.example.note"], "kept");
    assert!(state["ociVersion"].as_str().unwrap().starts_with("1."));
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert!(!bundle.rootfs().join("tmp/ticks").exists() && rt.said("life").is_empty());

    rt.cmd(["start", "life"]).ok();
    assert_eq!(rt.status("life"), "running");
    wait::until("output", SOON, || rt.said("life").contains("started").then_some(()));
    rt.cmd(["start", "life"]).run().expect(1).complained("life");

    listed(&rt, &bundle);
    executed(&rt);
    frozen(&rt, &bundle);
    measured_and_limited(&rt);

    // The end.
    rt.cmd(["delete", "life"]).run().expect(1).complained("life");
    rt.cmd(["kill", "life", "NOSUCH"]).run().expect(1).complained("NOSUCH");
    rt.cmd(["kill", "life", "TERM"]).ok();
    rt.comes_to("life", "stopped", SOON);
    assert_eq!(rt.said("life"), "started\nterminated\n");
    assert_eq!(rt.state("life")["pid"], 0, "a stopped container has no process");
    rt.cmd(["kill", "life", "KILL"]).run().expect(1).complained("container not running");
    rt.cmd(["exec", "life", "true"]).run().expect(255).complained("not running");
    rt.delete("life");
    rt.cmd(["state", "life"]).run().expect(1).complained("does not exist");
    rt.cmd(["delete", "life"]).run().expect(1).complained("does not exist");
    rt.cmd(["delete", "--force", "life"]).ok();
    assert_eq!(rt.cmd(["list", "-q"]).ok().out(), "");
}

fn listed(rt: &Runtime, bundle: &Bundle) {
    assert_eq!(rt.cmd(["list", "-q"]).ok().out(), "life");
    let table = rt.cmd(["list"]).ok().out();
    let (head, row) = table.split_once('\n').expect("a head and a row");
    for column in ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"] {
        assert!(head.contains(column), "{table}");
    }
    assert!(row.contains("life") && row.contains("running") && row.contains("root"), "{table}");
    let rows = json(&rt.cmd(["list", "--format", "json"]).ok());
    assert_eq!(rows[0]["id"], "life");
    assert_eq!(rows[0]["status"], "running");
    assert_eq!(rows[0]["bundle"], bundle.path().to_str().unwrap());
    // The host's pids that stand for the container: docker and podman look them up in the host's /proc.
    let pids = json(&rt.cmd(["ps", "--format", "json", "life"]).ok());
    assert_eq!(pids[0], rt.state("life")["pid"], "{pids}");
    let table = rt.cmd(["ps", "life"]).ok().out();
    assert!(table.contains("PID") && table.contains("sleep 0.1"), "{table}");
}

fn executed(rt: &Runtime) {
    rt.exec("life", "echo out; echo err >&2; exit 9").run().expect(9).said("out").complained("err");
    let out = rt
        .cmd(["exec", "--cwd", "/home", "--env", "A=b c", "--user", "1000:1000", "--additional-gids", "2000"])
        .args(["life", "sh", "-c", "pwd; echo $A; id"])
        .ok();
    assert_eq!(out.out(), "/home\nb c\nuid=1000(worker) gid=1000(worker) groups=2000(extra)");
    // It sees the container's processes, not the guest's.
    assert_eq!(rt.exec("life", "tr '\\0' ' ' < /proc/1/cmdline | cut -c1-6").ok().out(), "sh -c");
    // What cannot run says so in runc's words, from which docker makes 127 and 126.
    for (command, words) in [
        ("no-such-program", "executable file not found in $PATH"),
        ("/no/such/program", "no such file or directory"),
        ("/etc/not-a-program", "permission denied"),
    ] {
        rt.cmd(["exec", "life", command]).run().expect(255).complained(words).complained(command);
    }
    // A process from a file, detached, with its stand-in's pid in a file.
    let (process, pid_file) = (rt.file("process.json"), rt.file("exec-pid"));
    let text = json!({ "args": ["sh", "-c", "echo $WHO > /tmp/detached; exec sleep 1000"], "cwd": "/", "env": ["PATH=/bin", "WHO=me"],
                       "user": { "uid": 0, "gid": 0 } });
    std::fs::write(&process, text.to_string()).unwrap();
    let cmd = rt.cmd(["exec", "--detach", "--process"]).arg(&process).arg("--pid-file").arg(&pid_file).arg("life");
    cmd.output_to(&rt.file("exec.log")).ok();
    wait::until("what the detached process wrote", SOON, || {
        (rt.exec("life", "cat /tmp/detached").run().out() == "me").then_some(())
    });
    let pid: i32 = std::fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    assert!(rt.cmd(["ps", "life"]).ok().out().contains("sleep 1000"));
    let pids = json(&rt.cmd(["ps", "-f", "json", "life"]).ok());
    assert!(pids.as_array().unwrap().contains(&json!(pid)), "{pids} has no {pid}");
    // A signal to the stand-in is one to the process.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    wait::until("end of the detached process", SOON, || {
        (!rt.cmd(["ps", "life"]).ok().out().contains("sleep 1000")).then_some(())
    });
    let gone = || (!std::path::Path::new(&format!("/proc/{pid}/exe")).exists()).then_some(());
    wait::until("end of its stand-in", SOON, gone);
}

fn frozen(rt: &Runtime, bundle: &Bundle) {
    let ticks = || std::fs::metadata(bundle.rootfs().join("tmp/ticks")).unwrap().len();
    rt.cmd(["pause", "life"]).ok();
    assert_eq!(rt.status("life"), "paused");
    // What was written before may still be on its way to the host.
    std::thread::sleep(Duration::from_millis(300));
    let before = ticks();
    std::thread::sleep(Duration::from_millis(800));
    assert_eq!(ticks(), before, "it ran while it was paused");
    rt.exec("life", "true").run().expect(255).complained("paused");
    rt.cmd(["resume", "life"]).ok();
    assert_eq!(rt.status("life"), "running");
    wait::until("life after resume", SOON, || (ticks() > before).then_some(()));
}

fn measured_and_limited(rt: &Runtime) {
    let stats = json(&rt.cmd(["events", "--stats", "life"]).ok());
    assert_eq!(stats["type"], "stats");
    assert_eq!(stats["id"], "life");
    let data = &stats["data"];
    assert!(data["memory"]["usage"]["usage"].as_u64().unwrap() > 0, "{stats}");
    assert!(data["cpu"]["usage"]["total"].as_u64().unwrap() > 0, "{stats}");
    assert!(data["pids"]["current"].as_u64().unwrap() >= 2, "{stats}");

    rt.cmd([
        "update",
        "--memory",
        "48m",
        "--pids-limit",
        "77",
        "--cpu-quota",
        "50000",
        "--cpu-period",
        "100000",
        "life",
    ])
    .ok();
    let read = |file: &str| rt.exec("life", &format!("cat /sys/fs/cgroup/{file}")).ok().out();
    assert_eq!(read("memory.max"), (48 << 20).to_string());
    assert_eq!(read("pids.max"), "77");
    assert_eq!(read("cpu.max"), "50000 100000");
    let limit = &json(&rt.cmd(["events", "--stats", "life"]).ok())["data"]["memory"]["usage"]["limit"];
    assert_eq!(limit, 48 << 20);
    let resources = rt.file("resources.json");
    std::fs::write(&resources, json!({ "memory": { "limit": 64 << 20 } }).to_string()).unwrap();
    rt.cmd(["update", "--resources"]).arg(&resources).arg("life").ok();
    assert_eq!(read("memory.max"), (64 << 20).to_string());
    rt.cmd(["update", "life"]).run().expect(1).complained("limit");
}

#[test]
fn signals_to_run_and_by_kill_reach_the_process() {
    let _leaks = Guard::new();
    let rt = Runtime::new();
    let script = "trap 'echo usr1' USR1; trap 'echo hup' HUP; trap 'echo term; exit 12' TERM; echo ready; \
                  while :; do sleep 0.1; done";
    let bundle = Bundle::busybox(&rt).sh(script);
    let mut run = rt.run(&bundle, "signals").start();
    run.says("ready");
    run.signal(Signal::SIGUSR1);
    run.says("usr1");
    rt.cmd(["kill", "signals", "SIGHUP"]).ok();
    run.says("hup");
    rt.cmd(["kill", "signals", "10"]).ok();
    run.says("usr1\nhup\nusr1");
    run.signal(Signal::SIGTERM);
    let out = run.wait().expect(12);
    assert!(out.out().ends_with("term"), "{}", out.report());
}

#[test]
fn kill_ends_every_process_and_delete_by_force_a_running_container() {
    let _leaks = Guard::new();
    let rt = Runtime::new();
    let bundle = Bundle::busybox(&rt).sh("trap '' TERM; sleep 1000 & echo ready; wait");
    let mut run = rt.cmd(["run", "--keep", "--bundle"]).arg(bundle.write()).arg("killed").start();
    run.says("ready");
    let mut exec = rt.exec("killed", "echo in it; sleep 1000").start();
    exec.says("in it");
    rt.cmd(["kill", "--all", "killed", "KILL"]).ok();
    run.wait().expect(137);
    exec.wait().expect(137);
    // Kept, as was asked.
    assert_eq!(rt.status("killed"), "stopped");
    rt.delete("killed");

    rt.run_detached(&bundle, "forced");
    rt.cmd(["delete", "--force", "forced"]).ok();
    rt.cmd(["state", "forced"]).run().expect(1);
    // A created one is deleted without force, as runc does it.
    rt.create(&bundle, "never-started");
    rt.delete("never-started");
}

#[test]
fn containers_started_at_once_do_not_disturb_each_other() {
    let _leaks = Guard::new();
    let rt = Runtime::new();
    let bundles: Vec<(String, Bundle)> = (1..=3)
        .map(|n| (format!("twin-{n}"), Bundle::busybox(&rt).sh(&format!("echo I am $(hostname) {n}; exit {n}"))))
        .collect();
    let long = Duration::from_secs(120);
    let running: Vec<_> = bundles.iter().map(|(id, bundle)| rt.run(bundle, id).deadline(long).start()).collect();
    for (n, run) in (1..).zip(running) {
        run.wait().expect(n).said(&format!(" {n}"));
    }
}

#[test]
fn verbs_without_a_container_need_no_virtual_machine() {
    let _leaks = Guard::new();
    let rt = Runtime::new();
    let version = rt.cmd(["--version"]).ok().out();
    assert!(version.starts_with("kata-runtime version ") && version.contains("spec: 1."), "{version}");
    rt.cmd(["version"]).ok().said("kata-runtime");

    let features = json(&rt.cmd(["features"]).ok());
    assert!(features["ociVersionMin"].is_string() && features["ociVersionMax"].is_string(), "{features}");
    for (list, member) in [("hooks", "poststop"), ("mountOptions", "rbind")] {
        assert!(features[list].as_array().unwrap().contains(&json!(member)), "{features}");
    }
    assert!(features["linux"]["namespaces"].as_array().unwrap().contains(&json!("pid")), "{features}");

    let check = rt.cmd(["check"]).ok();
    for word in ["accelerator", "vsock", "vhost", "cgroups", "overlay", "guest kernel", "guest initrd"] {
        assert!(check.out().contains(word), "no {word}: {}", check.report());
    }
    rt.cmd(["kata-check", "--verbose"]).ok().said("versions");

    let env = rt.cmd(["env"]).ok().out();
    assert!(env.contains("[configuration.hypervisor.qemu]") && env.contains("default_memory"), "{env}");
    let env = json(&rt.cmd(["env", "--json"]).ok());
    let kernel = env["configuration"]["hypervisor"]["qemu"]["kernel"].as_str().unwrap();
    assert!(std::path::Path::new(kernel).exists(), "{kernel}");

    assert_eq!(rt.cmd(["list", "--quiet"]).ok().out(), "");
    assert_eq!(json(&rt.cmd(["list", "--format", "json"]).ok()), Value::Array(Vec::new()));
    // clap's and runc's way with a word that is none.
    let out = rt.cmd(["no-such-verb"]).run();
    assert!(out.code() != 0 && out.err().contains("no-such-verb"), "{}", out.report());
}

#[test]
fn an_error_goes_to_the_log_in_the_form_that_engines_read() {
    let _leaks = Guard::new();
    let rt = Runtime::new();
    let log = rt.file("log.json");
    let out = rt.cmd(["--log-format", "json", "--log"]).arg(&log).args(["state", "nobody"]).run().expect(1);
    let line: Value = serde_json::from_str(std::fs::read_to_string(&log).unwrap().trim()).expect("one JSON object");
    assert_eq!(line["level"], "error");
    assert!(line["msg"].as_str().unwrap().contains("nobody") && line["time"].is_string(), "{line}");
    assert!(out.complained("nobody").err().lines().count() == 1);

    let log = rt.file("log.text");
    rt.cmd(["--log"]).arg(&log).args(["state", "nobody"]).run().expect(1);
    let line = std::fs::read_to_string(&log).unwrap();
    assert!(line.contains("level=error") && line.contains("msg=") && line.contains("nobody"), "{line}");
}

/// The file daemon holds a descriptor for each file that the guest remembers, and may hold 20,000 on some hosts.
#[test]
fn a_tree_of_more_files_than_the_file_daemon_can_hold_is_seen_whole() {
    const FILES: usize = 25_000;
    let _leaks = Guard::new();
    let rt = Runtime::new();
    let data = rt.file("many");
    std::fs::create_dir(&data).unwrap();
    for n in 0..FILES {
        std::fs::write(data.join(n.to_string()), "x").unwrap();
    }
    let script = "find /many -type f | wc -l; ls -l /many | wc -l; find /many -type f -print0 | xargs -0 cat | wc -c; \
                  for n in $(seq 3000); do echo $n > /many/new-$n || exit 9; done; ls /many | wc -l; rm -r /many/*; ls /many | wc -l";
    let bundle = Bundle::busybox(&rt).mount("/many", "bind", &data, &["rbind", "rw"]).sh(script);
    let out = rt.run(&bundle, "many").deadline(Duration::from_secs(300)).run().expect(0);
    let counts: Vec<usize> = out.out().lines().map(|line| line.trim().parse().unwrap()).collect();
    assert_eq!(counts, [FILES, FILES + 1, FILES, FILES + 3000, 0], "{}", out.report());
    assert_eq!(std::fs::read_dir(&data).unwrap().count(), 0);
}

/// What is left of a sandbox goes while the next one of its id begins, and takes nothing of that one's along.
#[test]
fn an_id_can_be_used_again_at_once() {
    let _leaks = Guard::new();
    let rt = Runtime::new();
    for round in 0..8 {
        let bundle = Bundle::busybox(&rt).sh(&format!("echo round {round}"));
        let out = rt.run(&bundle, "again").ok();
        assert_eq!(out.out(), format!("round {round}"));
    }
}
