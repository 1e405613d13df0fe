//! Cgroups, as far as a machine without controllers in cgroup2 has them.

use std::fs;

use kata_jail::{Container, JailError};
use kata_proto::oci;
use protobuf::MessageField;

use crate::support::*;

pub const TESTS: &[Test] = &[
    ("cgroup_path_and_destroy", cgroup_path_and_destroy),
    ("pause_and_resume", pause_and_resume),
    ("device_rules", device_rules),
    ("stats_and_update", stats_and_update),
    ("limits_are_enforced", limits_are_enforced),
    ("failed_create_leaves_nothing", failed_create_leaves_nothing),
];

fn cgroup_path_and_destroy() -> Result<(), Skip> {
    let r = Rootfs::new();
    let mut s = spec(&["sh", "-c", "mkdir -p /sys/fs/cgroup/a/b && echo up; cat"]);
    s.Linux.as_mut().unwrap().CgroupsPath = "/pod/one".into();
    s.Mounts.iter_mut().filter(|m| m.type_ == "cgroup").for_each(|m| m.options.retain(|o| o != "ro"));
    let (container, child, mut pipes) = start(&s, &r).unwrap();
    assert_eq!(pipes.line(), "up");
    let dir = cgroup_root().join("pod/one");
    assert!(dir.join("a/b").is_dir());
    assert_eq!(container.memory_events_path(), dir.join("memory.events"));
    // The same cgroup is not for two.
    let e = try_run(&s, &r).unwrap_err();
    assert!(matches!(e, JailError::State { .. }) && e.to_string().contains("in use"), "{e}");
    // Processes further down count, and an exec finds its way even if the top only holds others.
    fs::write(dir.join("a/b/cgroup.procs"), container.init_pid().to_string()).unwrap();
    assert!(container.pids().unwrap().contains(&container.init_pid()));
    if fs::read_to_string(dir.join("cgroup.controllers")).unwrap().contains("pids") {
        // "No internal processes": from here on the top refuses them.
        fs::write(dir.join("cgroup.subtree_control"), "+pids +memory").unwrap();
    }
    assert_eq!(exec(&container, &process(&["true"])).unwrap().status, 0);
    container.destroy().unwrap();
    assert!(!dir.exists());
    assert_eq!(wait(&child), 137);
    fs::remove_dir(cgroup_root().join("pod")).unwrap();
    Ok(())
}

fn pause_and_resume() -> Result<(), Skip> {
    let r = Rootfs::new();
    let (container, child, pipes) = waiting_container(&r);
    container.pause().unwrap();
    let dir = container.memory_events_path().parent().unwrap().to_owned();
    assert!(fs::read_to_string(dir.join("cgroup.events")).unwrap().contains("frozen 1"));
    container.resume().unwrap();
    assert_eq!(pipes.finish(&child).status, 0);
    container.destroy().unwrap();
    // A frozen one dies as well.
    let (container, child, _pipes) = waiting_container(&r);
    container.pause().unwrap();
    container.destroy().unwrap();
    assert_eq!(wait(&child), 137);
    Ok(())
}

fn device_rules() -> Result<(), Skip> {
    let rule = |allow, kind: &str, major, minor, access: &str| oci::LinuxDeviceCgroup {
        Allow: allow,
        Type: kind.into(),
        Major: major,
        Minor: minor,
        Access: access.into(),
        ..Default::default()
    };
    // The kernel's log, 1:11: whether it may be opened is all that matters.
    let s = {
        let mut s = spec(&[
            "sh",
            "-c",
            "mknod /tmp/kmsg c 1 11; echo x > /dev/null && echo null; dd if=/tmp/kmsg of=/dev/null count=0 && echo kmsg; cat",
        ]);
        let caps = s.Process.as_mut().unwrap().Capabilities.as_mut().unwrap();
        for set in [&mut caps.Bounding, &mut caps.Effective, &mut caps.Permitted] {
            set.extend(strings(&["CAP_MKNOD", "CAP_SYSLOG"]));
        }
        s
    };
    let with = |rules: Vec<oci::LinuxDeviceCgroup>| {
        let mut s = s.clone();
        let resources = oci::LinuxResources { Devices: rules, ..Default::default() };
        s.Linux.as_mut().unwrap().Resources = MessageField::some(resources);
        s
    };
    let deny = || rule(false, "a", -1, -1, "rwm");
    let out = run(&with(vec![deny(), rule(true, "c", 1, 11, "r")]), &Rootfs::new());
    assert_eq!(out.stdout, "null\nkmsg\n", "{}", out.stderr);
    let out = run(&with(vec![deny()]), &Rootfs::new());
    if out.stdout == "null\nkmsg\n" {
        return Err(Skip("this kernel has no device programs".into()));
    }
    assert_eq!(out.stdout, "null\n", "{}", out.stderr);
    assert!(out.stderr.contains("Operation not permitted"), "{}", out.stderr);
    // A change replaces the program.
    let (container, child, mut pipes) = start(&with(vec![deny()]), &Rootfs::new()).unwrap();
    assert_eq!(pipes.line(), "null");
    let mut probe = process(&["dd", "if=/tmp/kmsg", "of=/dev/null", "count=0"]);
    // The container's.
    probe.Capabilities = MessageField::none();
    assert_eq!(exec(&container, &probe).unwrap().status, 1);
    let rules = vec![deny(), rule(true, "c", 1, -1, "rw")];
    container.update(&oci::LinuxResources { Devices: rules, ..Default::default() }).unwrap();
    assert_eq!(exec(&container, &probe).unwrap().status, 0);
    container.update(&oci::LinuxResources { Devices: vec![deny()], ..Default::default() }).unwrap();
    container.update(&oci::LinuxResources::new()).unwrap();
    assert_eq!(exec(&container, &probe).unwrap().status, 1);
    pipes.finish(&child);
    container.destroy().unwrap();
    Ok(())
}

fn stats_and_update() -> Result<(), Skip> {
    let r = Rootfs::new();
    let mut s = spec(&["sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo up; cat"]);
    let resources = oci::LinuxResources {
        Memory: MessageField::some(oci::LinuxMemory { Limit: 64 << 20, Swap: 128 << 20, ..Default::default() }),
        CPU: MessageField::some(oci::LinuxCPU { Shares: 512, Quota: 50_000, ..Default::default() }),
        Pids: MessageField::some(oci::LinuxPids { Limit: 50, ..Default::default() }),
        ..Default::default()
    };
    s.Linux.as_mut().unwrap().Resources = MessageField::some(resources.clone());
    let (container, child, mut pipes) = start(&s, &r).unwrap();
    assert_eq!(pipes.line(), "up");
    let stats = container.stats().unwrap();
    assert!(stats.cpu_stats.cpu_usage.total_usage > 0, "{stats}");
    let dir = container.memory_events_path().parent().unwrap().to_owned();
    if dir.join("memory.max").exists() {
        assert_eq!(stats.memory_stats.usage.limit, 64 << 20);
        assert_eq!(fs::read_to_string(dir.join("memory.swap.max")).unwrap().trim(), (64 << 20).to_string());
    }
    if dir.join("pids.max").exists() {
        assert_eq!(stats.pids_stats.limit, 50);
        assert!((1..=2).contains(&stats.pids_stats.current), "{stats}");
    }
    container.update(&resources).unwrap();
    let bad = oci::LinuxMemory { Swap: 5, ..Default::default() };
    let bad = oci::LinuxResources { Memory: MessageField::some(bad), ..Default::default() };
    assert!(matches!(container.update(&bad), Err(JailError::InvalidSpec { .. })));
    assert_eq!(pipes.finish(&child).status, 0);
    container.destroy().unwrap();
    Ok(())
}

fn limits_are_enforced() -> Result<(), Skip> {
    if !cgroup_root().join("memory.max").exists() {
        return Err(Skip("cgroup2 has no controllers on this machine".into()));
    }
    let limited = |args: &[&str], r: oci::LinuxResources| {
        let mut s = spec(args);
        s.Linux.as_mut().unwrap().Resources = MessageField::some(r);
        s
    };
    let memory = oci::LinuxMemory { Limit: 16 << 20, Swap: 16 << 20, ..Default::default() };
    let memory = oci::LinuxResources { Memory: MessageField::some(memory), ..Default::default() };
    // A /dev/shm larger than the limit takes memory of the container; the kernel kills who fills it.
    let text = "echo up; read x; dd if=/dev/zero of=/dev/shm/big bs=1M; echo status $?; cat";
    let mut s = limited(&["sh", "-c", text], memory);
    s.Mounts.last_mut().unwrap().options = strings(&["mode=1777", "size=64m"]);
    let (container, child, mut pipes) = start(&s, &Rootfs::new()).unwrap();
    assert_eq!(pipes.line(), "up");
    assert!(fs::read_to_string(container.memory_events_path()).unwrap().contains("oom_kill 0"));
    pipes.write("\n");
    pipes.finish(&child);
    let events = fs::read_to_string(container.memory_events_path()).unwrap();
    assert!(!events.contains("oom_kill 0"), "{events}");
    container.destroy().unwrap();

    let pids = oci::LinuxPids { Limit: 3, ..Default::default() };
    let pids = oci::LinuxResources { Pids: MessageField::some(pids), ..Default::default() };
    let text = "for i in 1 2 3 4 5; do sleep 1000 & done; wait";
    let (container, child, pipes) = start(&limited(&["sh", "-c", text], pids), &Rootfs::new()).unwrap();
    let out = pipes.finish_after(&child, &container);
    assert!(out.stderr.contains("can't fork"), "{out:?}");
    container.destroy().unwrap();

    // A limit of one leaves room for the init.
    let pids = oci::LinuxPids { Limit: 1, ..Default::default() };
    let pids = oci::LinuxResources { Pids: MessageField::some(pids), ..Default::default() };
    assert_eq!(run(&limited(&["echo", "one"], pids), &Rootfs::new()).stdout, "one\n");
    Ok(())
}

fn failed_create_leaves_nothing() -> Result<(), Skip> {
    let r = Rootfs::new();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let name = id();
    let (io, pipes) = pipes();
    let result = Container::create(&name, &spec(&["/no/such/program"]), &r.0, io);
    assert!(result.is_err());
    assert!(!cgroup_root().join("kata").join(&name).exists());
    assert_eq!(fs::read_to_string("/proc/self/mounts").unwrap(), mounts);
    // Nobody holds the pipes any more: this returns at once.
    pipes.drain();
    Ok(())
}
