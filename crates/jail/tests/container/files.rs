//! The container's view of the filesystem.

use std::fs;
use std::os::unix::fs::symlink;

use kata_proto::oci;

use crate::support::*;

pub const TESTS: &[Test] = &[
    ("only_its_own_mounts", only_its_own_mounts),
    ("read_only_root", read_only_root),
    ("masked_and_read_only_paths", masked_and_read_only_paths),
    ("devices", devices),
    ("tmpfs", tmpfs),
    ("binds", binds),
    ("mount_points_stay_inside", mount_points_stay_inside),
    ("mount_errors", mount_errors),
    ("remount", remount),
    ("propagation", propagation),
    ("sysctl", sysctl),
    ("cgroup_mount", cgroup_mount),
];

fn only_its_own_mounts() -> Result<(), Skip> {
    let out = script("cut -d' ' -f5 /proc/self/mountinfo | sort; cat /proc/../../../../etc/passwd | head -n1", |_| {});
    let expected = "/\n/dev\n/dev/mqueue\n/dev/pts\n/dev/shm\n/proc\n/proc/bus\n/proc/kcore\n/proc/keys\n/proc/sys\n/sys\n/sys/firmware\n/sys/fs/cgroup\nroot:x:0:0::/root:/bin/sh\n";
    // Not every kernel has all the masked paths.
    for line in out.stdout.lines() {
        assert!(expected.lines().any(|l| l == line), "{line} in {}", out.stdout);
    }
    for line in ["/", "/proc", "/dev/pts", "/sys/fs/cgroup"] {
        assert_eq!(out.stdout.lines().filter(|l| *l == line).count(), 1, "{line} in {}", out.stdout);
    }
    Ok(())
}

fn read_only_root() -> Result<(), Skip> {
    let out = script("touch /x; touch /etc/x; touch /dev/shm/y && echo ok; rm /bin/busybox", |s| {
        s.Root.as_mut().unwrap().Readonly = true;
    });
    assert_eq!(out.stdout, "ok\n");
    assert_eq!(out.stderr.matches("Read-only file system").count(), 3, "{}", out.stderr);
    assert_eq!(script("touch /x && echo ok", |_| {}).stdout, "ok\n");
    Ok(())
}

fn masked_and_read_only_paths() -> Result<(), Skip> {
    let r = Rootfs::new();
    fs::create_dir(r.0.join("secrets")).unwrap();
    r.file("secrets/key", "k", 0o644);
    r.file("etc/shadow", "s", 0o644);
    fs::create_dir(r.0.join("kept")).unwrap();
    symlink("/secrets/key", r.0.join("etc/link")).unwrap();
    let mut s = spec(&[
        "sh",
        "-c",
        "ls -A /secrets; cat /etc/shadow; cat /etc/link; touch /secrets/x; touch /kept/x; touch /etc/x && echo ok; echo 1 > /proc/sys/kernel/panic",
    ]);
    let linux = s.Linux.as_mut().unwrap();
    linux.MaskedPaths = strings(&["/secrets", "/etc/shadow", "/nothing", "/etc/shadow/x"]);
    linux.ReadonlyPaths.push("/kept".into());
    let out = run(&s, &r);
    assert_eq!(out.stdout, "ok\n");
    assert!(
        out.stderr.contains("/etc/link': No such file") || out.stderr.contains("/etc/link: No such file"),
        "{}",
        out.stderr
    );
    assert_eq!(out.stderr.matches("Read-only file system").count(), 3, "{}", out.stderr);
    Ok(())
}

fn devices() -> Result<(), Skip> {
    let text = "for d in null zero full random urandom tty fuse; do stat -c '%n %F %t:%T %a %u:%g' /dev/$d; done; for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done; head -c 3 /dev/zero | wc -c; echo x > /dev/null && echo ok; ls /dev/fd/ | wc -l";
    let out = script(text, |s| {
        let device = oci::LinuxDevice {
            Path: "/dev/fuse".into(),
            Type: "c".into(),
            Major: 10,
            Minor: 229,
            FileMode: 0o640,
            UID: 1,
            GID: 2,
            ..Default::default()
        };
        s.Linux.as_mut().unwrap().Devices = vec![device];
    });
    let expected = "/dev/null character special file 1:3 666 0:0
/dev/zero character special file 1:5 666 0:0
/dev/full character special file 1:7 666 0:0
/dev/random character special file 1:8 666 0:0
/dev/urandom character special file 1:9 666 0:0
/dev/tty character special file 5:0 666 0:0
/dev/fuse character special file a:e5 640 1:2
/proc/self/fd
/proc/self/fd/0
/proc/self/fd/1
/proc/self/fd/2
pts/ptmx
3
ok
4
";
    assert_eq!(out.stdout, expected, "{}", out.stderr);
    Ok(())
}

fn tmpfs() -> Result<(), Skip> {
    let r = Rootfs::new();
    r.file("etc/conf", "c", 0o640);
    fs::create_dir(r.0.join("etc/sub")).unwrap();
    symlink("conf", r.0.join("etc/alias")).unwrap();
    let text = "grep ' /scratch ' /proc/mounts; dd if=/dev/zero of=/dev/shm/x bs=1M count=2 2>&1 | grep -c 'No space'; cat /etc/alias; stat -c %a /etc/conf; touch /etc/sub/x && echo ok; stat -c %a /dev/shm";
    let mut s = spec(&["sh", "-c", text]);
    s.Mounts.push(mount_entry("/scratch", "tmpfs", "tmpfs", "nosuid,nodev,noexec,noatime,ro,size=100k,mode=700"));
    s.Mounts.push(mount_entry("/etc", "tmpfs", "tmpfs", "tmpcopyup,size=100k"));
    let out = run(&s, &r);
    let lines: Vec<&str> = out.stdout.lines().collect();
    assert!(lines[0].contains(" ro,nosuid,nodev,noexec,noatime") && lines[0].contains("size=100k"), "{}", lines[0]);
    assert_eq!(lines[1..], ["1", "c640", "ok", "1777"], "{} {}", out.stdout, out.stderr);
    // What was written went into the tmpfs.
    assert!(!r.0.join("etc/sub/x").exists());
    Ok(())
}

fn binds() -> Result<(), Skip> {
    let dir = outside("data");
    fs::write(dir.join("f"), "from outside").unwrap();
    fs::create_dir(dir.join("below")).unwrap();
    let inner = outside("inner");
    fs::write(inner.join("g"), "inner").unwrap();
    let none: Option<&str> = None;
    let bind = nix::mount::MsFlags::MS_BIND;
    nix::mount::mount(Some(&inner), &dir.join("below"), none, bind, none).unwrap();
    let d = dir.to_str().unwrap();
    let f = format!("{d}/f");
    let text = "cat /rw/f; cat /etc/file; echo; touch /rw/new && echo made; touch /ro/new2; touch /ro/below/new3 && echo hole; touch /rro/below/new4; ls /flat/below; ls /rw/below; echo x > /etc/file";
    let out = script(text, |s| {
        s.Mounts.push(mount_entry("/rw", "bind", d, "rbind,rw"));
        s.Mounts.push(mount_entry("/ro", "bind", d, "rbind,ro"));
        s.Mounts.push(mount_entry("/rro", "bind", d, "rbind,rro"));
        s.Mounts.push(mount_entry("/flat", "bind", d, "bind"));
        s.Mounts.push(mount_entry("/etc/file", "bind", &f, "bind,ro,nosuid"));
    });
    assert_eq!(out.stdout, "from outsidefrom outside\nmade\nhole\ng\nnew3\n", "{}", out.stderr);
    assert_eq!(out.stderr.matches("Read-only file system").count(), 3, "{}", out.stderr);
    assert!(dir.join("new").exists() && !dir.join("new2").exists());
    nix::mount::umount(&dir.join("below")).unwrap();
    Ok(())
}

fn mount_points_stay_inside() -> Result<(), Skip> {
    let r = Rootfs::new();
    let victim = outside("victim");
    symlink(&victim, r.0.join("out")).unwrap();
    symlink("../../../../../..", r.0.join("up")).unwrap();
    symlink("/run/there/conf", r.0.join("etc/conf")).unwrap();
    let data = outside("data");
    fs::write(data.join("f"), "data").unwrap();
    let f = data.join("f");
    let f = f.to_str().unwrap();
    let mut s = spec(&["sh", "-c", "cat /out/m; cat /run/there/conf; ls -d /up/mnt; stat -c %F /up/mnt/x"]);
    s.Mounts.push(mount_entry("/out/m", "bind", f, "bind"));
    s.Mounts.push(mount_entry("/etc/conf", "bind", f, "bind"));
    s.Mounts.push(mount_entry("/up/mnt", "tmpfs", "tmpfs", ""));
    s.Mounts.push(mount_entry("/up/mnt/x", "tmpfs", "tmpfs", ""));
    let out = run(&s, &r);
    assert_eq!(out.stdout, "datadata/up/mnt\ndirectory\n", "{}", out.stderr);
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
    assert!(r.0.join("mnt").is_dir());
    Ok(())
}

fn mount_errors() -> Result<(), Skip> {
    let r = Rootfs::new();
    for (entry, words) in [
        (mount_entry("/x", "bind", "/no/such/source", "bind"), vec!["/x", "/no/such/source", "no such file"]),
        (mount_entry("/x", "nofs", "none", ""), vec!["/x", "nofs"]),
        (mount_entry("/x", "tmpfs", "tmpfs", "size=many"), vec!["/x", "size=many"]),
        (mount_entry("/x", "tmpfs", "tmpfs", "wings"), vec!["/x", "wings"]),
        (mount_entry("/x", "bind", "/tmp", "bind,idmap"), vec!["idmap"]),
        (mount_entry("/", "tmpfs", "tmpfs", ""), vec!["destination", "\"/\""]),
        (mount_entry("/etc/passwd/x", "tmpfs", "tmpfs", ""), vec!["/etc/passwd/x", "not a directory"]),
        (mount_entry("/x", "bind", "relative", "bind"), vec!["relative"]),
    ] {
        let mut s = spec(&["true"]);
        s.Mounts.push(entry);
        let e = try_run(&s, &r).unwrap_err().to_string();
        assert!(words.iter().all(|w| e.contains(w)), "{e}");
    }
    Ok(())
}

fn remount() -> Result<(), Skip> {
    let out = script("touch /t/x; grep ' /t ' /proc/mounts", |s| {
        s.Mounts.push(mount_entry("/t", "tmpfs", "tmpfs", "size=100k"));
        s.Mounts.push(mount_entry("/t", "none", "none", "remount,ro,size=200k"));
    });
    assert!(out.stderr.contains("Read-only"), "{}", out.stderr);
    assert!(out.stdout.contains("size=200k"), "{}", out.stdout);
    Ok(())
}

fn propagation() -> Result<(), Skip> {
    let shared = outside("shared");
    let none: Option<&str> = None;
    let flags = nix::mount::MsFlags::MS_BIND;
    nix::mount::mount(Some(&shared), &shared, none, flags, none).unwrap();
    nix::mount::mount(none, &shared, none, nix::mount::MsFlags::MS_SHARED, none).unwrap();
    let source = shared.to_str().unwrap();
    let fields = |s: &mut oci::Spec, options: &str| s.Mounts.push(mount_entry("/p", "bind", source, options));
    let text = "grep ' /p ' /proc/self/mountinfo | cut -d' ' -f7-";
    let slave = script(text, |s| fields(s, "rbind,rslave"));
    assert!(slave.stdout.starts_with("master:"), "{}", slave.stdout);
    let private = script(text, |s| fields(s, "rbind,rprivate"));
    assert!(private.stdout.starts_with("- "), "{}", private.stdout);
    let peers = script(text, |s| {
        s.Linux.as_mut().unwrap().RootfsPropagation = "shared".into();
        fields(s, "rbind,rshared");
    });
    assert!(peers.stdout.starts_with("shared:"), "{}", peers.stdout);
    let root = script("grep ' / / ' /proc/self/mountinfo; head -n1 /proc/self/mountinfo | cut -d' ' -f7-", |s| {
        s.Linux.as_mut().unwrap().RootfsPropagation = "rprivate".into();
    });
    assert!(!root.stdout.contains("shared:") && !root.stdout.contains("master:"), "{}", root.stdout);
    nix::mount::umount(&shared).unwrap();
    Ok(())
}

fn sysctl() -> Result<(), Skip> {
    let out = script("cat /proc/sys/kernel/shmmni /proc/sys/net/ipv4/ip_unprivileged_port_start", |s| {
        let sysctl = &mut s.Linux.as_mut().unwrap().Sysctl;
        sysctl.insert("kernel.shmmni".into(), "123".into());
        sysctl.insert("net.ipv4.ip_unprivileged_port_start".into(), "99".into());
    });
    assert_eq!(out.stdout, "123\n99\n");
    let mut s = spec(&["true"]);
    s.Linux.as_mut().unwrap().Sysctl.insert("kernel.no_such".into(), "1".into());
    let e = try_run(&s, &Rootfs::new()).unwrap_err();
    assert!(e.to_string().contains("kernel.no_such"), "{e}");
    Ok(())
}

fn cgroup_mount() -> Result<(), Skip> {
    let text = "cat /proc/self/cgroup | grep ^0; cat /sys/fs/cgroup/cgroup.procs | head -n1; grep ' /sys/fs/cgroup ' /proc/mounts; mkdir /sys/fs/cgroup/x";
    let out = script(text, |_| {});
    assert!(out.stdout.starts_with("0::/\n1\n"), "{}", out.stdout);
    assert!(out.stdout.contains(" cgroup2 ro,"), "{}", out.stdout);
    assert!(out.stderr.contains("Read-only"), "{}", out.stderr);
    // Without a cgroup namespace the container still sees no more than its own.
    let out = script("cat /sys/fs/cgroup/cgroup.procs | head -n1; ls -d /sys/fs/cgroup/cgroup.kill", |s| {
        s.Linux.as_mut().unwrap().Namespaces.retain(|n| n.Type != "cgroup");
    });
    assert_eq!(out.stdout, "1\n/sys/fs/cgroup/cgroup.kill\n", "{}", out.stderr);
    Ok(())
}
