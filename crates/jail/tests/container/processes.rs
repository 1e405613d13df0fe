//! Programs, their ends, their errors, and what they run as.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;

use kata_jail::{Container, JailError, PidNamespace, ProcessIo};
use kata_proto::oci;
use protobuf::MessageField;

use crate::support::*;

pub const TESTS: &[Test] = &[
    ("echo", echo),
    ("exit_codes", exit_codes),
    ("stdin_and_stderr", stdin_and_stderr),
    ("program_errors", program_errors),
    ("execve_errors_come_from_start", execve_errors_come_from_start),
    ("cwd", cwd),
    ("env_and_home", env_and_home),
    ("user_and_groups", user_and_groups),
    ("capabilities", capabilities),
    ("unknown_capability", unknown_capability),
    ("no_new_privs_limits_umask", no_new_privs_limits_umask),
    ("nothing_leaks_in", nothing_leaks_in),
    ("namespaces", namespaces),
    ("joined_namespaces", joined_namespaces),
    ("held_pid_namespace", held_pid_namespace),
    ("user_namespace", user_namespace),
    ("exec", exec_into),
    ("exec_errors", exec_errors),
    ("pids_and_signals", pids_and_signals),
    ("unsupported", unsupported),
    ("helper_dies_with_the_agent", helper_dies_with_the_agent),
];

fn echo() -> Result<(), Skip> {
    let out = run(&spec(&["echo", "hello", "world"]), &Rootfs::new());
    assert_eq!((out.status, out.stdout.as_str(), out.stderr.as_str()), (0, "hello world\n", ""));
    Ok(())
}

fn exit_codes() -> Result<(), Skip> {
    assert_eq!(script("exit 7", |_| {}).status, 7);
    assert_eq!(script("sh -c 'kill -9 $$'; exit $?", |_| {}).status, 137);
    // A namespace's init is not killed by its own signals; from outside it is.
    let (container, child, pipes) = waiting_container(&Rootfs::new());
    container.signal_all(9).unwrap();
    assert_eq!(pipes.finish(&child).status, 137);
    container.destroy().unwrap();
    Ok(())
}

fn stdin_and_stderr() -> Result<(), Skip> {
    let (container, child, mut pipes) = start(&spec(&["sh", "-c", "cat; echo bad >&2"]), &Rootfs::new()).unwrap();
    pipes.write("a\nb\n");
    let out = pipes.finish(&child);
    assert_eq!((out.stdout.as_str(), out.stderr.as_str()), ("a\nb\n", "bad\n"));
    container.destroy().unwrap();
    Ok(())
}

fn create_error(args: &[&str], rootfs: &Rootfs) -> String {
    let (io, _pipes) = pipes();
    match Container::create(&id(), &spec(args), &rootfs.0, io) {
        Err(e) => e.to_string(),
        Ok(_) => panic!("{args:?} was created"),
    }
}

fn program_errors() -> Result<(), Skip> {
    let r = Rootfs::new();
    r.file("etc/plain", "x", 0o644);
    assert_eq!(create_error(&["foo"], &r), r#"exec: "foo": executable file not found in $PATH"#);
    assert_eq!(create_error(&["/x"], &r), r#"exec: "/x": stat /x: no such file or directory"#);
    assert_eq!(create_error(&["/etc/plain"], &r), r#"exec: "/etc/plain": permission denied"#);
    assert_eq!(create_error(&["/etc"], &r), r#"exec: "/etc": permission denied"#);
    assert_eq!(create_error(&["/etc/plain/x"], &r), r#"exec: "/etc/plain/x": stat /etc/plain/x: not a directory"#);
    // As the container's user, not as the agent.
    r.file("bin/rootonly", "x", 0o700);
    let mut s = spec(&["/bin/rootonly"]);
    s.Process.as_mut().unwrap().User.as_mut().unwrap().UID = 1000;
    let e = try_run(&s, &r).unwrap_err();
    assert_eq!(e.to_string(), r#"exec: "/bin/rootonly": permission denied"#);
    Ok(())
}

fn execve_errors_come_from_start() -> Result<(), Skip> {
    let r = Rootfs::new();
    r.file("bin/garbage", "\u{1}\u{2}\u{3}", 0o755);
    r.file("bin/orphan", "#!/no/such/interpreter\n", 0o755);
    for (name, text) in [
        ("/bin/garbage", "exec /bin/garbage: exec format error"),
        ("orphan", "exec /bin/orphan: no such file or directory"),
    ] {
        let (io, _pipes) = pipes();
        let (mut container, child) = Container::create(&id(), &spec(&[name]), &r.0, io).unwrap();
        assert_eq!(container.start().unwrap_err().to_string(), text);
        assert!(matches!(container.start(), Err(JailError::State { .. })));
        assert_ne!(wait(&child), 0);
        container.destroy().unwrap();
    }
    Ok(())
}

fn cwd() -> Result<(), Skip> {
    let with = |dir: &str| {
        let mut s = spec(&["pwd"]);
        s.Process.as_mut().unwrap().Cwd = dir.into();
        s
    };
    let r = Rootfs::new();
    assert_eq!(run(&with("/home/user"), &r).stdout, "/home/user\n");
    // As runc has it, a missing one is made.
    assert_eq!(run(&with("/made/for/me"), &r).stdout, "/made/for/me\n");
    let e = try_run(&with("/etc/passwd"), &r).unwrap_err();
    assert_eq!(e.to_string(), r#"chdir to cwd ("/etc/passwd") set in config.json failed: not a directory"#);
    // Entered before the change of user.
    fs::set_permissions(r.0.join("home"), fs::Permissions::from_mode(0o700)).unwrap();
    let mut s = with("/home/user");
    s.Process.as_mut().unwrap().User.as_mut().unwrap().UID = 1000;
    assert_eq!(run(&s, &r).stdout, "/home/user\n");
    // A way out of the root through a descriptor of the helper's.
    let e = try_run(&with("/proc/self/fd/3"), &r).unwrap_err();
    assert!(matches!(e, JailError::Cwd { .. }), "{e}");
    Ok(())
}

fn env_and_home() -> Result<(), Skip> {
    let out = script("echo $A,$HOME; env | wc -l", |s| {
        let p = s.Process.as_mut().unwrap();
        p.Env.push("A=b c".into());
        p.User.as_mut().unwrap().UID = 1000;
    });
    // PATH, A, HOME; the shell adds PWD, SHLVL and perhaps OLDPWD.
    let lines: Vec<&str> = out.stdout.lines().collect();
    assert_eq!(lines[0], "b c,/home/user");
    assert!(lines[1].parse::<u32>().unwrap() <= 6, "{}", out.stdout);
    let home = |uid: u32, env: &[&str]| {
        let env = strings(env);
        script("echo $HOME", move |s| {
            let p = s.Process.as_mut().unwrap();
            p.Env.extend(env);
            p.User.as_mut().unwrap().UID = uid;
        })
        .stdout
    };
    assert_eq!(home(0, &[]), "/root\n");
    assert_eq!(home(4711, &[]), "/\n");
    assert_eq!(home(0, &["HOME=/tmp"]), "/tmp\n");
    Ok(())
}

fn user_and_groups() -> Result<(), Skip> {
    let out = script("id -u; id -g; id -G; grep '^Cap' /proc/self/status", |s| {
        let user = oci::User { UID: 1000, GID: 2000, AdditionalGids: vec![3000, 10], ..Default::default() };
        s.Process.as_mut().unwrap().User = MessageField::some(user);
    });
    assert_eq!(out.stdout.lines().take(3).collect::<Vec<_>>(), ["1000", "2000", "2000 10 3000"]);
    // A user who is not root has none in effect after the execve, without ambient ones.
    assert!(out.stdout.contains("CapEff:\t0000000000000000"), "{}", out.stdout);
    Ok(())
}

/// CHOWN 0, KILL 5, SETGID 6, SETUID 7.
const DEFAULT_MASK: &str = "00000000000000e1";

fn capabilities() -> Result<(), Skip> {
    let out = script("grep '^Cap' /proc/self/status", |_| {});
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert!(out.stdout.contains(&format!("{set}:\t{DEFAULT_MASK}")), "{}", out.stdout);
    }
    assert!(out.stdout.contains("CapInh:\t0000000000000000"), "{}", out.stdout);
    let out = script("grep '^Cap' /proc/self/status", |s| {
        let p = s.Process.as_mut().unwrap();
        p.User.as_mut().unwrap().UID = 1000;
        let caps = p.Capabilities.as_mut().unwrap();
        caps.Inheritable = strings(&["CAP_KILL"]);
        caps.Ambient = strings(&["CAP_KILL"]);
    });
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert!(out.stdout.contains(&format!("{set}:\t0000000000000020")), "{}", out.stdout);
    }
    // Without a word about them, none.
    let out = script("grep '^Cap' /proc/self/status", |s| {
        s.Process.as_mut().unwrap().Capabilities = MessageField::none();
    });
    assert!(out.stdout.contains("CapBnd:\t0000000000000000"), "{}", out.stdout);
    Ok(())
}

fn unknown_capability() -> Result<(), Skip> {
    let mut s = spec(&["true"]);
    s.Process.as_mut().unwrap().Capabilities.as_mut().unwrap().Permitted.push("CAP_FLY".into());
    let e = try_run(&s, &Rootfs::new()).unwrap_err();
    assert!(e.to_string().contains("CAP_FLY"), "{e}");
    Ok(())
}

fn no_new_privs_limits_umask() -> Result<(), Skip> {
    let out = script("grep NoNewPrivs /proc/self/status; ulimit -n; ulimit -Hn; ulimit -c; umask", |s| {
        let p = s.Process.as_mut().unwrap();
        p.NoNewPrivileges = true;
        let limit = |name: &str, soft, hard| oci::POSIXRlimit {
            Type: name.into(),
            Soft: soft,
            Hard: hard,
            ..Default::default()
        };
        p.Rlimits = vec![limit("RLIMIT_NOFILE", 100, 200), limit("RLIMIT_CORE", 0, 0)];
    });
    assert_eq!(out.stdout, "NoNewPrivs:\t1\n100\n200\n0\n0022\n");
    assert_eq!(script("grep NoNewPrivs /proc/self/status", |_| {}).stdout, "NoNewPrivs:\t0\n");
    Ok(())
}

fn nothing_leaks_in() -> Result<(), Skip> {
    // A descriptor that would survive an execve.
    let leak = fs::File::open("/dev/null").unwrap();
    let leak = rustix::io::dup(&leak).unwrap();
    let text = "ls /proc/self/fd; cat /proc/1/stat | cut -d' ' -f5-7; grep -E '^Sig(Blk|Ign)' /proc/self/status; cat /proc/1/cmdline | tr '\\0' ' '";
    let out = script(text, |_| {});
    drop(leak);
    // 3 is the directory that ls reads.
    let expected = "0\n1\n2\n3\n1 1 0\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\nsh -c ";
    assert!(out.stdout.starts_with(expected), "{}", out.stdout);
    Ok(())
}

fn namespaces() -> Result<(), Skip> {
    let text = "hostname; echo $$; for n in pid mnt uts ipc net cgroup; do readlink /proc/self/ns/$n; done; ip link | grep -c .; ip addr show lo | grep -c 127.0.0.1; ls -d /proc/[0-9]* | wc -l";
    let out = script(text, |_| {});
    let lines: Vec<&str> = out.stdout.lines().collect();
    assert_eq!(lines[..2], ["jailed", "1"]);
    for line in &lines[2..8] {
        let name = line.split(':').next().unwrap();
        let mine = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert_ne!(mine.to_str().unwrap(), *line);
    }
    assert_eq!(lines[9], "1", "{}", out.stdout);
    // A time namespace, where the kernel has them.
    if fs::exists("/proc/self/ns/time").unwrap() {
        let out = script("readlink /proc/self/ns/time", |s| {
            let time = oci::LinuxNamespace { Type: "time".into(), ..Default::default() };
            s.Linux.as_mut().unwrap().Namespaces.push(time);
        });
        assert_ne!(fs::read_link("/proc/self/ns/time").unwrap().to_str().unwrap(), out.stdout.trim());
    }
    // Without one of its own the container sees the agent's.
    let out = script("readlink /proc/self/ns/net; readlink /proc/self/ns/pid", |s| {
        s.Linux.as_mut().unwrap().Namespaces.retain(|n| n.Type != "network" && n.Type != "pid");
    });
    for line in out.stdout.lines() {
        let mine = fs::read_link(format!("/proc/self/ns/{}", line.split(':').next().unwrap())).unwrap();
        assert_eq!(mine.to_str().unwrap(), line);
    }
    Ok(())
}

fn held_pid_namespace() -> Result<(), Skip> {
    let (held, holder) = PidNamespace::create().unwrap();
    let path = format!("/proc/{}/fd/{}", std::process::id(), held.file().as_raw_fd());
    let joined = |args: &[&str]| {
        let mut spec = spec(args);
        let namespaces = &mut spec.Linux.as_mut().unwrap().Namespaces;
        namespaces.iter_mut().find(|n| n.Type == "pid").unwrap().Path.clone_from(&path);
        // Even who may look into others finds nothing in the first process.
        let caps = spec.Process.as_mut().unwrap().Capabilities.as_mut().unwrap();
        for set in [&mut caps.Bounding, &mut caps.Effective, &mut caps.Permitted] {
            set.push("CAP_SYS_PTRACE".into());
        }
        spec
    };
    let (first, child, mut pipes) = start(&joined(&["sh", "-c", "echo $$; exec cat"]), &Rootfs::new()).unwrap();
    let pid = pipes.line();
    let script = format!(
        "cat /proc/1/comm; kill -9 1; ls -A /proc/1/root/; grep -c . /proc/1/mounts; grep CapEff /proc/1/status; \
         (sh -c 'sleep 0.2 & exit' &); sleep 0.6; cat /proc/{pid}/comm; grep -l 'State:.Z' /proc/[0-9]*/status"
    );
    let out = run(&joined(&["sh", "-c", &script]), &Rootfs::new());
    let lines: Vec<&str> = out.stdout.lines().collect();
    // Its name, nothing in its root, that one mount, no right; the other container's process, and no zombie.
    assert_eq!(lines, ["pause", "1", "CapEff:\t0000000000000000", "cat"], "{out:?}");
    // Each container ends by itself; the namespace goes when it is let go, with what is in it.
    drop(held);
    assert_eq!((wait(&child), wait(&holder)), (137, 0));
    pipes.drain();
    first.destroy().unwrap();
    Ok(())
}

fn joined_namespaces() -> Result<(), Skip> {
    let r = Rootfs::new();
    let (first, child, pipes) = waiting_container(&r);
    let out =
        script("readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; hostname; ls -d /proc/[0-9]* | wc -l", |s| {
            s.Hostname.clear();
            for n in &mut s.Linux.as_mut().unwrap().Namespaces {
                let file = match n.Type.as_str() {
                    "network" => "net",
                    "ipc" => "ipc",
                    "uts" => "uts",
                    "pid" => "pid",
                    _ => continue,
                };
                n.Path = format!("/proc/{}/ns/{file}", first.init_pid());
            }
        });
    let lines: Vec<&str> = out.stdout.lines().collect();
    for line in &lines[..2] {
        let name = line.split(':').next().unwrap();
        let theirs = fs::read_link(format!("/proc/{}/ns/{name}", first.init_pid())).unwrap();
        assert_eq!(theirs.to_str().unwrap(), *line);
    }
    assert_eq!(lines[2], "jailed");
    // The first container's init and cat are there too.
    assert!(lines[3].parse::<u32>().unwrap() >= 3, "{}", out.stdout);
    let e = {
        let mut s = spec(&["true"]);
        s.Linux.as_mut().unwrap().Namespaces[4].Path = "/no/such/ns".into();
        try_run(&s, &r).unwrap_err()
    };
    assert_eq!(e.to_string(), "opening namespace /no/such/ns: no such file or directory");
    assert_eq!(pipes.finish(&child).status, 0);
    first.destroy().unwrap();
    Ok(())
}

fn user_namespace() -> Result<(), Skip> {
    let r = Rootfs::new();
    let text = "id -u; cat /proc/self/uid_map | tr -s ' '; echo x > /tmp/made; echo hi > /dev/null && echo ok; cat";
    let mut s = spec(&["sh", "-c", text]);
    let map = oci::LinuxIDMapping { HostID: 100_000, ContainerID: 0, Size: 65_536, ..Default::default() };
    let linux = s.Linux.as_mut().unwrap();
    linux.Namespaces.push(oci::LinuxNamespace { Type: "user".into(), ..Default::default() });
    linux.UIDMappings = vec![map.clone()];
    linux.GIDMappings = vec![map];
    nix::unistd::chown(&r.0.join("tmp"), Some(100_000.into()), Some(100_000.into())).unwrap();
    let (container, child, mut pipes) = match start(&s, &r) {
        Err(e) if e.to_string().contains("making a user namespace") => {
            return Err(Skip(format!("making a user namespace is not possible here: {e}")));
        }
        other => other.unwrap(),
    };
    assert_eq!(pipes.line(), "0");
    assert_eq!(pipes.line(), " 0 100000 65536");
    assert_eq!(pipes.line(), "ok");
    let out = exec(&container, &process(&["sh", "-c", "id -u; cat /proc/self/uid_map | tr -s ' '"])).unwrap();
    assert_eq!(out.stdout, "0\n 0 100000 65536\n", "{}", out.stderr);
    assert_eq!(pipes.finish(&child).status, 0);
    container.destroy().unwrap();
    let made = fs::metadata(r.0.join("tmp/made")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), 100_000);
    Ok(())
}

fn exec_into() -> Result<(), Skip> {
    let r = Rootfs::new();
    let (container, child, pipes) = waiting_container(&r);
    let mut p = process(&["sh", "-c", "hostname; echo $$; id -u; pwd; echo $A; cat /proc/1/cmdline; exit 9"]);
    p.User.as_mut().unwrap().UID = 1000;
    p.Cwd = "/home/user".into();
    p.Env.push("A=b".into());
    let out = exec(&container, &p).unwrap();
    let lines: Vec<&str> = out.stdout.lines().collect();
    assert_eq!(lines[0], "jailed");
    assert!(lines[1].parse::<u32>().unwrap() > 1);
    assert_eq!(lines[2..5], ["1000", "/home/user", "b"]);
    assert!(lines[5].starts_with("cat"), "{lines:?}");
    assert_eq!(out.status, 9);
    // All namespaces, the cgroup, and a session of its own.
    let script = "for n in pid mnt uts ipc net cgroup; do readlink /proc/self/ns/$n; readlink /proc/1/ns/$n; done | uniq | wc -l; cut -d' ' -f6 /proc/$$/stat; echo $$; ls /proc/self/fd | wc -l; cat /proc/self/cgroup /proc/1/cgroup | grep ^0 | uniq | wc -l";
    // Looking at init's namespaces takes as many capabilities as init has.
    let out = exec(&container, &process(&["sh", "-c", script])).unwrap();
    let lines: Vec<&str> = out.stdout.lines().collect();
    assert_eq!(lines[0], "6", "{} {}", out.stdout, out.stderr);
    assert_eq!(lines[1], lines[2]);
    assert_eq!(lines[3..], ["4", "1"]);
    // Capabilities of the container where the process has no word about them.
    let mut p = process(&["grep", "CapEff", "/proc/self/status"]);
    p.Capabilities = MessageField::none();
    assert_eq!(exec(&container, &p).unwrap().stdout, "CapEff:\t00000000000000e1\n");
    assert_eq!(pipes.finish(&child).status, 0);
    let (io, _pipes) = crate::support::pipes();
    assert!(container.exec(&process(&["true"]), io).is_err());
    container.destroy().unwrap();
    Ok(())
}

fn exec_errors() -> Result<(), Skip> {
    let r = Rootfs::new();
    r.file("bin/garbage", "\u{1}\u{2}\u{3}", 0o755);
    r.file("etc/plain", "", 0o644);
    let (container, child, pipes) = waiting_container(&r);
    for (args, cwd, text) in [
        ("foo", "/", r#"exec: "foo": executable file not found in $PATH"#),
        ("/x", "/", r#"exec: "/x": stat /x: no such file or directory"#),
        ("/etc/plain", "/", r#"exec: "/etc/plain": permission denied"#),
        ("/bin/garbage", "/", "exec /bin/garbage: exec format error"),
        ("true", "/nowhere", r#"chdir to cwd ("/nowhere") set in config.json failed: no such file or directory"#),
    ] {
        let mut p = process(&[args]);
        p.Cwd = cwd.into();
        assert_eq!(exec(&container, &p).unwrap_err().to_string(), text);
    }
    container.pause().unwrap();
    let e = exec(&container, &process(&["true"])).unwrap_err();
    assert!(e.to_string().contains("paused"), "{e}");
    container.resume().unwrap();
    assert_eq!(exec(&container, &process(&["true"])).unwrap().status, 0);
    assert_eq!(pipes.finish(&child).status, 0);
    container.destroy().unwrap();
    Ok(())
}

fn pids_and_signals() -> Result<(), Skip> {
    let r = Rootfs::new();
    let text = "trap 'echo term; exit 3' TERM; sleep 1000 & sleep 1000 & echo up; wait";
    let (container, child, mut pipes) = start(&spec(&["sh", "-c", text]), &r).unwrap();
    assert_eq!(pipes.line(), "up");
    let pids = container.pids().unwrap();
    assert_eq!(pids.len(), 3, "{pids:?}");
    assert!(pids.contains(&container.init_pid()));
    assert_eq!(container.init_pid(), child.pid);
    assert!(container.signal_all(0).is_err() && container.signal_all(65).is_err());
    container.signal_all(15).unwrap();
    let out = pipes.finish(&child);
    assert_eq!((out.stdout.as_str(), out.status), ("term\n", 3));
    eventually("all processes of a pid namespace die with its init", || container.pids().unwrap().is_empty());
    container.destroy().unwrap();
    Ok(())
}

fn unsupported() -> Result<(), Skip> {
    let r = Rootfs::new();
    type Change = fn(&mut oci::Spec);
    let changes: [(&str, Change); 4] = [
        ("seccomp", |s| s.Linux.as_mut().unwrap().Seccomp = MessageField::some(oci::LinuxSeccomp::new())),
        ("SELinux", |s| s.Process.as_mut().unwrap().SelinuxLabel = "a:b".into()),
        ("mount namespace", |s| s.Linux.as_mut().unwrap().Namespaces.clear()),
        ("hook", |s| {
            let hook = oci::Hook { Path: "/h".into(), ..Default::default() };
            s.Hooks = MessageField::some(oci::Hooks { Prestart: vec![hook], ..Default::default() });
        }),
    ];
    for (word, change) in changes {
        let mut s = spec(&["true"]);
        change(&mut s);
        let e = try_run(&s, &r).unwrap_err();
        assert!(matches!(e, JailError::Unsupported { .. }) && e.to_string().contains(word), "{e}");
    }
    Ok(())
}

/// An agent that makes a container and dies before it is started. Runs in a process of its own.
pub fn short_lived_agent(rootfs: &str, cgroup: &str) -> ! {
    kata_jail::set_cgroup_root(cgroup.into());
    let null = || fs::OpenOptions::new().read(true).write(true).open("/dev/null").unwrap().into();
    let io = ProcessIo::Fds { stdin: null(), stdout: null(), stderr: null() };
    let (container, child) = Container::create(&id(), &spec(&["true"]), rootfs.as_ref(), io).unwrap();
    println!("{}", child.pid);
    std::mem::forget(container);
    std::thread::sleep(std::time::Duration::from_secs(60));
    std::process::exit(1)
}

fn helper_dies_with_the_agent() -> Result<(), Skip> {
    use std::io::{BufRead, BufReader};
    let r = Rootfs::new();
    let cgroup = cgroup_root().join("agent");
    fs::create_dir(&cgroup).unwrap();
    let mut agent = std::process::Command::new("/proc/self/exe")
        .arg("short-lived-agent")
        .arg(&r.0)
        .arg(&cgroup)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(agent.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let init: i32 = line.trim().parse().unwrap();
    assert!(fs::exists(format!("/proc/{init}")).unwrap());
    agent.kill().unwrap();
    agent.wait().unwrap();
    let populated = || fs::read_to_string(cgroup.join("cgroup.events")).unwrap().contains("populated 1");
    eventually("the waiting init ends", || !populated());
    remove_cgroups(&cgroup);
    Ok(())
}
