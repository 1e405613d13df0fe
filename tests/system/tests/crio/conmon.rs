//! `runtime_type = "oci"`: conmon runs `kata-runtime create`, CRI-O itself the rest.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use kata_testkit::bundle::Bundle;
use kata_testkit::cmd::{Cmd, Output};
use kata_testkit::leaks::Guard;
use kata_testkit::runtime::{Runtime, json};
use kata_testkit::wait;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;

use crate::pod::{Pinned, container, process, sandbox};
use crate::{PATH, SOON, STARTS};

/// CRI-O's own directories.
struct Crio {
    runtime: Runtime,
}

impl Crio {
    fn new() -> Crio {
        let runtime = Runtime::new();
        for dir in ["exits", "attach", "logs"] {
            fs::create_dir(runtime.file(dir)).unwrap();
        }
        Crio { runtime }
    }

    fn dir(&self, name: &str) -> String {
        self.runtime.file(name).display().to_string()
    }

    fn log(&self, id: &str) -> PathBuf {
        self.runtime.file("logs").join(id)
    }

    /// Runs conmon with its two pipes, and returns what comes through the first: one JSON object, `wanted` in it.
    fn conmon(&self, id: &str, dir: &Path, args: &[String], wanted: &str) -> Value {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let next = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let pipe = |name: &str| {
            let path = self.runtime.file(&format!("{name}-{next}"));
            mkfifo(&path, Mode::S_IRWXU).unwrap();
            // Open at both ends, so that nobody waits for the other.
            let file = File::options().read(true).write(true).open(&path).unwrap();
            (path, file)
        };
        let ((sync_path, sync), (start_path, mut start)) = (pipe("sync"), pipe("start"));
        // conmon is in its cgroup now: it may go on.
        start.write_all(&[0]).unwrap();
        let script = "exec /usr/bin/conmon \"$@\" 3>\"$SYNC\" 4<\"$START\"";
        let run = Cmd::new("env").args(["-i", PATH, "_OCI_SYNCPIPE=3", "_OCI_STARTPIPE=4"]);
        let run = run.arg(format!("SYNC={}", sync_path.display())).arg(format!("START={}", start_path.display()));
        let run = run.args(["sh", "-c", script, "conmon"]).args(args).dir(dir).deadline(STARTS);
        let said = self.runtime.file(&format!("conmon-{next}"));
        let out = run.output_to(&said).run();
        // With --sync it ends as the process did; else it has gone into the background.
        let synced = args.iter().any(|arg| arg == "--sync");
        let words = || fs::read_to_string(&said).unwrap_or_default();
        assert!(synced || out.code() == 0, "{}\n{}", out.report(), words());
        let (send, receive) = mpsc::channel();
        let wanted = wanted.to_owned();
        std::thread::spawn(move || {
            for line in BufReader::new(sync).lines().map_while(Result::ok) {
                let value: Value = serde_json::from_str(&line).unwrap_or_default();
                if value.get(&wanted).is_some() {
                    let _ = send.send(value);
                    return;
                }
            }
        });
        receive.recv_timeout(STARTS).unwrap_or_else(|e| {
            panic!("conmon of {id} says nothing ({e}); its words: {}", fs::read_to_string(&said).unwrap_or_default())
        })
    }

    /// `CreateContainer`: the pid that stands for it.
    fn create(&self, bundle: &Bundle, id: &str) -> i64 {
        let dir = bundle.write();
        let at = |name: &str| dir.join(name).display().to_string();
        let log = self.log(id).display().to_string();
        let root = format!("--root={}", self.runtime.root().display());
        let program = self.runtime.program().display().to_string();
        let (name, uuid) = (format!("k8s_{id}"), id.to_owned());
        let args = [
            "-b",
            &dir.display().to_string(),
            "-c",
            id,
            "--exit-dir",
            &self.dir("exits"),
            "-l",
            &log,
            "--log-level",
            "info",
            "-n",
            &name,
            "-P",
            &at("conmon-pidfile"),
            "-p",
            &at("pidfile"),
            "--persist-dir",
            &at(""),
            "-r",
            &program,
            "--runtime-arg",
            &root,
            "--socket-dir-path",
            &self.dir("attach"),
            "-u",
            &uuid,
        ]
        .map(str::to_owned);
        let said = self.conmon(id, dir, &args, "pid");
        let pid = said["pid"].as_i64().unwrap();
        assert!(pid > 0, "container create failed: {said}");
        assert_eq!(fs::read_to_string(at("pidfile")).unwrap().trim(), pid.to_string());
        pid
    }

    /// `ExecSyncContainer`: its exit code and its output.
    fn exec_sync(&self, bundle: &mut Bundle, id: &str, script: &str, timeout: Option<u32>) -> (i64, String) {
        let dir = bundle.path().to_owned();
        let spec = process(bundle, &dir, script).display().to_string();
        let log = self.runtime.file("exec.log");
        drop(fs::remove_file(&log));
        let root = format!("--root={}", self.runtime.root().display());
        let program = self.runtime.program().display().to_string();
        let pid_file = dir.join("exec-pid").display().to_string();
        let words = [
            "-c",
            id,
            "-n",
            id,
            "-r",
            &program,
            "-p",
            &pid_file,
            "-e",
            "-l",
            &log.display().to_string(),
            "--socket-dir-path",
            &self.dir("attach"),
            "--log-level",
            "info",
            "--sync",
            "--exec-process-spec",
            &spec,
            "--runtime-arg",
            &root,
        ];
        let mut args: Vec<String> = words.map(str::to_owned).to_vec();
        if let Some(seconds) = timeout {
            args.extend(["-T".to_owned(), seconds.to_string()]);
        }
        let said = self.conmon(id, &dir, &args, "exit_code");
        (said["exit_code"].as_i64().unwrap(), output(&log, "stdout"))
    }

    /// A call of the runtime itself.
    fn call(&self, args: &[&str]) -> Output {
        self.runtime.cmd(args).run()
    }

    fn state(&self, id: &str) -> Value {
        json(&self.call(&["state", id]).expect(0))
    }

    /// What conmon left of a container's end.
    fn exit_code(&self, id: &str) -> String {
        let file = self.runtime.file("exits").join(id);
        wait::until(&format!("exit file of {id}"), SOON, || fs::read_to_string(&file).ok().filter(|s| !s.is_empty()))
    }

    /// `StopContainer` and `DeleteContainer`.
    fn end(&self, id: &str) {
        self.call(&["kill", id, "9"]).expect(0);
        self.exit_code(id);
        self.call(&["delete", "--force", id]).expect(0);
    }
}

/// What a log in the CRI's form holds of one stream: `TIME STREAM F|P TEXT`.
fn output(log: &Path, stream: &str) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines = text.lines().filter_map(|line| {
        let mut parts = line.splitn(4, ' ').skip(1);
        (parts.next() == Some(stream)).then(|| parts.nth(1).unwrap_or_default())
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_sandbox_is_created_started_and_ended_behind_conmon() {
    let _leaks = Guard::new();
    let crio = Crio::new();
    let pinned = Pinned::new("crio-sandbox");
    let infra = sandbox(&crio.runtime, &pinned, "infra");
    let pid = crio.create(&infra, "infra");
    let state = crio.state("infra");
    assert_eq!((state["status"].as_str(), state["pid"].as_i64()), (Some("created"), Some(pid)), "{state}");
    crio.call(&["start", "infra"]).expect(0);
    assert_eq!(crio.state("infra")["status"], "running");
    // It stops with the signal and the number that kubelet's runtime sends.
    crio.call(&["kill", "infra", "15"]).expect(0);
    let code = crio.exit_code("infra");
    assert!(["143", "0"].contains(&code.as_str()), "{code}");
    assert_eq!(crio.state("infra")["status"], "stopped");
    crio.call(&["delete", "--force", "infra"]).expect(0);
    assert!(crio.call(&["state", "infra"]).fails().err().contains("does not exist"));
}

#[test]
fn a_pod_of_two_containers_shares_one_vm() {
    let _leaks = Guard::new();
    let crio = Crio::new();
    let pinned = Pinned::new("crio-pod");
    let infra = sandbox(&crio.runtime, &pinned, "infra");
    crio.create(&infra, "infra");
    crio.call(&["start", "infra"]).expect(0);
    let script = |word: &str| format!("trap 'exit 5' TERM; echo {word}; echo err >&2; while :; do sleep 0.1; done");
    let mut one = container(&crio.runtime, &pinned, "one", "infra", &script("one"));
    let mut two = container(&crio.runtime, &pinned, "two", "infra", &script("two"));
    for (bundle, id) in [(&one, "one"), (&two, "two")] {
        crio.create(bundle, id);
        crio.call(&["start", id]).expect(0);
        let both = || [output(&crio.log(id), "stdout"), output(&crio.log(id), "stderr")];
        wait::until(&format!("words of {id}"), SOON, || (both() == [id, "err"]).then_some(()));
    }
    // One kernel, one host name, one network; processes for themselves.
    let boot = "cat /proc/sys/kernel/random/boot_id; hostname; readlink /proc/self/ns/net; readlink /proc/self/ns/ipc";
    let (code, first) = crio.exec_sync(&mut one, "one", boot, None);
    let (_, second) = crio.exec_sync(&mut two, "two", boot, None);
    assert_eq!((code, &first), (0, &second));
    assert!(!first.contains(fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim()));
    let pids = "readlink /proc/self/ns/pid";
    assert_ne!(crio.exec_sync(&mut one, "one", pids, None).1, crio.exec_sync(&mut two, "two", pids, None).1);
    assert_eq!(crio.exec_sync(&mut one, "one", "exit 9", None).0, 9);
    // conmon ends an exec that takes too long, and says so by its own code.
    assert_eq!(crio.exec_sync(&mut one, "one", "sleep 1000", Some(2)).0, -1);

    // `kubectl exec` runs the runtime without conmon.
    let dir = one.path().to_owned();
    let spec = process(&mut one, &dir, "cat; exit 4").display().to_string();
    let exec = crio.runtime.cmd(["exec", "--process", &spec, "one"]).input("through\n").run();
    assert_eq!(exec.expect(4).out(), "through");
    // `UpdateContainer`.
    let update =
        crio.runtime.cmd(["update", "--resources", "-", "one"]).input(r#"{"memory":{"limit":100663296}}"#).run();
    update.expect(0);
    assert_eq!(crio.exec_sync(&mut one, "one", "cat /sys/fs/cgroup/memory.max", None).1, "100663296");

    // One ends; the other goes on, and the first is replaced.
    crio.call(&["kill", "one", "15"]).expect(0);
    assert_eq!(crio.exit_code("one"), "5");
    crio.call(&["delete", "--force", "one"]).expect(0);
    assert_eq!(crio.state("two")["status"], "running");
    let again = container(&crio.runtime, &pinned, "again", "infra", "cat /proc/sys/kernel/random/boot_id");
    crio.create(&again, "again");
    crio.call(&["start", "again"]).expect(0);
    assert_eq!(crio.exit_code("again"), "0");
    assert_eq!(first.lines().next(), Some(output(&crio.log("again"), "stdout").as_str()));
    crio.call(&["delete", "--force", "again"]).expect(0);
    crio.end("two");
    crio.end("infra");
}
