//! Volumes in real machines, given as Kubernetes gives them: by the directories that a kubelet would have, with ctr.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kata_testkit::cmd::Cmd;
use kata_testkit::engine::Containerd;
use kata_testkit::image::BUSYBOX;
use kata_testkit::kubelet::{publish, volume};
use kata_testkit::leaks::Guard;
use kata_testkit::programs::await_event;
use kata_testkit::wait;

/// For what happens at once in a VM that runs, on a slow machine.
const SOON: Duration = Duration::from_secs(15);

fn bind(source: &Path, at: &str, options: &str) -> String {
    format!("type=bind,src={},dst={at},options={options}", source.display())
}

/// A task in the background, and the file of its output.
fn detached(containerd: &Containerd, id: &str, flags: &[&str], script: &str) -> PathBuf {
    let log = containerd.file(&format!("{id}.log"));
    let out = containerd.file(&format!("{id}.out"));
    let run = containerd.run(["--detach", "--log-uri"]).arg(format!("file://{}", out.display())).args(flags);
    run.args([BUSYBOX, id, "sh", "-c", script]).output_to(&log).ok();
    out
}

fn says(out: &Path, text: &str) {
    let said = || fs::read_to_string(out).unwrap_or_default();
    wait::until(&format!("{text:?} in the output"), SOON, || said().contains(text).then_some(()));
}

fn end(containerd: &Containerd, id: &str) {
    containerd.ctr(["task", "kill", "--signal", "KILL", id]).run();
    wait::until("the task's end", SOON, || {
        containerd.ctr(["task", "list"]).run().out().contains("STOPPED").then_some(())
    });
    containerd.ctr(["task", "delete", id]).run();
    containerd.ctr(["container", "delete", id]).ok();
}

#[test]
fn updates_of_a_configmap_wake_who_watches_it() {
    let _leaks = Guard::new();
    let containerd = Containerd::start();
    let config = volume(&containerd.file(""), "configmap", "settings");
    publish(&config, "v1", &[("key", "one"), ("gone", "x")], 2000);
    let program = containerd.file("await-event");
    await_event(&program);
    let script = "cat /config/key; echo; stat -Lc %a-%g /config/key; /bin/await-event /config ..data; cat /config/key; \
                  echo; while [ -e /config/gone ]; do sleep 0.05; done; ls /config/; cat /sub; echo; echo end; \
                  while ! [ $(cat /config/key) = three ]; do sleep 0.05; done; echo followed; sleep 1000";
    let mounts = [
        bind(&config, "/config", "rbind:ro"),
        bind(&config.join("..v1/key"), "/sub", "bind:ro"),
        bind(&program, "/bin/await-event", "bind:ro"),
    ];
    let flags: Vec<&str> = mounts.iter().flat_map(|m| ["--mount", m]).collect();
    let out = detached(&containerd, "c1", &flags, script);
    says(&out, "one\n440-2000\nwatching\n");
    publish(&config, "v2", &[("key", "two")], 2000);
    fs::remove_file(config.join("gone")).unwrap();
    says(&out, "watching\ntwo\nkey\none\nend\n");
    publish(&config, "v3", &[("key", "three")], 2000);
    says(&out, "followed");
    end(&containerd, "c1");
    containerd.holds_nothing();
}

/// A loop device over a file, which goes with it.
struct Loop(String);

impl Loop {
    fn new(image: &Path) -> Result<Loop, String> {
        let out = Cmd::new("losetup").args(["--find", "--show"]).arg(image).run();
        if out.status.is_some_and(|s| s.success()) { Ok(Loop(out.out())) } else { Err(out.err()) }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        Cmd::new("losetup").args(["--detach", &self.0]).run();
    }
}

#[test]
fn block_devices_of_the_host_are_plugged() {
    let _leaks = Guard::new();
    let containerd = Containerd::start();
    let mut loops = Vec::new();
    for n in 0..5 {
        let path = containerd.file(&format!("disk-{n}"));
        let image = fs::File::create(&path).unwrap();
        image.set_len(8 << 20).unwrap();
        image.write_all_at(format!("content {n}").as_bytes(), 0).unwrap();
        match Loop::new(&path) {
            Ok(device) => loops.push(device),
            Err(why) => kata_testkit::skip!("this host makes no loop devices: {why}"),
        }
    }
    // All as devices, one of them as a bind mount as well; more than there are root ports for.
    let mut flags: Vec<String> = loops.iter().flat_map(|l| ["--device".to_owned(), l.0.clone()]).collect();
    flags.extend(["--mount".to_owned(), bind(Path::new(&loops[4].0), "/mnt/last", "bind:ro")]);
    let reads: Vec<String> = loops.iter().map(|l| format!("head -c 9 {}; echo;", l.0)).collect();
    let script = format!(
        "{} echo written | dd of={} bs=512 conv=sync,fsync 2>/dev/null; head -c 9 /mnt/last; echo; \
         echo x 2>/dev/null > /mnt/last || echo read-only; stat -c %F /mnt/last; \
         mknod /tmp/n b 254 99; head -c 1 /tmp/n 2>&1 | grep -o 'not permitted'",
        reads.concat(),
        loops[0].0
    );
    let out = containerd.run(["--rm"]).args(&flags).args([BUSYBOX, "disks", "sh", "-c", &script]).run();
    let wanted = "content 0\ncontent 1\ncontent 2\ncontent 3\ncontent 4\ncontent 4\nread-only\nblock special file";
    assert!(out.out().starts_with(wanted), "{}", out.report());
    let mut start = [0; 8];
    fs::File::open(containerd.file("disk-0")).unwrap().read_exact_at(&mut start, 0).unwrap();
    assert_eq!(&start, b"written\n");
    containerd.holds_nothing();
}

#[test]
fn memory_volumes_files_and_later_mounts() {
    let _leaks = Guard::new();
    let containerd = Containerd::start();
    let cache = volume(&containerd.file(""), "empty-dir", "cache");
    let tree = containerd.file("tree");
    fs::create_dir_all(tree.join("later")).unwrap();
    let file = containerd.file("termination-log");
    fs::write(&file, "").unwrap();
    let resolv = containerd.file("resolv.conf");
    fs::write(&resolv, "nameserver 10.0.0.1\n").unwrap();
    let on = |args: &[&str], at: &Path| Cmd::new("mount").args(args).arg(at).ok();
    on(&["-t", "tmpfs", "-o", "size=4m,mode=1777", "tmpfs"], &cache);
    // Only what is mounted below a shared mount comes later; on most hosts everything is, by systemd's doing.
    on(&["--bind", &tree.display().to_string()], &tree);
    on(&["--make-rshared"], &tree);
    let script = "df -k /cache | tail -1 | tr -s ' ' | cut -d' ' -f2; stat -c %a /cache; echo kept > /cache/f; \
                  echo why > /dev/termination-log; cat /etc/resolv.conf; echo ready; \
                  while ! [ -e /tree/later/file ]; do sleep 0.05; done; cat /tree/later/file; \
                  while grep -q 10.0.0.1 /etc/resolv.conf; do sleep 0.05; done; cat /etc/resolv.conf; \
                  while [ -e /tree/later/file ]; do sleep 0.05; done; echo gone; sleep 1000";
    let mounts = [
        bind(&cache, "/cache", "rbind:rw"),
        bind(&tree, "/tree", "rbind:rslave:rw"),
        bind(&file, "/dev/termination-log", "bind:rw"),
        bind(&resolv, "/etc/resolv.conf", "bind:rw"),
    ];
    let flags: Vec<&str> = mounts.iter().flat_map(|m| ["--mount", m]).collect();
    let out = detached(&containerd, "c1", &flags, script);
    says(&out, "4096\n1777\nnameserver 10.0.0.1\nready\n");
    assert_eq!(fs::read_to_string(&file).unwrap(), "why\n");
    assert!(!cache.join("f").exists(), "what is in memory is in the guest's");
    // A mount that is made on the host below what the container has.
    on(&["-t", "tmpfs", "tmpfs"], &tree.join("later"));
    fs::write(tree.join("later/file"), "came later\n").unwrap();
    says(&out, "came later\n");
    fs::write(&resolv, "nameserver 10.0.0.2\n").unwrap();
    says(&out, "nameserver 10.0.0.2\n");
    // Not lazily it would be busy as long as the guest remembers files of it.
    Cmd::new("umount").arg("--lazy").arg(tree.join("later")).ok();
    says(&out, "gone\n");
    end(&containerd, "c1");
    Cmd::new("umount").args([&cache, &tree]).ok();
    assert_eq!(fs::metadata(&file).unwrap().size(), 4);
    containerd.holds_nothing();
}

#[test]
fn huge_pages_are_set_aside_for_volumes() {
    let _leaks = Guard::new();
    let containerd = Containerd::start();
    let huge = volume(&containerd.file(""), "empty-dir", "huge");
    let mounted =
        Cmd::new("mount").args(["-t", "hugetlbfs", "-o", "pagesize=2M,size=8M,mode=1770", "none"]).arg(&huge).run();
    if !mounted.status.is_some_and(|s| s.success()) {
        kata_testkit::skip!("this host mounts no hugetlbfs: {}", mounted.err());
    }
    let script = "grep HugePages_Total /proc/meminfo | tr -s ' '; stat -c %a /huge; \
                  df -k /huge | tail -1 | tr -s ' ' | cut -d' ' -f2";
    let mount = bind(&huge, "/huge", "rbind:rw");
    let out = containerd.run(["--rm", "--mount", &mount]).args([BUSYBOX, "huge", "sh", "-c", script]).run();
    Cmd::new("umount").arg(&huge).ok();
    assert_eq!(out.out(), "HugePages_Total: 4\n1770\n8192", "{}", out.report());
    containerd.holds_nothing();
}
