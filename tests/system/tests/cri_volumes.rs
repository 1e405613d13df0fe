//! Volumes of pods, prepared as a kubelet prepares them (see `cri_pods.rs` for the oracle).

use std::fs;
use std::path::Path;
use std::time::Duration;

use kata_testkit::leaks::Guard;
use kata_testkit::wait;
use kata_testkit_cri::api;
use kata_testkit_cri::node::is_kata;
use kata_testkit_cri::volume::{Mounted, Projected, empty_dir};
use kata_testkit_cri::{Container, ContainerSpec, Node, Pod};

/// For what happens at once in a VM that runs, on a slow machine.
const SOON: Duration = Duration::from_secs(20);
/// How long an update of a volume may take to reach a container. A kubelet's own period is a minute.
const UPDATED: Duration = Duration::from_secs(10);

fn idle(spec: ContainerSpec<'_>) -> Container<'_> {
    let container = spec.sh("echo ready; exec sleep 10000").start();
    container.says("ready", SOON);
    container
}

/// Waits until a command in the container says this.
fn comes_to(container: &Container<'_>, script: &str, wanted: &str) {
    let mut last = container.exec(script);
    let start = std::time::Instant::now();
    while last.stdout != wanted {
        assert!(start.elapsed() < UPDATED, "{script:?} does not come to {wanted:?}: {last:?}");
        std::thread::sleep(Duration::from_millis(100));
        last = container.exec(script);
    }
}

#[test]
fn config_maps_secrets_and_projected_volumes_follow_their_updates() {
    let _leaks = Guard::new();
    let node = Node::start();
    let pod = node.pod("config").run();
    let mut config = Projected::new(&pod, "configmap", "settings", &[("a.conf", "one"), ("b.conf", "gone soon")]);
    // A Secret is on a tmpfs of its own.
    let memory = pod.dir().join("volumes/kubernetes.io~secret/password");
    fs::create_dir_all(&memory).unwrap();
    let secret_memory = Mounted::tmpfs(&memory, 1 << 20);
    let mut secret = Projected::new(&pod, "secret", "password", &[("token", "s3cret")]);
    let mut projected = Projected::new(
        &pod,
        "projected",
        "all",
        &[("deep/er/token", "first"), ("deep/ca.crt", "ca"), ("labels", "l=1")],
    );
    let mut downward = Projected::new(&pod, "downward-api", "info", &[("annotations", "x=\"1\"")]);
    let reader = pod.container("reader");
    let reader = reader.bind_read_only(config.path(), "/etc/config").bind_read_only(secret.path(), "/etc/secret");
    let reader = reader.bind_read_only(projected.path(), "/var/run/all").bind_read_only(downward.path(), "/etc/info");
    let reader = idle(reader);
    // Two containers may have the same volume, one of them for writing.
    let writer = idle(pod.container("writer").bind(config.path(), "/config"));

    assert_eq!(reader.out("cat /etc/config/a.conf /etc/secret/token /etc/info/annotations"), "ones3cretx=\"1\"");
    assert_eq!(reader.out("cat /var/run/all/deep/er/token /var/run/all/deep/ca.crt /var/run/all/labels"), "firstcal=1");
    assert_eq!(reader.out("readlink /etc/config/a.conf"), "..data/a.conf");
    assert!(reader.exec("echo x > /etc/config/a.conf").stderr.contains("Read-only file system"));
    assert!(reader.exec("touch /etc/secret/new").stderr.contains("Read-only file system"));

    // A process that has the old one open keeps it; whoever opens anew gets the new.
    reader.out("(exec 3< /etc/config/a.conf; sleep 1; cat > /tmp/old <&3) > /dev/null 2>&1 &");
    config.update(&[("a.conf", "two, and longer"), ("c.conf", "new")]);
    secret.update(&[("token", "r0tated")]);
    projected.update(&[("deep/er/token", "second"), ("labels", "l=2")]);
    downward.update(&[("annotations", "x=\"2\"")]);
    comes_to(&reader, "cat /etc/config/a.conf", "two, and longer");
    comes_to(&reader, "cat /etc/config/c.conf", "new");
    comes_to(&reader, "ls /etc/config", "a.conf\nc.conf");
    comes_to(&reader, "cat /etc/secret/token", "r0tated");
    comes_to(&reader, "cat /var/run/all/deep/er/token; ls /var/run/all/deep", "seconder");
    comes_to(&reader, "cat /var/run/all/labels /etc/info/annotations", "l=2x=\"2\"");
    comes_to(&writer, "cat /config/a.conf", "two, and longer");
    comes_to(&reader, "cat /tmp/old", "one");
    // Whatever the container sees is of one moment. What it has entered may be replaced under its feet, by a kubelet as well;
    // then it looks again.
    for n in 0..20 {
        let text = format!("moment {n}");
        config.update(&[("a.conf", &text), ("c.conf", &text)]);
        let script = "cd /etc/config/..data && cat a.conf && echo && cat c.conf";
        let seen = wait::until("files of one moment", UPDATED, || {
            let seen = reader.exec(script);
            assert!(seen.code == 0 || seen.stderr.contains("No such file or directory"), "{seen:?}");
            (seen.code == 0).then_some(seen.stdout)
        });
        let (a, c) = seen.split_once('\n').unwrap();
        assert_eq!(a, c, "files of two moments");
    }
    comes_to(&reader, "cat /etc/config/c.conf", "moment 19");
    pod.end();
    drop(secret_memory);
    node.holds_nothing();
}

/// Perl of the host, bound into the container, says which inotify events it gets for a directory.
fn watcher<'a>(pod: &'a Pod<'a>, watched: &Path) -> Container<'a> {
    let (init, add) = if cfg!(target_arch = "aarch64") { (26, 27) } else { (294, 254) };
    // IN_MODIFY, IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE: see inotify(7) for the records.
    let script = format!(
        "$| = 1; my $fd = syscall({init}, 0); $fd >= 0 or die; my $dir = '/etc/config'; syscall({add}, $fd, $dir, 0x3c2) >= 0 or die; \
         open(my $in, '<&=', $fd) or die; print \"watching\\n\"; \
         while (my $n = sysread($in, my $all, 4096)) {{ for (my $at = 0; $at < $n;) {{ \
         my (undef, $mask, undef, $len) = unpack('iIII', substr($all, $at, 16)); \
         printf \"%x %s\\n\", $mask, unpack('Z*', substr($all, $at + 16, $len)); $at += 16 + $len }} }}"
    );
    let container = pod.container("watcher").bind_read_only(watched, "/etc/config");
    let container = container.bind_read_only(Path::new("/usr"), "/usr");
    let container =
        container.bind_read_only(Path::new("/usr/lib"), "/lib").bind_read_only(Path::new("/usr/lib64"), "/lib64");
    let container =
        container.with(|config| config.command = ["/usr/bin/perl", "-e", &script].map(str::to_owned).to_vec());
    let container = container.start();
    container.says("watching", SOON);
    container
}

#[test]
fn updates_of_a_config_map_are_inotify_events() {
    let _leaks = Guard::new();
    let node = Node::start();
    let pod = node.pod("inotify").run();
    let mut config = Projected::new(&pod, "configmap", "settings", &[("a.conf", "one")]);
    let watcher = watcher(&pod, config.path());
    for n in 1..=3 {
        let text = format!("update {n}");
        config.update(&[("a.conf", &text)]);
        // Programs that reload their configuration wait for `..data` to be created or moved there.
        wait::until(&format!("event of update {n}; it saw {:?}", watcher.log().stdout), UPDATED, || {
            let log = watcher.log().stdout;
            let told = log.lines().filter(|line| ["100 ..data", "80 ..data"].contains(line)).count();
            (told >= n).then_some(())
        });
        // When it is told, it is there.
        assert_eq!(watcher.out("cat /etc/config/a.conf"), text);
    }
    pod.end();
    node.holds_nothing();
}

#[test]
fn empty_dirs_on_disk_and_in_memory_are_shared_by_the_pods_containers() {
    let _leaks = Guard::new();
    let node = Node::start();
    let pod = node.pod("empty").run();
    let disk = empty_dir(&pod, "disk");
    let memory = Mounted::memory(&pod, "memory", 16 << 20);
    let mounts = |name: &str| pod.container(name).bind(&disk, "/disk").bind(memory.path(), "/memory");
    let one = idle(mounts("one"));
    let two = idle(mounts("two").security(|context| context.run_as_user = Some(api::Int64Value { value: 1000 })));
    for volume in ["/disk", "/memory"] {
        one.out(&format!("echo from one > {volume}/one; chmod 644 {volume}/one"));
        assert_eq!(two.out(&format!("cat {volume}/one; echo from two > {volume}/two; id -u")), "from one\n1000");
        assert_eq!(one.out(&format!("cat {volume}/two; stat -c %u {volume}/two")), "from two\n1000");
    }
    assert_eq!(fs::read_to_string(disk.join("two")).unwrap(), "from two\n");
    // What is in memory is a tmpfs with the given size.
    assert_eq!(one.out("stat -f -c %T /memory"), "tmpfs");
    assert_eq!(one.out("df -k /memory | tail -n 1 | awk '{ print $2 }'"), "16384");
    let full = one.exec("dd if=/dev/zero of=/memory/big bs=1M count=17");
    assert!(full.code != 0 && full.stderr.contains("No space left on device"), "{full:?}");
    one.out("rm /memory/big");
    // A container that is replaced finds what it left.
    one.remove().unwrap();
    let again = idle(mounts("one").attempt(1));
    assert_eq!(again.out("cat /disk/one /disk/two /memory/one /memory/two"), "from one\nfrom two\nfrom one\nfrom two");
    assert_eq!(again.out("cat /memory/one"), two.out("cat /memory/one"));
    pod.end();
    drop(memory);
    node.holds_nothing();
}

#[test]
fn host_paths_and_sub_paths_files_and_directories() {
    let _leaks = Guard::new();
    let node = Node::start();
    let pod = node.pod("paths").run();
    let host = node.file("host");
    fs::create_dir_all(host.join("dir/sub/deep")).unwrap();
    fs::write(host.join("file"), "a file").unwrap();
    fs::write(host.join("dir/in"), "in it").unwrap();
    fs::write(host.join("dir/sub/deep/leaf"), "a leaf").unwrap();
    let sub_dir = Mounted::sub_path(&pod, &host.join("dir"), "sub/deep", "main");
    let sub_file = Mounted::sub_path(&pod, &host, "dir/in", "main");
    let main = pod.container("main").bind(&host.join("file"), "/etc/a-file").bind(&host.join("dir"), "/data");
    let main = main.bind_read_only(&host.join("dir"), "/data-ro").bind_read_only(&host.join("file"), "/etc/a-file-ro");
    // A mount inside a mount, and one below a directory that is not there.
    let main = main.bind(sub_dir.path(), "/data/sub/mounted").bind(sub_file.path(), "/opt/new/place/file");
    let main = idle(main);

    assert_eq!(main.out("cat /etc/a-file /data/in /data-ro/in /etc/a-file-ro"), "a filein itin ita file");
    assert_eq!(main.out("cat /data/sub/mounted/leaf /opt/new/place/file"), "a leafin it");
    main.out("echo changed > /etc/a-file; echo made > /data/made; echo more > /data/sub/mounted/more");
    assert_eq!(fs::read_to_string(host.join("file")).unwrap(), "changed\n");
    assert_eq!(fs::read_to_string(host.join("dir/made")).unwrap(), "made\n");
    assert_eq!(fs::read_to_string(host.join("dir/sub/deep/more")).unwrap(), "more\n");
    for read_only in ["/data-ro/x", "/etc/a-file-ro"] {
        let refused = main.exec(&format!("echo x > {read_only}"));
        assert!(refused.code != 0 && refused.stderr.contains("Read-only file system"), "{refused:?}");
    }
    // What the host changes is seen.
    fs::write(host.join("dir/later"), "later").unwrap();
    comes_to(&main, "cat /data/later /data-ro/later", "laterlater");
    fs::remove_file(host.join("dir/later")).unwrap();
    comes_to(&main, "test -e /data/later || echo gone", "gone");

    // Without its source there is no container; the kubelet makes directories that may be missing itself.
    let made = pod.container("wrong").sh("true").bind(&host.join("missing/file"), "/x").try_create();
    let failed = match made {
        Err(refused) => refused.message().to_owned(),
        Ok(container) => {
            let refused = container.try_start().err().map(|e| e.message().to_owned());
            container.remove().unwrap();
            refused.unwrap_or_default()
        }
    };
    // containerd makes a directory of it.
    assert!(failed.is_empty() == host.join("missing/file").is_dir(), "{failed}");
    pod.end();
    drop((sub_dir, sub_file));
    node.holds_nothing();
}

#[test]
fn what_the_host_mounts_later_reaches_a_container_that_asked_for_it() {
    let _leaks = Guard::new();
    let node = Node::start();
    let pod = node.pod("propagation").run();
    let host = node.file("shared");
    fs::create_dir_all(host.join("early")).unwrap();
    fs::create_dir_all(host.join("late")).unwrap();
    // The container's directory must be a shared mount, as it is on a node whose root is.
    let shared = Mounted::shared(&host);
    let early = Mounted::tmpfs(&host.join("early"), 1 << 20);
    fs::write(host.join("early/file"), "early").unwrap();
    let mount = |propagation: api::MountPropagation| api::Mount {
        host_path: host.display().to_string(),
        container_path: "/host".into(),
        propagation: propagation.into(),
        ..Default::default()
    };
    let slave = idle(pod.container("slave").mount(mount(api::MountPropagation::PropagationHostToContainer)));
    let private = idle(pod.container("private").mount(mount(api::MountPropagation::PropagationPrivate)));
    // What was there is seen by both.
    assert_eq!(slave.out("cat /host/early/file"), "early");
    assert_eq!(private.out("cat /host/early/file"), "early");
    let late = Mounted::tmpfs(&host.join("late"), 1 << 20);
    fs::write(host.join("late/file"), "late").unwrap();
    comes_to(&slave, "cat /host/late/file", "late");
    assert_ne!(private.exec("cat /host/late/file").code, 0);
    drop(late);
    comes_to(&slave, "ls /host/late", "");
    pod.end();
    drop(early);
    drop(shared);
    node.holds_nothing();
}

#[test]
fn last_words_read_only_roots_and_users() {
    let _leaks = Guard::new();
    let node = Node::start();
    let pod = node.pod("misc").run();
    let words = pod.container("words").sh("echo 'the end' > /dev/termination-log; exit 9").start();
    assert_eq!(words.ends(SOON).exit_code, 9);
    assert_eq!(words.last_words(), "the end\n");
    // Also of one whose root cannot be written to, and who is nobody.
    let locked = pod.container("locked").security(|context| {
        context.readonly_rootfs = true;
        context.run_as_user = Some(api::Int64Value { value: 1000 });
        context.run_as_group = Some(api::Int64Value { value: 1000 });
        context.supplemental_groups = vec![2000, 3000];
        context.no_new_privs = true;
    });
    let locked = idle(locked);
    assert_eq!(locked.out("id -u; id -g; id -G"), "1000\n1000\n1000 2000 3000");
    assert!(locked.exec("echo x > /x").code != 0);
    assert_eq!(locked.out("grep NoNewPrivs /proc/self/status | cut -f 2"), "1");
    pod.end();
    node.holds_nothing();
}

#[test]
fn a_privileged_container_may_do_what_it_likes_in_its_machine_and_has_no_device_of_the_hosts() {
    let _leaks = Guard::new();
    let node = Node::start();
    if !is_kata() {
        println!("runc can only give what this host's root has");
        return;
    }
    let privileged = |config: &mut api::PodSandboxConfig| {
        let linux = config.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default().privileged = true;
    };
    let pod = node.pod("strong").with(privileged).run();
    let strong = idle(pod.container("strong").security(|context| context.privileged = true));
    // All that containerd has to give, which is what this host's root has.
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let all = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap().trim();
    assert!(strong.out("grep CapEff /proc/self/status").ends_with(all), "{all}");
    strong.out("mkdir /tmp/t && mount -t tmpfs none /tmp/t && touch /tmp/t/x && umount /tmp/t");
    strong.out("echo 1 > /proc/sys/net/ipv4/ip_forward && touch /sys/fs/cgroup/memory.high");
    pod.end();
    node.holds_nothing();
}
