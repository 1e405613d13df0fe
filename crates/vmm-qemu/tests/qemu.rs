//! The driver against the distribution's QEMU or `$KATA_TEST_QEMU`, always with TCG.

#[path = "common/guest.rs"]
mod guest;

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use guest::{Guest, Shell};
use kata_testkit::harness::{self, block_on};
use kata_types::{MacAddr, Mib};
use kata_vmm::{
    Accel, Begin, Device, DeviceError, DeviceId, GuestAddr, LaunchError, MemorySharing, NicQueue, ResizeError,
    Resources, Snapshot, Stop, Vm, VmSpec, Vmm,
};
use kata_vmm_qemu::{Qemu, QemuConfig, cleanup};

/// How long a guest may take to boot: a second on an idle machine.
const BOOT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|a| a == "spawn") {
        return kata_vmm::spawn::helper_main(args[1..].to_vec());
    }
    harness::run(
        &args,
        &[
            ("boots_and_answers_on_the_agents_port", boots_and_answers_on_the_agents_port),
            ("qemu_is_jailed", qemu_is_jailed),
            ("a_guest_that_panics_is_told_with_its_console", a_guest_that_panics_is_told_with_its_console),
            ("is_killed_with_nothing_left", is_killed_with_nothing_left),
            ("what_a_crash_left_is_cleaned_up", what_a_crash_left_is_cleaned_up),
            ("pauses_and_resumes", pauses_and_resumes),
            ("disks_come_and_go", disks_come_and_go),
            ("many_disks_fit", many_disks_fit),
            ("network_cards_come_and_go", network_cards_come_and_go),
            ("devices_plugged_before_it_runs_are_found", devices_plugged_before_it_runs_are_found),
            ("memory_grows_and_shrinks", memory_grows_and_shrinks),
            ("what_the_guest_frees_goes_back_to_the_host", what_the_guest_frees_goes_back_to_the_host),
            ("cpus_are_all_present", cpus_are_all_present),
            ("a_saved_guest_goes_on_in_others", a_saved_guest_goes_on_in_others),
            ("a_damaged_snapshot_is_an_error", a_damaged_snapshot_is_an_error),
            ("a_launch_that_cannot_work_names_the_reason", a_launch_that_cannot_work_names_the_reason),
        ],
        Duration::from_secs(150),
    )
}

fn driver() -> Qemu {
    Qemu::new(QemuConfig { accel: Some(Accel::Tcg), ..QemuConfig::default() }).unwrap()
}

async fn launch(spec: VmSpec) -> Box<dyn Vm> {
    let begin = Instant::now();
    let vm = driver().launch(spec, Instant::now() + BOOT).await.unwrap_or_else(|e| panic!("{e}: {e:?}"));
    println!("  QEMU answers after {:?}", begin.elapsed());
    vm
}

/// With the guest running.
async fn boot(spec: VmSpec) -> Box<dyn Vm> {
    let mut vm = launch(spec).await;
    vm.resume().await.unwrap();
    vm
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

/// Runs `test` with a guest that answers.
fn with_guest(change: impl FnOnce(&mut VmSpec), test: impl AsyncFnOnce(&mut Box<dyn Vm>, Shell)) {
    let Some(guest) = Guest::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut spec = guest.spec(dir.path());
    change(&mut spec);
    block_on(async {
        let begin = Instant::now();
        let mut vm = boot(spec).await;
        let shell = connect(&*vm).await;
        println!("  the guest answers after {:?}", begin.elapsed());
        test(&mut vm, shell).await;
        let exit = vm.stop(Stop::Quit, soon()).await;
        assert_eq!((exit.code, exit.expected), (Some(0), true), "{exit}");
    });
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "something is left in the run directory");
}

async fn connect(vm: &dyn Vm) -> Shell {
    Shell::connect(vm, BOOT).await
}

fn gone(pid: i32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

fn boots_and_answers_on_the_agents_port() {
    with_guest(
        |spec| spec.boot.params.push("test.mine=1".to_owned()),
        async |vm, mut shell| {
            let params = shell.ok("cat /proc/cmdline");
            for param in ["console=ttyS0", "panic=-1", "cgroup_no_v1=all", "agent.log=info", "test.mine=1"] {
                assert!(params.contains(param), "{params}");
            }
            println!("  {} up {}", shell.ok("uname -r").trim(), shell.ok("cat /proc/uptime").trim());
            // The runtime reads the console only now.
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert!(vm.console().tail().iter().any(|l| l == "hello from init"), "{:?}", vm.console().tail());
            assert_eq!(
                shell.ok("ls /sys/bus/pci/devices | wc -l").trim(),
                "12",
                "bridges, one controller, one balloon"
            );
        },
    );
}

fn qemu_is_jailed() {
    with_guest(
        |_| {},
        async |vm, _shell| {
            let pid = vm.processes().vmm;
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let line = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim().to_owned();
            let uid = vm.record().uid.unwrap();
            assert!((400_000..=465_535).contains(&uid));
            assert_eq!(line("Uid:"), format!("{uid}\t{uid}\t{uid}\t{uid}"));
            assert_eq!(line("Gid:"), format!("{uid}\t{uid}\t{uid}\t{uid}"));
            assert_eq!(line("Groups:"), "");
            for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
                assert_eq!(line(set), "0000000000000000");
            }
            assert_eq!((line("NoNewPrivs:").as_str(), line("Seccomp:").as_str()), ("1", "2"));
            for ns in ["mnt", "pid", "net", "ipc", "uts"] {
                let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{ns}")).unwrap();
                assert_ne!(of(&pid.to_string()), of("self"), "{ns}");
            }
            let mut seen: Vec<_> = std::fs::read_dir(format!("/proc/{pid}/root"))
                .unwrap()
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .collect();
            seen.sort();
            // Where its libraries are, if it needs any, and where it is itself.
            let binary = std::fs::canonicalize(guest::qemu()).unwrap();
            let own = binary.components().nth(1).unwrap().as_os_str().to_str().unwrap().to_owned();
            seen.retain(|name| !["lib", "lib64", "etc", "usr", &own].contains(&name.as_str()));
            assert_eq!(seen, ["dev", "initrd", "kernel", "proc"]);
            let processes = std::fs::read_dir(format!("/proc/{pid}/root/proc")).unwrap();
            let numbers = processes.filter(|e| e.as_ref().unwrap().file_name().as_encoded_bytes()[0].is_ascii_digit());
            assert_eq!(numbers.count(), 1, "it sees itself and nobody else");
            assert!(!Path::new(&format!("/proc/{pid}/root/proc/cmdline")).exists());
            let mounts = std::fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap();
            for mount in mounts.lines() {
                assert!(mount.split(' ').nth(3).unwrap().split(',').any(|o| o == "ro"), "{mount}");
            }
            // Two processes must not share a uid.
            let lock = Path::new(kata_types::HOST_RUN_DIR).join("uids").join(uid.to_string());
            assert!(lock.exists());
        },
    );
}

fn a_guest_that_panics_is_told_with_its_console() {
    let Some(guest) = Guest::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut spec = guest.spec(dir.path());
    spec.boot.params.push("test.panic".to_owned());
    block_on(async {
        let vm = boot(spec).await;
        let mut exited = vm.exited();
        let exit =
            tokio::time::timeout(BOOT, exited.wait_for(Option::is_some)).await.unwrap().unwrap().clone().unwrap();
        assert!(!exit.expected, "{exit}");
        let tail = vm.console().tail();
        assert!(tail.iter().any(|l| l == "going to panic"), "{tail:?}");
        assert!(tail.iter().any(|l| l.contains("Kernel panic - not syncing: Attempted to kill init")), "{tail:?}");
    });
}

fn is_killed_with_nothing_left() {
    let Some(guest) = Guest::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        // Killed by somebody.
        let mut vm = boot(guest.spec(dir.path())).await;
        let pid = vm.processes().vmm;
        let mut exited = vm.exited();
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL)
            .unwrap();
        let exit = tokio::time::timeout(Duration::from_secs(5), exited.wait_for(Option::is_some)).await;
        let exit = exit.unwrap().unwrap().clone().unwrap();
        assert_eq!((exit.signal, exit.expected), (Some(9), false));
        assert!(gone(pid));
        let e = vm.pause().await.unwrap_err();
        assert!(e.to_string().contains("killed by signal 9"), "{e}");
        // Asked to stop all the same, it says how it ended.
        assert_eq!(vm.stop(Stop::Quit, soon()).await.signal, Some(9));
        drop(vm);

        // Killed by us.
        let mut vm = boot(guest.spec(dir.path())).await;
        let exit = vm.stop(Stop::Kill, soon()).await;
        assert_eq!((exit.signal, exit.expected), (Some(9), true));

        // Dropped.
        let vm = boot(guest.spec(dir.path())).await;
        let (pid, uid) = (vm.processes().vmm, vm.record().uid.unwrap());
        drop(vm);
        assert!(gone(pid));
        assert!(!Path::new(kata_types::HOST_RUN_DIR).join("uids").join(uid.to_string()).exists());
    });
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "something is left in the run directory");
}

fn what_a_crash_left_is_cleaned_up() {
    let Some(guest) = Guest::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let vm = boot(guest.spec(dir.path())).await;
        let record = vm.record();
        let mut another = record.clone();
        another.start_time += 1;
        cleanup(&another, soon()).unwrap();
        assert!(!gone(record.pid), "a process that only has the pid was killed");
        cleanup(&record, soon()).unwrap();
        let exit = vm.exited().wait_for(Option::is_some).await.unwrap().clone().unwrap();
        assert_eq!(exit.signal, Some(9));
        cleanup(&record, soon()).unwrap();
    });
}

fn pauses_and_resumes() {
    with_guest(
        |_| {},
        async |vm, mut shell| {
            vm.pause().await.unwrap();
            let before = cpu_time(vm.processes().vmm);
            tokio::time::sleep(Duration::from_millis(300)).await;
            let used = cpu_time(vm.processes().vmm) - before;
            assert!(used <= 5, "{used} ticks while paused");
            vm.resume().await.unwrap();
            shell.ok("true");
        },
    );
}

/// User and system time of a process in ticks.
fn cpu_time(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

fn disks_come_and_go() {
    with_guest(
        |_| {},
        async |vm, mut shell| {
            let image = tempfile::tempfile().unwrap();
            image.set_len(4 << 20).unwrap();
            let id = DeviceId("disk-1".to_owned());
            let disk = |read_only| Device::Block { id: id.clone(), file: image.try_clone().unwrap().into(), read_only };
            let at = vm.attach(disk(false)).await.unwrap();
            assert_eq!(at, GuestAddr::Pci("02/00".to_owned()));
            // The address is where the guest finds it: bridge 02 of the root bus, device 00 behind it.
            shell.until_ok("ls /sys/devices/pci0000:00/0000:00:02.0/0000:*:00.0/virtio*/block/vda", BOOT);
            assert_eq!(shell.ok("cat /sys/block/vda/serial; echo"), "disk-1\n");
            shell.ok("echo written by the guest | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null");
            let mut start = [0; 20];
            std::os::unix::fs::FileExt::read_exact_at(&image, &mut start, 0).unwrap();
            assert_eq!(&start, b"written by the guest");
            let e = vm.attach(disk(false)).await.unwrap_err();
            assert!(matches!(e, DeviceError::Id { .. }), "{e}");
            vm.detach(&id).await.unwrap();
            shell.until_ok("test ! -e /sys/block/vda", BOOT);
            assert!(matches!(vm.detach(&id).await, Err(DeviceError::Id { .. })));

            // The slot is free again, and so is the name.
            assert_eq!(vm.attach(disk(true)).await.unwrap(), GuestAddr::Pci("02/00".to_owned()));
            shell.until_ok("test -e /sys/block/vda", BOOT);
            assert_eq!(shell.ok("cat /sys/block/vda/ro").trim(), "1");
        },
    );
}

/// Disks leave root ports to others: the fourth and all further ones are behind a SCSI controller.
fn many_disks_fit() {
    with_guest(
        |_| {},
        async |vm, mut shell| {
            let id = |n| DeviceId(format!("disk-{n}"));
            let mut images = Vec::new();
            for n in 1..=20 {
                let image = tempfile::tempfile().unwrap();
                image.set_len(1 << 20).unwrap();
                image.write_at(format!("content of disk {n:02}").as_bytes(), 0).unwrap();
                let file = image.try_clone().unwrap().into();
                let at = vm.attach(Device::Block { id: id(n), file, read_only: n == 20 }).await.unwrap();
                let wanted = match n {
                    1..=3 => GuestAddr::Pci(format!("{:02x}/00", n + 1)),
                    _ => GuestAddr::Scsi { target: 0, lun: n - 4 },
                };
                assert_eq!(at, wanted);
                images.push(image);
            }
            let path = |lun| format!("/sys/bus/scsi/devices/*:0:0:{lun}/block");
            for lun in [0, 9, 16] {
                let name = shell.until_ok(&format!("ls {}", path(lun)), BOOT);
                let name = name.trim();
                let said = shell.until_ok(&format!("head -c 18 /dev/{name} && echo"), BOOT);
                assert_eq!(said, format!("content of disk {:02}\n", lun + 4));
                let read_only = shell.ok(&format!("cat /sys/block/{name}/ro"));
                assert_eq!(read_only.trim() == "1", lun == 16, "{name}");
            }
            vm.detach(&id(5)).await.unwrap();
            shell.until_ok(&format!("! ls -d {}", path(1)), BOOT);
            // Its place and its name are free again; ports are left for others.
            let again = Device::Block { id: id(5), file: images[4].try_clone().unwrap().into(), read_only: false };
            assert_eq!(vm.attach(again).await.unwrap(), GuestAddr::Scsi { target: 0, lun: 1 });
            shell.until_ok(&format!("ls -d {}", path(1)), BOOT);
            let e = vm
                .attach(Device::Block { id: id(7), file: images[6].try_clone().unwrap().into(), read_only: false })
                .await
                .unwrap_err();
            assert!(matches!(e, DeviceError::Id { .. }), "{e}");
            for n in 1..=3u8 {
                let queues = tap(&format!("10.9.{n}.1/24"), 1);
                vm.attach(Device::Nic { id: DeviceId(format!("nic-{n}")), mac: MacAddr([2, 0, 0, 0, 0, n]), queues })
                    .await
                    .unwrap();
            }
            let queues = tap("10.9.4.1/24", 1);
            let card = Device::Nic { id: DeviceId("nic-4".into()), mac: MacAddr([2, 0, 0, 0, 0, 4]), queues };
            let e = vm.attach(card).await.unwrap_err();
            assert!(matches!(e, DeviceError::NoSlot(_)), "one port is kept for memory: {e}");
        },
    );
}

/// Runs `work` in a network namespace that goes with its thread and what `work` returns.
fn in_new_netns<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        inside.join().unwrap()
    })
}

/// A tap with this address on the host's side of it, in a namespace of its own; its open queues.
fn tap(address: &str, queues: usize) -> Vec<NicQueue> {
    in_new_netns(|| {
        let open = |_| NicQueue { tap: kata_sys::tun::open_queue("tap0", queues > 1).unwrap(), vhost: None };
        let all: Vec<NicQueue> = (0..queues).map(open).collect();
        for words in ["link set lo up", "link set tap0 up", &format!("addr add {address} dev tap0")] {
            let status = Command::new("ip").args(words.split(' ')).status().unwrap();
            assert!(status.success(), "ip {words}");
        }
        all
    })
}

fn network_cards_come_and_go() {
    with_guest(
        |_| {},
        async |vm, mut shell| {
            // A card's driver takes as many queues as there are CPUs when it finds the card.
            shell.until_ok("echo 1 > /sys/devices/system/cpu/cpu1/online", BOOT);
            let card = |n: u8, queues| Device::Nic {
                id: DeviceId(format!("nic-{n}")),
                mac: MacAddr([2, 0, 0, 0, 0, n]),
                queues,
            };
            assert_eq!(vm.attach(card(1, tap("10.9.1.1/24", 1))).await.unwrap(), GuestAddr::Pci("02/00".to_owned()));
            assert_eq!(vm.attach(card(2, tap("10.9.2.1/24", 2))).await.unwrap(), GuestAddr::Pci("03/00".to_owned()));
            // The guest finds a card by its address.
            for n in 1..=2 {
                let find = format!("grep -l 02:00:00:00:00:0{n} /sys/class/net/*/address");
                let path = shell.until_ok(&find, BOOT);
                let name = path.trim().trim_start_matches("/sys/class/net/").trim_end_matches("/address").to_owned();
                shell.ok(&format!("ip addr add 10.9.{n}.2/24 dev {name} && ip link set {name} up"));
                shell.until_ok(&format!("ping -c 1 -W 2 10.9.{n}.1"), BOOT);
                assert_eq!(shell.ok(&format!("ls -d /sys/class/net/{name}/queues/rx-* | wc -l")).trim(), n.to_string());
            }

            let id = DeviceId("nic-1".to_owned());
            vm.detach(&id).await.unwrap();
            shell.until_ok("! grep -l 02:00:00:00:00:01 /sys/class/net/*/address", BOOT);
            shell.ok("ping -c 1 -W 2 10.9.2.1");
            // All of it is gone: slot, name, and QEMU's end of the tap.
            assert_eq!(vm.attach(card(1, tap("10.9.1.1/24", 1))).await.unwrap(), GuestAddr::Pci("02/00".to_owned()));
            shell.until_ok("grep -l 02:00:00:00:00:01 /sys/class/net/*/address", BOOT);

            let e = vm.attach(card(3, tap("10.9.3.1/24", 3))).await.unwrap_err();
            assert!(e.to_string().contains("3 queues") && e.to_string().contains("at most 2 vCPUs"), "{e}");
            // A file that is no tap is refused, and leaves nothing: the next one has its name.
            let file = || NicQueue { tap: tempfile::tempfile().unwrap().into(), vhost: None };
            let e = vm.attach(card(3, vec![file()])).await.unwrap_err();
            assert!(matches!(e, DeviceError::Refused { .. }) && e.to_string().contains("nic-3"), "{e}");
            vm.attach(card(3, tap("10.9.3.1/24", 1))).await.unwrap();
        },
    );
}

/// Whenever in the boot a device comes: before the kernel looks for devices, while it does, afterwards.
fn devices_plugged_before_it_runs_are_found() {
    let Some(guest) = Guest::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let mut vm = launch(guest.spec(dir.path())).await;
        for n in 1..=7 {
            let file = tempfile::tempfile().unwrap();
            file.set_len(1 << 20).unwrap();
            let id = DeviceId(format!("disk-{n}"));
            vm.attach(Device::Block { id, file: file.into(), read_only: false }).await.unwrap();
        }
        assert!(vm.console().tail().is_empty(), "it does not run yet");
        vm.resume().await.unwrap();
        let mut shell = connect(&*vm).await;
        shell.until_ok("test $(ls -d /sys/block/vd? /sys/block/sd? | wc -l) = 7", BOOT);
        vm.stop(Stop::Quit, soon()).await;
    });
}

fn memory_grows_and_shrinks() {
    with_guest(
        |_| {},
        async |vm, mut shell| {
            let total = |shell: &mut Shell| -> u64 {
                shell.ok("awk '/MemTotal/{print $2}' /proc/meminfo").trim().parse::<u64>().unwrap() / 1024
            };
            let before = total(&mut shell);
            let ask = |memory| Resources { memory: Mib(memory), vcpus: 1 };
            assert_eq!(vm.resize(ask(128)).await.unwrap().memory, Mib(192), "never below the boot memory");
            let begin = Instant::now();
            assert_eq!(vm.resize(ask(513)).await.unwrap().memory, Mib(514), "in steps of 2 MiB");
            println!("  grew in {:?}", begin.elapsed());
            let grown = total(&mut shell) - before;
            assert!((316..=322).contains(&grown), "{grown} MiB more");
            assert_eq!(vm.resize(ask(256)).await.unwrap().memory, Mib(256));
            shell.until_ok(
                &format!("test $(awk '/MemTotal/{{print $2}}' /proc/meminfo) -lt $((1024 * {}))", before + grown - 100),
                BOOT,
            );
            assert_eq!(vm.resize(ask(385)).await.unwrap().memory, Mib(386), "and again more");
            let e = vm.resize(ask(1025)).await.unwrap_err();
            assert!(matches!(e, ResizeError::OverMaximum { .. }), "{e}");
            assert!(e.to_string().contains("1025 MiB") && e.to_string().contains("1024 MiB"), "{e}");
        },
    );
}

/// What the host has given of the memory that a VM booted with.
fn given(pid: i32) -> Mib {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten().map(|e| e.path());
    let ours = |path: &std::path::PathBuf| std::fs::read_link(path).unwrap().to_string_lossy().contains("kata-ram");
    let memory = fds.into_iter().find(ours).expect("QEMU holds its memory");
    Mib((std::fs::metadata(memory).unwrap().blocks() * 512) >> 20)
}

fn what_the_guest_frees_goes_back_to_the_host() {
    with_guest(
        |spec| spec.memory = Mib(384),
        async |vm, mut shell| {
            let pid = vm.processes().vmm;
            shell.ok("dd if=/dev/urandom of=/big bs=1M count=160 2>/dev/null");
            let full = given(pid);
            assert!(full > Mib(160), "{full}");
            shell.ok("rm /big");
            let deadline = Instant::now() + Duration::from_secs(30);
            while given(pid) + Mib(100) > full {
                assert!(Instant::now() < deadline, "{} of {full} are still the guest's", given(pid));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            println!("  {full} became {}", given(pid));
        },
    );
}

fn cpus_are_all_present() {
    with_guest(
        |spec| spec.max_vcpus = 3,
        async |vm, mut shell| {
            assert_eq!(shell.ok("cat /sys/devices/system/cpu/online").trim(), "0");
            assert_eq!(shell.ok("cat /sys/devices/system/cpu/present").trim(), "0-2");
            let now = vm.resize(Resources { memory: Mib(128), vcpus: 2 }).await.unwrap();
            assert_eq!(now.vcpus, 2);
            let begin = Instant::now();
            shell.ok("echo 1 >/sys/devices/system/cpu/cpu1/online");
            println!("  onlined in {:?}", begin.elapsed());
            assert_eq!(shell.ok("cat /sys/devices/system/cpu/online").trim(), "0-1");
            assert!(vm.resize(Resources { memory: Mib(128), vcpus: 4 }).await.is_err());
        },
    );
}

/// A guest that was told `mark`, saved; with the shape it has.
async fn saved(guest: &Guest, dir: &Path, free_page_reporting: bool) -> (File, File, String) {
    let file = |name: &str| File::options().read(true).write(true).create(true).truncate(true).open(dir.join(name));
    let (state, memory) = (file("state").unwrap(), file("memory").unwrap());
    let spec = || VmSpec { free_page_reporting, ..guest.spec(dir) };
    let shape = driver().shape(&spec()).unwrap().unwrap();
    let mut vm = boot(spec()).await;
    let mut shell = connect(&*vm).await;
    shell.ok("echo mark > /mark");
    drop(shell);
    // As the factory does: a guest that is saved in the middle of noticing that its host has left may miss the next one.
    tokio::time::sleep(Duration::from_millis(500)).await;
    vm.save(state.try_clone().unwrap(), memory.try_clone().unwrap()).await.unwrap();
    vm.stop(Stop::Kill, soon()).await;
    let size = |file: &File| file.metadata().unwrap().blocks() / 2;
    println!("  state {} KiB, memory {} KiB", size(&state), size(&memory));
    (state, memory, shape)
}

fn restored(guest: &Guest, dir: &Path, (state, memory): (&File, &File), sharing: MemorySharing) -> VmSpec {
    let mut spec = guest.spec(dir);
    spec.free_page_reporting = sharing == MemorySharing::Copied;
    let (state, memory) = (state.try_clone().unwrap(), memory.try_clone().unwrap());
    spec.begin = Begin::Restore(Snapshot { state, memory, sharing });
    spec
}

fn a_saved_guest_goes_on_in_others() {
    let Some(guest) = Guest::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (state, memory, shape) = saved(&guest, dir.path(), true).await;
        let (private_state, private_memory, private_shape) = saved(&guest, dir.path(), false).await;
        assert_ne!(shape, private_shape);
        let sealed = kata_vmm::snapshot::memory(guest.spec(dir.path()).memory).unwrap();
        kata_vmm::snapshot::copy_sparse(&private_memory, &sealed).unwrap();
        kata_vmm::snapshot::seal(&sealed).unwrap();
        let mut before = [0; 1 << 16];
        sealed.read_exact_at(&mut before, 16 << 20).unwrap();
        let mut wrong = restored(&guest, dir.path(), (&private_state, &sealed), MemorySharing::CopyOnWrite);
        wrong.free_page_reporting = true;
        let Err(e) = driver().launch(wrong, Instant::now() + BOOT).await else {
            panic!("it would take pages from all")
        };
        assert!(matches!(e, LaunchError::Unsupported(_)), "{e}");
        for (sharing, state, memory, shape) in [
            (MemorySharing::Copied, &state, &memory, &shape),
            (MemorySharing::CopyOnWrite, &private_state, &sealed, &private_shape),
        ] {
            // Two at once: neither sees what the other writes.
            let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let spec = |dir: &tempfile::TempDir| restored(&guest, dir.path(), (state, memory), sharing);
            assert_eq!(driver().shape(&spec(&one)).unwrap().unwrap(), *shape);
            let (mut one_vm, mut two_vm) = (boot(spec(&one)).await, boot(spec(&two)).await);
            let (mut one_shell, mut two_shell) = (connect(&*one_vm).await, connect(&*two_vm).await);
            one_shell.ok("echo one > /mine");
            two_shell.ok("echo two > /mine");
            assert_eq!(one_shell.ok("cat /mark /mine"), "mark\none\n");
            assert_eq!(two_shell.ok("cat /mark /mine"), "mark\ntwo\n");
            // What is plugged afterwards works as after a boot.
            let disk = tempfile::tempfile().unwrap();
            disk.set_len(1 << 20).unwrap();
            let id = DeviceId("disk".into());
            one_vm.attach(Device::Block { id: id.clone(), file: disk.into(), read_only: false }).await.unwrap();
            one_shell.ok("i=0; while ! test -b /dev/vda; do i=$((i+1)); test $i -lt 500 || exit 1; usleep 10000; done");
            let grown = one_vm.resize(Resources { memory: Mib(512), vcpus: 1 }).await.unwrap();
            assert_eq!(grown.memory, Mib(512));
            let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
            if sharing == MemorySharing::CopyOnWrite {
                let fs = Device::VhostUserFs { id: DeviceId("fs".into()), tag: "t".into(), socket: ours.into() };
                let e = one_vm.attach(fs).await.unwrap_err();
                assert!(matches!(e, DeviceError::Unsupported(_)), "{e}");
            }
            one_vm.stop(Stop::Kill, soon()).await;
            two_vm.stop(Stop::Kill, soon()).await;
        }
        let mut after = [0; 1 << 16];
        sealed.read_exact_at(&mut after, 16 << 20).unwrap();
        assert!(before == after, "a clone has changed the template");
    });
}

fn a_damaged_snapshot_is_an_error() {
    let Some(guest) = Guest::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (state, memory, _) = saved(&guest, dir.path(), true).await;
        let cut = tempfile::tempfile().unwrap();
        (&state).rewind().unwrap();
        std::io::copy(&mut (&state).take(5000), &mut &cut).unwrap();
        let short = tempfile::tempfile().unwrap();
        short.set_len(4096).unwrap();
        for (state, memory, says) in [(&cut, &memory, "state"), (&state, &short, "memory")] {
            let run = tempfile::tempdir().unwrap();
            let spec = restored(&guest, run.path(), (state, memory), MemorySharing::Copied);
            let Err(e) = driver().launch(spec, Instant::now() + BOOT).await else { panic!("it works") };
            println!("  {e}");
            assert!(e.to_string().contains(says), "{e}");
        }
    });
}

fn a_launch_that_cannot_work_names_the_reason() {
    let Some(guest) = Guest::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let fails = async |change: &dyn Fn(&mut VmSpec)| {
            let mut spec = guest.spec(dir.path());
            change(&mut spec);
            let begin = Instant::now();
            match driver().launch(spec, soon()).await {
                Ok(_) => panic!("it started"),
                Err(e) => {
                    println!("  {e} ({:?})", begin.elapsed());
                    e
                }
            }
        };
        let e = fails(&|s| s.binary = "/no/such/qemu".into()).await;
        assert!(matches!(e, LaunchError::Input { .. }));
        let e = fails(&|s| s.memory = Mib(16)).await;
        assert!(matches!(e, LaunchError::Size(_)));
        // A program that is no QEMU.
        let e = fails(&|s| s.binary = "/bin/false".into()).await;
        assert!(matches!(&e, LaunchError::Died { exit, .. } if exit.code == Some(1)), "{e}");
        // QEMU's own words reach the message.
        let e = fails(&|s| s.max_vcpus = 100_000).await;
        assert!(matches!(&e, LaunchError::Died { exit, .. } if exit.stderr_tail.contains("CPU")), "{e}");
        // One that says nothing.
        let mut spec = guest.spec(dir.path());
        spec.binary = dir.path().join("silent");
        std::fs::write(&spec.binary, "#!/bin/sh\nwhile :; do :; done\n").unwrap();
        std::fs::set_permissions(&spec.binary, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let Err(e) = driver().launch(spec, Instant::now() + Duration::from_millis(500)).await else {
            panic!("it started")
        };
        assert!(matches!(e, LaunchError::Spawn { .. } | LaunchError::Deadline { .. }), "{e}");
        std::fs::remove_file(dir.path().join("silent")).unwrap();
    });
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "something is left in the run directory");
}
