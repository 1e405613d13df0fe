//! The share against the real kernel, and the file daemon with a real guest. Needs root; what is missing is printed.

#[path = "../../vmm-qemu/tests/common/guest.rs"]
mod guest;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use guest::{Guest, Shell};
use kata_storage::{FsDaemon, RootfsMount, Share, ShareError};
use kata_testkit::harness::{self, block_on};
use kata_types::ContainerId;
use kata_vmm::{Accel, Device, DeviceId, GuestAddr, Stop, Vmm};
use kata_vmm_qemu::{Qemu, QemuConfig};
use nix::mount::{MsFlags, mount, umount};

const BOOT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match args.first().and_then(|a| a.to_str()) {
        Some("spawn") => return kata_vmm::spawn::helper_main(args[1..].to_vec()),
        Some("virtiofsd") => return kata_storage::virtiofsd::main(args[1..].to_vec()),
        _ => {}
    }
    let listing = args.iter().any(|a| a == "--list");
    if !listing && !rustix::process::geteuid().is_root() {
        println!("SKIP: needs root");
        return ExitCode::SUCCESS;
    }
    if !listing {
        own_mount_namespace();
    }
    harness::run(
        &args,
        &[
            ("binds_of_files_and_directories", binds_of_files_and_directories),
            ("read_only_means_so_all_the_way_down", read_only_means_so_all_the_way_down),
            ("what_is_lent_is_there_once_and_read_only", what_is_lent_is_there_once_and_read_only),
            ("unmounting_does_not_reach_the_original", unmounting_does_not_reach_the_original),
            ("root_file_systems", root_file_systems),
            ("an_overlay_of_many_layers", an_overlay_of_many_layers),
            ("errors_name_the_path_and_leave_nothing", errors_name_the_path_and_leave_nothing),
            ("removal_never_touches_content", removal_never_touches_content),
            ("what_a_crash_left_is_cleaned_up", what_a_crash_left_is_cleaned_up),
            ("the_daemon_is_jailed_and_ends", the_daemon_is_jailed_and_ends),
            ("a_guest_uses_the_share", a_guest_uses_the_share),
        ],
        Duration::from_secs(150),
    )
}

/// As the sandbox's daemon does: mounts of the host's appear in it, its own stay in it.
fn own_mount_namespace() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>).unwrap();
}

fn cid(name: &str) -> ContainerId {
    ContainerId::new(name).unwrap()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn mounts_below(dir: &Path) -> Vec<String> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let dir = dir.to_str().unwrap();
    text.lines().filter(|l| l.split(' ').nth(4).unwrap().starts_with(dir)).map(str::to_owned).collect()
}

/// A run directory and one for sources. On a tmpfs of their own, because overlayfs does not stack on everything that a
/// temporary directory may be on.
struct Dirs {
    tmp: tempfile::TempDir,
}

impl Dirs {
    fn new() -> Dirs {
        let tmp = tempfile::tempdir().unwrap();
        mount(Some("tmpfs"), tmp.path(), Some("tmpfs"), MsFlags::empty(), Some("mode=0755")).unwrap();
        fs::create_dir(tmp.path().join("run")).unwrap();
        fs::create_dir(tmp.path().join("src")).unwrap();
        Dirs { tmp }
    }

    fn run(&self) -> PathBuf {
        self.tmp.path().join("run")
    }

    fn src(&self, name: &str) -> PathBuf {
        self.tmp.path().join("src").join(name)
    }

    fn make(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let dir = self.src(name);
        fs::create_dir_all(&dir).unwrap();
        for (file, content) in files {
            fs::write(dir.join(file), content).unwrap();
        }
        dir
    }
}

impl Drop for Dirs {
    fn drop(&mut self) {
        let left = mounts_below(&self.run());
        if !std::thread::panicking() {
            assert!(left.is_empty(), "{left:?}");
            assert_eq!(fs::read_dir(self.run()).unwrap().count(), 0, "something is left in the run directory");
        }
        let _ = nix::mount::umount2(self.tmp.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

fn binds_of_files_and_directories() {
    let dirs = Dirs::new();
    let dir = dirs.make("dir", &[("a", "in a directory")]);
    let file = dirs.make("other", &[("f", "a file")]).join("f");
    let mut share = Share::create(&dirs.run()).unwrap();
    let first = share.add_bind(&cid("c1"), &dir, false, true).unwrap();
    let second = share.add_bind(&cid("c1"), &file, false, true).unwrap();
    let third = share.add_bind(&cid("c2"), &file, false, true).unwrap();
    assert_eq!(first, "/run/kata-containers/shared/containers/c1/mounts/0");
    assert_eq!(second, "/run/kata-containers/shared/containers/c1/mounts/1");
    assert_eq!(third, "/run/kata-containers/shared/containers/c2/mounts/0");
    let dir_of = share.dir().to_owned();
    let at = |path: &str| dir_of.join(path);
    assert_eq!(fs::read_to_string(at("c1/mounts/0/a")).unwrap(), "in a directory");
    fs::write(at("c1/mounts/0/b"), "new").unwrap();
    assert_eq!(fs::read_to_string(dir.join("b")).unwrap(), "new");
    fs::write(at("c1/mounts/1"), "changed").unwrap();
    assert_eq!(fs::read_to_string(at("c2/mounts/0")).unwrap(), "changed");
    assert_eq!(fs::metadata(share.dir()).unwrap().permissions().mode() & 0o777, 0o700);

    share.remove_container(&cid("c1")).unwrap();
    share.remove_container(&cid("c1")).unwrap();
    assert!(!at("c1").exists() && at("c2/mounts/0").exists());
    assert_eq!(fs::read_to_string(&file).unwrap(), "changed");
    share.remove_all().unwrap();
}

fn read_only_means_so_all_the_way_down() {
    let dirs = Dirs::new();
    let dir = dirs.make("dir/sub", &[]).parent().unwrap().to_owned();
    mount(Some("tmpfs"), &dir.join("sub"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    fs::write(dir.join("sub/below"), "x").unwrap();
    let mut share = Share::create(&dirs.run()).unwrap();
    share.add_bind(&cid("c"), &dir, true, true).unwrap();
    share.add_bind(&cid("c"), &dir, true, false).unwrap();
    share.add_bind(&cid("c"), &dir, false, true).unwrap();
    let at = |path: &str| share.dir().join("c/mounts").join(path);
    let refused = |path: &str| fs::write(at(path), "y").unwrap_err().kind();
    assert_eq!(refused("0/x"), std::io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(refused("0/sub/x"), std::io::ErrorKind::ReadOnlyFilesystem);
    assert!(at("0/sub/below").exists());
    assert_eq!(refused("1/x"), std::io::ErrorKind::ReadOnlyFilesystem);
    assert!(!at("1/sub/below").exists(), "not recursive");
    fs::write(at("2/sub/x"), "y").unwrap();
    share.remove_all().unwrap();
    assert!(dir.join("sub/x").exists(), "the original's mounts stay");
    umount(&dir.join("sub")).unwrap();
}

fn what_is_lent_is_there_once_and_read_only() {
    let dirs = Dirs::new();
    let dir = dirs.make("tools", &[("a", "lent")]);
    let mut share = Share::create(&dirs.run()).unwrap();
    let e = share.lend("~tools", &dirs.src("absent")).unwrap_err().to_string();
    assert!(e.contains("lent to the guest") && e.contains("absent"), "{e}");
    assert!(!share.dir().join("~tools").exists());
    share.lend("~tools", &dir).unwrap();
    share.lend("~tools", &dir).unwrap();
    assert_eq!(mounts_below(&share.dir().join("~tools")).len(), 1);
    assert_eq!(fs::read_to_string(share.dir().join("~tools/a")).unwrap(), "lent");
    let e = fs::write(share.dir().join("~tools/b"), "x").unwrap_err();
    assert_eq!(e.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    share.remove_all().unwrap();
    assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "lent");
}

/// Even where the original is a shared mount, as every mount is on a host with systemd.
fn unmounting_does_not_reach_the_original() {
    let dirs = Dirs::new();
    let dir = dirs.make("dir", &[]);
    mount(Some("tmpfs"), &dir, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    mount(None::<&str>, &dir, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
    fs::create_dir(dir.join("sub")).unwrap();
    fs::create_dir(dir.join("later")).unwrap();
    mount(Some("tmpfs"), &dir.join("sub"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    let mut share = Share::create(&dirs.run()).unwrap();
    share.add_bind(&cid("c"), &dir, false, true).unwrap();
    // What comes later to the original comes to the share.
    mount(Some("tmpfs"), &dir.join("later"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    fs::write(dir.join("later/file"), "x").unwrap();
    assert!(share.dir().join("c/mounts/0/later/file").exists());
    share.remove_container(&cid("c")).unwrap();
    assert_eq!(mounts_below(&dir).len(), 3, "{:?}", mounts_below(&dir));
    share.remove_all().unwrap();
    nix::mount::umount2(&dir, nix::mount::MntFlags::MNT_DETACH).unwrap();
}

fn overlay(dirs: &Dirs, lower: &str) -> RootfsMount {
    let (upper, work) = (dirs.make("upper", &[]), dirs.make("work", &[]));
    RootfsMount {
        fstype: "overlay".to_owned(),
        source: "overlay".to_owned(),
        options: vec![
            "index=off".to_owned(),
            format!("workdir={}", work.display()),
            format!("upperdir={}", upper.display()),
            format!("lowerdir={lower}"),
        ],
    }
}

fn root_file_systems() {
    let dirs = Dirs::new();
    let one = dirs.make("one", &[("a", "from one")]);
    let two = dirs.make("two", &[("b", "from two")]);
    let mut share = Share::create(&dirs.run()).unwrap();
    let at = |share: &Share, path: &str| share.dir().join(path);

    let lower = format!("{}:{}", one.display(), two.display());
    let first = share.add_rootfs(&cid("ov"), &[overlay(&dirs, &lower)], Path::new("/nonexistent"), false).unwrap();
    assert_eq!(first, "/run/kata-containers/shared/containers/ov/rootfs");
    assert_eq!(fs::read_to_string(at(&share, "ov/rootfs/b")).unwrap(), "from two");
    fs::write(at(&share, "ov/rootfs/a"), "changed").unwrap();
    assert_eq!(fs::read_to_string(one.join("a")).unwrap(), "from one");
    assert_eq!(fs::read_to_string(dirs.src("upper/a")).unwrap(), "changed");
    share.remove_container(&cid("ov")).unwrap();
    assert_eq!(fs::read_to_string(dirs.src("upper/a")).unwrap(), "changed");

    // Another one of that id is nowhere where the guest may remember the first.
    let second = share.add_rootfs(&cid("ov"), &[overlay(&dirs, &lower)], Path::new("/nonexistent"), true).unwrap();
    assert_eq!(second, "/run/kata-containers/shared/containers/ov~1/rootfs");
    assert_eq!(share.add_bind(&cid("ov"), &one, true, false).unwrap(), second.replace("rootfs", "mounts/0"));
    let e = fs::write(at(&share, "ov~1/rootfs/a"), "x").unwrap_err();
    assert_eq!(e.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    let e = share.add_rootfs(&cid("ov"), &[], &one, false).unwrap_err();
    assert!(matches!(e, ShareError::Exists(_)), "{e}");

    let bind = |options: &[&str]| RootfsMount {
        fstype: "bind".to_owned(),
        source: one.display().to_string(),
        options: options.iter().map(|&o| o.to_owned()).collect(),
    };
    share.add_rootfs(&cid("bind"), &[bind(&["rbind", "rw"])], Path::new("/nonexistent"), false).unwrap();
    fs::write(at(&share, "bind/rootfs/new"), "x").unwrap();
    share.add_rootfs(&cid("bind-ro"), &[bind(&["rbind", "ro"])], Path::new("/nonexistent"), false).unwrap();
    assert!(fs::write(at(&share, "bind-ro/rootfs/new"), "x").is_err());

    // Without mounts, the bundle's directory.
    share.add_rootfs(&cid("dir"), &[], &two, false).unwrap();
    assert_eq!(fs::read_to_string(at(&share, "dir/rootfs/b")).unwrap(), "from two");
    drop(share);
    assert!(one.join("new").exists());
}

fn an_overlay_of_many_layers() {
    let dirs = Dirs::new();
    let layers: Vec<String> = (0..60)
        .map(|n| {
            let name = format!("{}-{n}", "long".repeat(25));
            dirs.make(&name, &[(&format!("f{n}"), "x")]).display().to_string()
        })
        .collect();
    let lower = layers.join(":");
    assert!(lower.len() > 4096);
    let mut share = Share::create(&dirs.run()).unwrap();
    share.add_rootfs(&cid("c"), &[overlay(&dirs, &lower)], Path::new("/nonexistent"), false).unwrap();
    assert_eq!(fs::read_dir(share.dir().join("c/rootfs")).unwrap().count(), 60);
    share.remove_all().unwrap();
}

fn errors_name_the_path_and_leave_nothing() {
    let dirs = Dirs::new();
    let file = dirs.make("dir", &[("f", "")]).join("f");
    let mut share = Share::create(&dirs.run()).unwrap();
    let words = |e: ShareError, words: &[&str]| {
        for word in words {
            assert!(e.to_string().contains(word), "{word} in {e}");
        }
    };
    words(share.add_bind(&cid("c"), Path::new("/no/such"), false, true).unwrap_err(), &["bind source", "/no/such"]);
    words(share.add_rootfs(&cid("c"), &[], Path::new("/no/such"), false).unwrap_err(), &["root file", "/no/such"]);
    words(share.add_rootfs(&cid("c"), &[], &file, false).unwrap_err(), &["/f", "not a directory"]);
    let broken = overlay(&dirs, "/no/such/layer");
    words(share.add_rootfs(&cid("c"), &[broken], Path::new("/x"), false).unwrap_err(), &["overlay", "/no/such/layer"]);
    assert!(!share.dir().join("c").exists());
    let unknown = RootfsMount { fstype: "nosuchfs".to_owned(), ..RootfsMount::default() };
    words(share.add_rootfs(&cid("c"), &[unknown], Path::new("/x"), false).unwrap_err(), &["nosuchfs"]);
    assert_eq!(fs::read_dir(share.dir()).unwrap().count(), 0);
    share.remove_all().unwrap();
}

fn removal_never_touches_content() {
    let dirs = Dirs::new();
    let mut share = Share::create(&dirs.run()).unwrap();
    let dir = dirs.make("dir", &[("keep", "me")]);
    share.add_bind(&cid("c"), &dir, false, true).unwrap();
    // Somebody keeps a file open in it.
    let open = fs::File::open(share.dir().join("c/mounts/0/keep")).unwrap();
    share.remove_container(&cid("c")).unwrap();
    drop(open);
    assert_eq!(fs::read_to_string(dir.join("keep")).unwrap(), "me");
    // Something that is no mount point of ours.
    let stray = share.dir().join("c~1");
    fs::create_dir(&stray).unwrap();
    fs::write(stray.join("precious"), "content").unwrap();
    let e = share.remove_container(&cid("c")).unwrap_err();
    assert!(e.to_string().contains("precious"), "{e}");
    assert_eq!(fs::read_to_string(stray.join("precious")).unwrap(), "content");
    fs::remove_file(stray.join("precious")).unwrap();
    share.remove_all().unwrap();
}

fn what_a_crash_left_is_cleaned_up() {
    let dirs = Dirs::new();
    Share::cleanup(&dirs.run()).unwrap();
    Share::cleanup(Path::new("/no/such/run/dir")).unwrap();
    let dir = dirs.make("dir", &[("keep", "me")]);
    let mut share = Share::create(&dirs.run()).unwrap();
    share.add_rootfs(&cid("c"), &[], &dir, false).unwrap();
    share.add_bind(&cid("c"), &dir.join("keep"), false, true).unwrap();
    std::mem::forget(share);
    Share::cleanup(&dirs.run()).unwrap();
    assert!(!dirs.run().join("share").exists());
    assert_eq!(fs::read_to_string(dir.join("keep")).unwrap(), "me");
    Share::cleanup(&dirs.run()).unwrap();
}

fn the_daemon_is_jailed_and_ends() {
    let dirs = Dirs::new();
    let dir = dirs.make("dir", &[("a", "x")]);
    block_on(async {
        let mut share = Share::create(&dirs.run()).unwrap();
        share.add_rootfs(&cid("early"), &[], &dir, false).unwrap();
        let begin = Instant::now();
        let daemon = FsDaemon::start(&share, &dirs.run(), &[], false).await.unwrap();
        println!("  started in {:?}", begin.elapsed());
        let pid = daemon.pid();
        let root = PathBuf::from(format!("/proc/{pid}/root"));
        // It has changed its root when it sees nothing but the share.
        let names = || -> Vec<String> {
            let Ok(entries) = fs::read_dir(&root) else { return vec![] };
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
        };
        while names() != ["early"] {
            assert!(begin.elapsed() < Duration::from_secs(10), "{:?} {:?}", names(), daemon.log_tail());
            assert_eq!(*daemon.exited().borrow(), None);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        share.add_rootfs(&cid("late"), &[], &dir, false).unwrap();
        share.add_bind(&cid("late"), &dir, true, true).unwrap();
        assert!(root.join("late/rootfs/a").exists(), "what comes later is seen");
        let until = Instant::now() + Duration::from_secs(5);
        let status = loop {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            // The last step before it listens: SYS_ADMIN (bit 21) is given up.
            if status.contains("CapEff:\t00000000880000db\n") {
                break status;
            }
            assert!(Instant::now() < until, "{status}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let mounts = fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap();
        let options = |at: &str| -> Vec<String> {
            let line =
                mounts.lines().find(|l| l.split(' ').nth(1) == Some(at)).unwrap_or_else(|| panic!("{at}: {mounts}"));
            line.split(' ').nth(3).unwrap().split(',').map(str::to_owned).collect()
        };
        assert!(options("/").contains(&"ro".to_owned()), "the share itself is not the guest's to write to");
        assert!(options("/late/rootfs").contains(&"rw".to_owned()));
        assert!(options("/late/mounts/0").contains(&"ro".to_owned()), "read-only from the first moment");
        assert!(status.contains("CapPrm:\t00000000880000db\n") && status.contains("NoNewPrivs:\t1"), "{status}");
        assert!(status.starts_with("Name:\tvirtiofsd\n"), "{status}");
        while !fs::read_to_string(format!("/proc/{pid}/status")).unwrap().contains("Seccomp:\t2") {
            assert!(Instant::now() < until, "{status}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for ns in ["mnt", "pid", "net", "ipc"] {
            let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{ns}")).unwrap();
            assert_ne!(of(&pid.to_string()), of("self"), "{ns}");
        }

        // It ends when its connection does.
        let connection = daemon.connect().unwrap();
        assert!(daemon.connect().is_err());
        drop(connection);
        let mut exited = daemon.exited();
        let exit = tokio::time::timeout(Duration::from_secs(5), exited.wait_for(Option::is_some)).await;
        let exit = exit.unwrap().unwrap().clone().unwrap();
        assert_eq!(exit.code, Some(0), "{exit}");
        drop(daemon);

        let mut daemon = FsDaemon::start(&share, &dirs.run(), &[], false).await.unwrap();
        daemon.stop().await;
        assert!(daemon.exited().borrow().as_ref().unwrap().expected);
        share.remove_all().unwrap();
    });
}

fn a_guest_uses_the_share() {
    let Some(guest) = Guest::find() else { return };
    let dirs = Dirs::new();
    let rootfs = dirs.make("rootfs", &[("hello", "from the host\n")]);
    fs::create_dir(rootfs.join("dir")).unwrap();
    let upper = overlay(&dirs, &rootfs.display().to_string());
    let file = dirs.make("volume", &[("single", "one file\n")]).join("single");
    block_on(async {
        let mut share = Share::create(&dirs.run()).unwrap();
        share.add_rootfs(&cid("c1"), &[upper], Path::new("/nonexistent"), false).unwrap();
        let begin = Instant::now();
        let daemon = FsDaemon::start(&share, &dirs.run(), &[], false).await.unwrap();
        let qemu = Qemu::new(QemuConfig { accel: Some(Accel::Tcg), ..QemuConfig::default() }).unwrap();
        let mut vm = qemu.launch(guest.spec(&dirs.run()), Instant::now() + BOOT).await.unwrap();
        vm.resume().await.unwrap();
        let mut shell = Shell::connect(&*vm, BOOT).await;
        println!("  the guest answers after {:?}", begin.elapsed());

        let id = DeviceId("share".to_owned());
        let begin = Instant::now();
        let socket = daemon.connect().unwrap();
        let device = Device::VhostUserFs { id: id.clone(), tag: kata_types::SHARE_TAG.to_owned(), socket };
        let at = vm.attach(device).await.unwrap_or_else(|e| panic!("{e}: {:?}", daemon.log_tail()));
        assert_eq!(at, GuestAddr::FsTag("kataShared".to_owned()));
        println!("  plugged after {:?}", begin.elapsed());
        shell.until_ok("mount -t virtiofs kataShared /mnt", BOOT);
        println!("  mounted after {:?}", begin.elapsed());

        assert_eq!(shell.ok("cat /mnt/c1/rootfs/hello"), "from the host\n");
        shell.ok("echo changed > /mnt/c1/rootfs/hello");
        assert_eq!(fs::read_to_string(dirs.src("upper/hello")).unwrap(), "changed\n");
        assert_eq!(fs::read_to_string(rootfs.join("hello")).unwrap(), "from the host\n");
        // Owners, modes, links and nodes as a container makes them.
        shell.ok("cd /mnt/c1/rootfs && mkdir d && touch d/f && chown 1234:5678 d/f && chmod 4755 d/f && cd /");
        let meta = fs::metadata(dirs.src("upper/d/f")).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (1234, 5678, 0o4755));
        shell.ok("cd /mnt/c1/rootfs && ln -s hello link && ln hello hard && mknod null c 1 3 && mkfifo fifo && cd /");
        assert_eq!(fs::metadata(dirs.src("upper/null")).unwrap().rdev(), 0x103);
        assert_eq!(shell.ok("cat /mnt/c1/rootfs/link"), "changed\n");
        shell.ok("cd /mnt/c1/rootfs && mv d/f moved && rm -r d && cd /");
        assert!(dirs.src("upper/moved").exists());

        // What is added later appears; a read-only volume is that.
        let path = share.add_bind(&cid("c1"), &file, true, true).unwrap();
        let path = path.replace(kata_types::GUEST_SHARE_DIR, "/mnt");
        assert_eq!(shell.ok(&format!("cat {path}")), "one file\n");
        let (said, status) = shell.run(&format!("echo x > {path}"));
        assert!(status != 0 && said.contains("Read-only"), "{status} {said}");
        // The share itself is not the guest's to fill.
        let (said, status) = shell.run("mkdir /mnt/x");
        assert!(status != 0 && said.contains("Read-only"), "{status} {said}");
        assert!(!share.dir().join("x").exists());
        // Two mounts are two devices: files with the same inode number are not mixed up.
        let devices = shell.ok("stat -c %d /mnt /mnt/c1/rootfs");
        let devices: Vec<&str> = devices.lines().collect();
        assert_ne!(devices[0], devices[1]);

        let begin = Instant::now();
        let sum =
            shell.ok("dd if=/dev/zero of=/mnt/c1/rootfs/big bs=1M count=64 2>/dev/null && md5sum < /mnt/c1/rootfs/big");
        println!("  64 MiB written and read in {:?}", begin.elapsed());
        assert!(sum.starts_with("7f614da9329cd3aebf59b91aadc30bf0"), "{sum}");
        assert_eq!(fs::metadata(dirs.src("upper/big")).unwrap().len(), 64 << 20);

        // A container goes while others stay.
        share.add_rootfs(&cid("c2"), &[], &rootfs, false).unwrap();
        shell.ok("ls /mnt/c2/rootfs/hello");
        share.remove_container(&cid("c2")).unwrap();
        shell.until_ok("test ! -e /mnt/c2/rootfs/hello", Duration::from_secs(10));

        shell.ok("umount /mnt/c1/rootfs; umount /mnt/c1/mounts/* 2>/dev/null; umount /mnt");
        vm.detach(&id).await.unwrap();
        let mut exited = daemon.exited();
        let exit = tokio::time::timeout(Duration::from_secs(5), exited.wait_for(Option::is_some)).await;
        let exit = exit.unwrap().unwrap().clone().unwrap();
        assert_eq!(exit.code, Some(0), "{exit}");

        // A daemon that dies does not take the VM with it, and another can be plugged.
        let mut daemon = FsDaemon::start(&share, &dirs.run(), &[], true).await.unwrap();
        let socket = daemon.connect().unwrap();
        let tag = kata_types::SHARE_TAG.to_owned();
        vm.attach(Device::VhostUserFs { id: id.clone(), tag, socket }).await.unwrap();
        shell.until_ok("mount -t virtiofs kataShared /mnt", BOOT);
        daemon.stop().await;
        assert_eq!(*vm.exited().borrow(), None);
        vm.stop(Stop::Quit, soon()).await;
        share.remove_all().unwrap();
    });
}
