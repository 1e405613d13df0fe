//! QEMU's command line and jail. A function of the specification (and of what is fixed for a boot of the host), so that a test
//! can look at it.

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use kata_types::Mib;
use kata_vmm::spawn::{Bind, Root};
use kata_vmm::{Accel, Begin, MemorySharing, VmSpec, host_tsc_khz};

use crate::machine::Machine;

/// The descriptors that QEMU finds open.
pub(crate) const QMP_FD: RawFd = 10;
/// The listening socket of the agent's port.
pub(crate) const AGENT_FD: RawFd = 11;
/// The serial console.
pub(crate) const CONSOLE_FD: RawFd = 12;
/// The memory it boots with.
pub(crate) const MEMORY_FD: RawFd = 13;

/// The buffer for translated code. QEMU's own default takes up to a gigabyte as the guest runs. One that is too small for
/// what the guest does over and over is thrown away as often, which costs 0.1 s each time (docs/decisions/0004). A
/// restored guest has not filled it with its boot, and must not come to the end of it in its first container (0006).
const BUFFER_OF_BOOTED: Mib = Mib(24);
const BUFFER_OF_RESTORED: Mib = Mib(40);

/// How many PCI Express root ports there are: each takes one hot-plugged device, and costs boot time.
pub(crate) const ROOT_PORTS: usize = 8;
/// The slot of the first root port on the root bus.
const FIRST_SLOT: usize = 2;
/// The slot of the balloon, after the root ports.
const BALLOON_SLOT: usize = FIRST_SLOT + ROOT_PORTS;
/// The slot of the controller with the agent's port.
const SERIAL_SLOT: usize = 1;

/// Where kernel and initrd are in QEMU's root.
const KERNEL: &str = "/kernel";
const INITRD: &str = "/initrd";

/// The name of the root port with this index.
pub(crate) fn port(index: usize) -> String {
    format!("rp{}", index + 1)
}

/// The PCI path of the device behind the root port with this index.
pub(crate) fn port_path(index: usize) -> String {
    format!("{:02x}/00", FIRST_SLOT + index)
}

/// Where the firmware of our own build is (`packaging/qemu`), if `binary` is one by where it is installed.
fn own_data(binary: &Path) -> Option<PathBuf> {
    let dir = binary.parent().filter(|dir| dir.ends_with("libexec/kata-containers"))?;
    Some(dir.parent()?.parent()?.join("share/kata-containers/qemu"))
}

/// Where the binary's own firmware is, and that of the distribution.
fn firmware_dirs(binary: &Path) -> Vec<PathBuf> {
    if let Some(data) = own_data(binary) {
        return vec![data];
    }
    let own = binary.parent().and_then(Path::parent).map(|prefix| prefix.join("share/qemu"));
    own.into_iter().chain([PathBuf::from("/usr/share/qemu")]).collect()
}

/// The file of a firmware, for its content.
pub(crate) fn firmware_file(binary: &Path, name: &str) -> Option<PathBuf> {
    firmware_dirs(binary).into_iter().map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// The machine's quick firmware, if it is installed for this binary.
pub(crate) fn firmware(binary: &Path, machine: &Machine) -> Option<&'static str> {
    machine.quick_firmware.filter(|name| firmware_file(binary, name).is_some())
}

/// All the arguments.
pub(crate) fn arguments(spec: &VmSpec, machine: &Machine, accel: Accel, firmware: Option<&str>) -> Vec<String> {
    let mut args = vec!["-name".to_owned(), format!("kata-{}", spec.sandbox)];
    args.extend(shape(spec, machine, accel, firmware));
    let mut add = |words: &[&str]| args.extend(words.iter().map(|&w| w.to_owned()));
    // Shared, because the file daemon reads and writes the guest's buffers; a memfd, because nothing writes it back.
    // Ours, so that a template can be written to it while QEMU starts, and read from it.
    let share = match &spec.begin {
        Begin::Restore(from) if from.sharing == MemorySharing::CopyOnWrite => "off",
        _ => "on",
    };
    match accel {
        Accel::Tcg => {
            let buffer = match spec.begin {
                Begin::Boot => BUFFER_OF_BOOTED,
                Begin::Restore(_) => BUFFER_OF_RESTORED,
            };
            add(&["-accel", &format!("tcg,thread=multi,tb-size={}", buffer.0)]);
        }
        Accel::Kvm => add(&["-accel", "kvm"]),
    }
    let size = spec.memory.0;
    add(&[
        "-object",
        &format!("memory-backend-file,id=ram,size={size}M,mem-path=/proc/self/fd/{MEMORY_FD},share={share}"),
    ]);
    match &spec.begin {
        Begin::Boot => {
            add(&["-kernel", KERNEL, "-initrd", INITRD]);
            add(&["-append", &boot_params(spec, machine, accel)]);
        }
        // What it booted is in its memory.
        Begin::Restore(_) => add(&["-incoming", "defer"]),
    }
    args
}

fn boot_params(spec: &VmSpec, machine: &Machine, accel: Accel) -> String {
    let tsc_khz = (accel == Accel::Tcg).then(host_tsc_khz).flatten();
    machine.kernel_params(accel, spec.debug, tsc_khz, &spec.boot.params)
}

/// What must be alike where a VM was saved and where it is restored, as text: the machine, and what the guest was told.
pub(crate) fn shape_text(spec: &VmSpec, machine: &Machine, accel: Accel, firmware: Option<&str>) -> String {
    let mut words = shape(spec, machine, accel, firmware);
    words.push(boot_params(spec, machine, accel));
    words.join("\n")
}

/// The arguments that make the machine.
fn shape(spec: &VmSpec, machine: &Machine, accel: Accel, firmware: Option<&str>) -> Vec<String> {
    let mut args = Vec::new();
    let mut add = |words: &[&str]| args.extend(words.iter().map(|&w| w.to_owned()));
    add(&["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    add(&["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
    let options = if machine.options.is_empty() { String::new() } else { format!(",{}", machine.options) };
    add(&["-machine", &format!("{}{options},memory-backend=ram", machine.name)]);
    match accel {
        Accel::Tcg => add(&["-cpu", machine.tcg_cpu]),
        Accel::Kvm => add(&["-cpu", "host"]),
    }
    let boot_cpus = match accel {
        // No hot-plug of CPUs under TCG: all are there, and the agent onlines them.
        Accel::Tcg => spec.max_vcpus,
        Accel::Kvm => spec.vcpus,
    };
    add(&["-smp", &format!("cpus={boot_cpus},maxcpus={0},sockets=1,cores={0},threads=1", spec.max_vcpus)]);
    if spec.max_memory > spec.memory {
        add(&["-m", &format!("size={}M,slots=1,maxmem={}M", spec.memory.0, spec.max_memory.0)]);
    } else {
        add(&["-m", &format!("size={}M", spec.memory.0)]);
    }
    if let Some(firmware) = firmware {
        add(&["-bios", firmware]);
    }
    // Stopped at first: a device that is plugged while the guest looks at its buses can be half seen, and lost.
    add(&["-S"]);
    add(&["-chardev", &format!("socket,id=qmp,fd={QMP_FD}"), "-mon", "chardev=qmp,mode=control"]);
    add(&["-chardev", &format!("socket,id=console,fd={CONSOLE_FD}"), "-serial", "chardev:console"]);
    add(&["-chardev", &format!("socket,id=agent,fd={AGENT_FD},server=on,wait=off")]);
    add(&[
        "-device",
        &format!("virtio-serial-pci,id=serial,max_ports=2,bus=pcie.0,addr={SERIAL_SLOT:#x},disable-legacy=on"),
    ]);
    add(&["-device", &format!("virtserialport,bus=serial.0,chardev=agent,name={}", kata_types::AGENT_SERIAL_PORT)]);
    if spec.free_page_reporting {
        // Nothing is ever inflated: it is there for what the guest reports of itself.
        add(&[
            "-device",
            &format!("virtio-balloon-pci,id=balloon,bus=pcie.0,addr={BALLOON_SLOT:#x},free-page-reporting=on"),
        ]);
    }
    for index in 0..ROOT_PORTS {
        let slot = FIRST_SLOT + index;
        add(&["-device", &format!("pcie-root-port,id={},bus=pcie.0,addr={slot:#x},chassis={slot}", port(index))]);
    }
    args
}

/// What a binary needs to start: for our own, which is static, its firmware; else libraries, and the distribution's.
fn needs_of(binary: &Path) -> Vec<Bind> {
    if let Some(data) = own_data(binary) {
        return vec![Bind::same(data)];
    }
    let mut binds: Vec<Bind> =
        ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/usr/share/seabios"]
            .map(Bind::same)
            .into();
    binds.push(Bind::same("/usr/share/qemu"));
    // A QEMU installed elsewhere brings its firmware and perhaps its libraries.
    if let Some(prefix) = binary.parent().and_then(Path::parent)
        && prefix != Path::new("/usr")
        && prefix != Path::new("/")
    {
        for dir in ["share/qemu", "share/qemu-firmware", "share/seabios", "lib", "lib64"] {
            let bind = Bind::same(prefix.join(dir));
            if !binds.contains(&bind) {
                binds.push(bind);
            }
        }
    }
    binds
}

/// What QEMU sees: its own binary with libraries and firmware, and what it boots; all read-only.
pub(crate) fn root(spec: &VmSpec, binary: &Path, machine: &Machine, accel: Accel) -> Root {
    let mut binds = needs_of(binary);
    binds.push(Bind::at(binary, binary));
    if matches!(spec.begin, Begin::Boot) {
        binds.push(Bind::at(&spec.boot.kernel, KERNEL));
        binds.push(Bind::at(&spec.boot.initrd, INITRD));
    }
    let mut devices: Vec<_> = machine.devices.iter().map(Into::into).collect();
    if accel == Accel::Kvm {
        devices.push("/dev/kvm".into());
    }
    // Its memory is opened by the path of a descriptor.
    Root { binds, devices, proc: true }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kata_types::SandboxId;
    use kata_vmm::Boot;

    fn spec() -> VmSpec {
        VmSpec {
            sandbox: SandboxId::new("s1").unwrap(),
            run_dir: "/run/kata/s1".into(),
            binary: "/usr/bin/qemu-system-x86_64".into(),
            boot: Boot { kernel: "/k".into(), initrd: "/i".into(), params: vec!["x=y".to_owned()] },
            memory: Mib(128),
            max_memory: Mib(1024),
            vcpus: 1,
            max_vcpus: 4,
            debug: false,
            cgroups: vec![],
            free_page_reporting: true,
            begin: Begin::Boot,
        }
    }

    fn line(accel: Accel) -> String {
        arguments(&spec(), Machine::find("x86_64", "q35").unwrap(), accel, Some("qboot.rom")).join(" ")
    }

    #[test]
    fn tcg_has_all_cpus_at_boot_and_kvm_has_not() {
        let tcg = line(Accel::Tcg);
        assert!(tcg.contains("-accel tcg,thread=multi,tb-size=24 ") && tcg.contains("-cpu max"), "{tcg}");
        assert!(tcg.contains("cpus=4,maxcpus=4"), "{tcg}");
        let kvm = line(Accel::Kvm);
        assert!(kvm.contains("-accel kvm ") && kvm.contains("-cpu host") && kvm.contains("cpus=1,maxcpus=4"), "{kvm}");
    }

    #[test]
    fn nothing_on_the_command_line_needs_a_path_of_the_hosts() {
        let all = line(Accel::Tcg);
        assert!(all.contains("-kernel /kernel -initrd /initrd"), "{all}");
        assert!(!all.contains("/run/"), "{all}");
    }

    #[test]
    fn eight_ports_with_the_paths_that_the_guest_sees() {
        assert_eq!(line(Accel::Tcg).matches("pcie-root-port").count(), 8);
        assert_eq!((port(0).as_str(), port_path(0).as_str()), ("rp1", "02/00"));
        assert_eq!((port(7).as_str(), port_path(7).as_str()), ("rp8", "09/00"));
    }

    #[test]
    fn memory_that_cannot_grow_has_no_slots() {
        let mut fixed = spec();
        fixed.max_memory = fixed.memory;
        let args = arguments(&fixed, Machine::find("x86_64", "").unwrap(), Accel::Tcg, None).join(" ");
        assert!(args.contains("-m size=128M -S") && !args.contains("slots"), "{args}");
        assert!(!args.contains("-bios"), "{args}");
    }

    #[test]
    fn a_restored_guest_boots_nothing_and_is_of_the_same_shape() {
        let machine = Machine::find("x86_64", "").unwrap();
        let boots = spec();
        let mut restored = spec();
        restored.sandbox = SandboxId::new("s2").unwrap();
        let file = || std::fs::File::open("/dev/null").unwrap();
        let sharing = MemorySharing::CopyOnWrite;
        restored.begin = Begin::Restore(kata_vmm::Snapshot { state: file(), memory: file(), sharing });
        let args = arguments(&restored, machine, Accel::Tcg, None).join(" ");
        assert!(args.contains("tb-size=40 "), "{args}");
        assert!(args.contains("share=off -incoming defer") && !args.contains("-kernel"), "{args}");
        assert!(
            !root(&restored, Path::new("/usr/bin/q"), machine, Accel::Tcg)
                .binds
                .iter()
                .any(|b| b.source == Path::new("/k"))
        );
        let text = |spec: &VmSpec| shape_text(spec, machine, Accel::Tcg, None);
        assert_eq!(text(&boots), text(&restored));
        restored.boot.params.clear();
        assert_ne!(text(&boots), text(&restored));
    }

    #[test]
    fn our_own_build_sees_no_library_and_finds_its_firmware_beside_it() {
        let machine = Machine::find("x86_64", "").unwrap();
        let binary = Path::new("/opt/k/libexec/kata-containers/qemu-system-x86_64");
        assert_eq!(firmware_dirs(binary), [Path::new("/opt/k/share/kata-containers/qemu")]);
        let root = root(&spec(), binary, machine, Accel::Tcg);
        assert!(root.binds.contains(&Bind::same("/opt/k/share/kata-containers/qemu")));
        assert!(root.binds.iter().all(|bind| !bind.target.to_string_lossy().contains("lib/")), "{:?}", root.binds);
        assert_eq!(root.binds.len(), 4, "firmware, binary, kernel and initrd: {:?}", root.binds);
    }

    #[test]
    fn the_root_holds_a_foreign_prefix_and_kvm_only_when_used() {
        let machine = Machine::find("x86_64", "").unwrap();
        let root = root(&spec(), Path::new("/opt/q/bin/qemu"), machine, Accel::Kvm);
        assert!(root.binds.contains(&Bind::same("/opt/q/share/qemu")));
        assert!(root.binds.contains(&Bind::at("/opt/q/bin/qemu", "/opt/q/bin/qemu")));
        assert!(root.devices.contains(&"/dev/kvm".into()));
        let root = super::root(&spec(), Path::new("/usr/bin/qemu"), machine, Accel::Tcg);
        assert!(!root.devices.contains(&"/dev/kvm".into()));
    }
}
