//! The spawner and the probe against the real kernel. As root everything is tested; otherwise what root is needed for
//! is skipped with a line that says so.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use kata_testkit::harness::{self, block_on};
use kata_vmm::spawn::{Bind, RLimit, Root, Spawn, Spawned, helper_main, kill_recorded, start_time};
use kata_vmm::{Accel, choose_accel, probe_kvm};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match args.first().and_then(|a| a.to_str()) {
        Some("spawn") => return helper_main(args[1..].to_vec()),
        Some("parent-that-dies") => parent_that_dies(),
        _ => {}
    }
    harness::run(
        &args,
        &[
            ("runs_a_program_and_tells_how_it_ended", runs_a_program_and_tells_how_it_ended),
            ("stderr_is_kept", stderr_is_kept),
            ("errors_name_the_step", errors_name_the_step),
            ("is_killed_and_reaped_on_drop", is_killed_and_reaped_on_drop),
            ("dies_with_its_parent", dies_with_its_parent),
            ("only_the_descriptors_meant_for_it", only_the_descriptors_meant_for_it),
            ("namespaces_are_its_own", namespaces_are_its_own),
            ("user_and_capabilities", user_and_capabilities),
            ("kept_capabilities_of_another_user", kept_capabilities_of_another_user),
            ("limits", limits),
            ("joins_cgroups", joins_cgroups),
            ("sees_only_its_root", sees_only_its_root),
            ("a_signal_is_told_as_one", a_signal_is_told_as_one),
            ("a_recorded_process_is_killed_unless_it_is_another", a_recorded_process_is_killed_unless_it_is_another),
            ("the_probe_never_hangs", the_probe_never_hangs),
        ],
        Duration::from_secs(30),
    )
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

fn root_needed() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("SKIP: needs root");
    }
    root
}

/// A shell that writes to the stream at descriptor 3; with what it wrote.
async fn shell(script: &str, jail: impl FnOnce(Spawn) -> Spawn) -> (String, kata_vmm::VmExit) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let spawn = Spawn::new("/bin/sh").args(["-c", script]).env("PATH", "/usr/bin:/bin").fd(3, theirs.into());
    let spawned = jail(spawn).start(soon()).await.unwrap_or_else(|e| panic!("{e}: {}", e.source));
    let exit = tokio::time::timeout(Duration::from_secs(10), spawned.wait()).await.unwrap();
    let mut said = String::new();
    ours.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    ours.read_to_string(&mut said).unwrap();
    (said, exit)
}

fn sleeper() -> Spawn {
    Spawn::new("/bin/sleep").arg("1000")
}

fn gone(pid: i32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

fn runs_a_program_and_tells_how_it_ended() {
    block_on(async {
        let (said, exit) = shell("echo hello >&3; exit 7", |s| s).await;
        assert_eq!((said.as_str(), exit.code, exit.signal, exit.expected), ("hello\n", Some(7), None, false));
    });
}

fn stderr_is_kept() {
    block_on(async {
        let (_, exit) = shell("seq 1 5000 >&2; echo last words >&2", |s| s.pid_ns()).await;
        assert!(exit.stderr_tail.ends_with("4999\n5000\nlast words"), "{exit:?}");
        let quiet = shell("true", |s| s).await.1;
        assert_eq!(quiet.to_string(), "exited with code 0");
    });
}

fn errors_name_the_step() {
    block_on(async {
        let e = Spawn::new("/no/such/program").start(soon()).await.unwrap_err();
        assert_eq!((e.step.as_str(), e.what.as_str()), ("execute", "/no/such/program"));
        assert_eq!(e.source.kind(), std::io::ErrorKind::NotFound);
        let cgroup = PathBuf::from("/sys/fs/cgroup/no/such/cgroup");
        let e = sleeper().cgroups(&[cgroup]).start(soon()).await.unwrap_err();
        assert_eq!((e.step.as_str(), e.what.as_str()), ("join cgroup", "/sys/fs/cgroup/no/such/cgroup"));
        if root_needed() {
            let e = sleeper().capabilities(&["NO_SUCH"]).start(soon()).await.unwrap_err();
            assert_eq!((e.step.as_str(), e.what.as_str()), ("keep capability", "NO_SUCH"));
            let root = Root { binds: vec![Bind::at("/no/such/file", "/file")], devices: vec![], proc: false };
            let e = sleeper().pid_ns().root(root).start(soon()).await.unwrap_err();
            assert_eq!((e.step.as_str(), e.what.as_str()), ("open for the new root", "/no/such/file"));
        }
        let e = sleeper().start(Instant::now() - Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(e.source.kind(), std::io::ErrorKind::TimedOut);
    });
}

fn is_killed_and_reaped_on_drop() {
    block_on(async {
        for pid_ns in [false, true] {
            if pid_ns && !root_needed() {
                continue;
            }
            let spawn = if pid_ns { sleeper().pid_ns() } else { sleeper() };
            let spawned: Spawned = spawn.start(soon()).await.unwrap();
            let (pid, mut exited) = (spawned.pid(), spawned.exited());
            assert!(!gone(pid));
            drop(spawned);
            assert!(gone(pid), "a zombie, or alive");
            let exit = exited.wait_for(Option::is_some).await.unwrap().clone().unwrap();
            assert_eq!((exit.signal, exit.expected), (Some(9), true));
        }
    });
}

/// The other half of `dies_with_its_parent`: prints its child's pid and waits to be killed.
fn parent_that_dies() {
    block_on(async {
        let spawn = if std::env::args().any(|a| a == "pid-ns") { sleeper().pid_ns() } else { sleeper() };
        let spawned = spawn.user_if_root().start(soon()).await.unwrap();
        println!("{}", spawned.pid());
        std::future::pending::<()>().await;
    });
}

trait UserIfRoot {
    fn user_if_root(self) -> Self;
}

impl UserIfRoot for Spawn {
    /// Another user where that is possible: the change of user takes the death signal away.
    fn user_if_root(self) -> Self {
        if rustix::process::geteuid().is_root() { self.user(400_001, 400_001) } else { self }
    }
}

fn dies_with_its_parent() {
    for mode in ["plain", "pid-ns"] {
        if mode == "pid-ns" && !root_needed() {
            continue;
        }
        let mut parent = std::process::Command::new("/proc/self/exe")
            .args(["parent-that-dies", mode])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = std::io::BufReader::new(parent.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        let pid: i32 = line.trim().parse().unwrap();
        assert!(!gone(pid));
        parent.kill().unwrap();
        parent.wait().unwrap();
        let deadline = soon();
        // Whoever reaps it now, it does not run any more.
        while std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z ")) {
            assert!(Instant::now() < deadline, "{mode}: the child outlives its parent");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn only_the_descriptors_meant_for_it() {
    // One that is inheritable by mistake must not get through.
    let leak = std::fs::File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
    block_on(async {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(b"by 7\n").unwrap();
        let (said, _) = shell("ls /proc/self/fd >&3; read line <&7; echo $line >&3", |s| s.fd(7, theirs.into())).await;
        // 0, 1, 2, ours, and the one by which ls reads the directory.
        assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3", "4", "7", "by", "7"]);
    });
    drop(leak);
}

fn namespaces_are_its_own() {
    if !root_needed() {
        return;
    }
    block_on(async {
        let list = "for n in mnt pid net ipc uts; do readlink /proc/$$/ns/$n >&3; done; echo $$ >&3";
        // Without a mount of its own, /proc shows the host's pids: $$ is 1 in a new pid namespace.
        let host: Vec<String> = ["mnt", "pid", "net", "ipc", "uts"]
            .iter()
            .map(|n| std::fs::read_link(format!("/proc/self/ns/{n}")).unwrap().display().to_string())
            .collect();
        let (said, _) = shell(list, |s| s).await;
        assert_eq!(said.lines().take(5).collect::<Vec<_>>(), host);
        let list = "for n in mnt pid net ipc uts; do readlink /proc/self/ns/$n >&3; done; echo $$ >&3; ls -A /sys/class/net >&3";
        let (said, _) =
            shell(&format!("mount -t proc proc /proc; {list}"), |s| s.mount_ns().pid_ns().net_ns().ipc_ns()).await;
        let lines: Vec<&str> = said.lines().collect();
        for (ours, host) in lines.iter().take(5).zip(&host) {
            assert_ne!(ours, host);
        }
        assert_eq!(lines[5], "1");
        assert!(Path::new("/proc/1").exists(), "a mount got out of the namespace");
    });
}

fn status_line(said: &str, name: &str) -> String {
    said.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_else(|| panic!("{name} in {said}")).trim().to_owned()
}

fn user_and_capabilities() {
    if !root_needed() {
        return;
    }
    block_on(async {
        let (said, exit) = shell("cat /proc/self/status >&3", |s| s.user(400_000, 400_000)).await;
        assert_eq!(exit.code, Some(0), "{exit}");
        assert_eq!(status_line(&said, "Uid:"), "400000\t400000\t400000\t400000");
        assert_eq!(status_line(&said, "Gid:"), "400000\t400000\t400000\t400000");
        assert_eq!(status_line(&said, "Groups:"), "");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(status_line(&said, set), "0000000000000000", "{set}");
        }
        assert_eq!(status_line(&said, "NoNewPrivs:"), "1");
        // Root with a short list: CHOWN is bit 0, SETUID bit 7.
        let (said, _) = shell("cat /proc/self/status >&3", |s| s.capabilities(&["CHOWN", "SETUID"])).await;
        for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
            assert_eq!(status_line(&said, set), "0000000000000081", "{set}");
        }
    });
}

fn kept_capabilities_of_another_user() {
    if !root_needed() {
        return;
    }
    block_on(async {
        let (said, _) = shell("cat /proc/self/status >&3", |s| s.user(400_000, 400_000).capabilities(&["CHOWN"])).await;
        for set in ["CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(status_line(&said, set), "0000000000000001", "{set}");
        }
    });
}

fn limits() {
    block_on(async {
        let (said, _) = shell("ulimit -Sn >&3; ulimit -Hn >&3; ulimit -c >&3", |s| {
            s.rlimit(RLimit::NoFile(600)).rlimit(RLimit::Core(0))
        })
        .await;
        assert_eq!(said, "600\n600\n0\n");
        // More than can be had is as much as can be had, and no error.
        let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
        let (said, _) = shell("ulimit -Hn >&3", |s| s.rlimit(RLimit::NoFile(hard + 1))).await;
        let got: u64 = said.trim().parse().unwrap();
        assert!(got == hard || got == hard + 1, "{got}");
    });
}

fn joins_cgroups() {
    if !root_needed() {
        return;
    }
    let name = format!("kata-spawn-test-{}", std::process::id());
    let parents = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
    let Some(dir) = parents
        .iter()
        .filter(|p| Path::new(p).join("cgroup.procs").exists())
        .map(|p| Path::new(p).join(&name))
        .find(|d| std::fs::create_dir(d).is_ok())
    else {
        println!("SKIP: no cgroup can be made here");
        return;
    };
    block_on(async {
        let (said, _) = shell("cat /proc/self/cgroup >&3", |s| s.cgroups(std::slice::from_ref(&dir)).pid_ns()).await;
        assert!(said.contains(&name), "{said}");
    });
    std::fs::remove_dir(&dir).unwrap();
}

fn sees_only_its_root() {
    if !root_needed() {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "shown").unwrap();
    std::fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let mut binds: Vec<Bind> = ["/bin", "/lib", "/lib64", "/usr/bin", "/usr/lib", "/usr/lib64"].map(Bind::same).into();
    binds.push(Bind::at(file.path(), "/deep/file"));
    let root = Root { binds, devices: vec!["/dev/null".into()], proc: false };
    block_on(async {
        let script = "cd /; echo * >&3; cat /deep/file >&3; echo >&3; echo x >/dev/null && echo null >&3; \
                      for f in /usr/lib/x /deep/file /x; do (echo y >$f) || echo refused >&3; done; ls -ln /dev/null >&3";
        let (said, exit) = shell(script, |s| s.root(root).pid_ns().user(400_000, 400_000)).await;
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(exit.code, Some(0), "{exit} {said}");
        for word in lines[0].split_whitespace() {
            assert!(["bin", "deep", "dev", "lib", "lib64", "usr"].contains(&word), "{said}");
        }
        assert_eq!(lines[1..6], ["shown", "null", "refused", "refused", "refused"]);
        assert!(lines[6].starts_with("crw------- 1 400000 400000"), "{said}");
    });
    assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "shown");
}

fn a_signal_is_told_as_one() {
    block_on(async {
        let spawned = sleeper().start(soon()).await.unwrap();
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(spawned.pid()).unwrap(),
            rustix::process::Signal::TERM,
        )
        .unwrap();
        let exit = tokio::time::timeout(Duration::from_secs(5), spawned.wait()).await.unwrap();
        assert_eq!((exit.code, exit.signal, exit.expected), (None, Some(15), false));
        assert_eq!(exit.to_string(), "killed by signal 15");
    });
}

fn a_recorded_process_is_killed_unless_it_is_another() {
    block_on(async {
        let spawned = sleeper().start(soon()).await.unwrap();
        let pid = spawned.pid();
        let started = start_time(pid).unwrap();
        assert!(!kill_recorded(pid, started + 1, soon()).unwrap());
        assert!(!gone(pid));
        assert!(kill_recorded(pid, started, soon()).unwrap());
        assert_eq!(spawned.wait().await.signal, Some(9));
        assert!(!kill_recorded(pid, started, soon()).unwrap());
    });
}

fn the_probe_never_hangs() {
    let begin = Instant::now();
    let verdict = probe_kvm();
    println!("  {verdict:?} in {:?}", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert!(!verdict.reason.is_empty());
    let choice = choose_accel(None);
    println!("  {choice:?}");
    assert_eq!(choice.accel == Accel::Kvm, verdict.usable);
    assert!(!choice.forced);
    let forced = choose_accel(Some(Accel::Tcg));
    assert!(forced.forced && forced.accel == Accel::Tcg);
}
