//! The agent under test, and what containers in it are made of.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio as ProcessStdio};
use std::sync::atomic::{AtomicBool, Ordering};

use kata_proto::agent as pb;
use kata_proto::oci;
use ttrpc::context::Context;

use crate::host::{Host, Place};

pub const ROOTFS: &str = "/run/kata-containers/test/rootfs";

/// The Ethernet addresses of the two cards of these tests.
pub const MACS: [&str; 2] = ["02:00:00:00:00:0a", "02:00:00:00:00:0b"];

/// Whether the agent under test is PID 1 of a machine.
pub static IN_A_MACHINE: AtomicBool = AtomicBool::new(false);

/// The agent in a process of its own, as the first of a pid namespace, or in a machine; killed on drop.
pub struct Guest {
    process: Child,
    /// A vsock device in a process of its own.
    device: Option<Child>,
    pub place: Place,
    /// Where an agent that is a process finds what stands for its virtio-fs share.
    pub share: PathBuf,
    /// The size of the file of an agent that is in a machine.
    pub agent_kib: Option<u64>,
    _dir: tempfile::TempDir,
}

impl Guest {
    pub fn process() -> Guest {
        let dir = tempfile::tempdir().unwrap();
        let share = dir.path().join("share");
        std::fs::create_dir(&share).unwrap();
        let socket = dir.path().join("agent.sock");
        let process = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .arg(std::env::current_exe().unwrap())
            .args(["agent-under-test", "--serial-unix"])
            .arg(&socket)
            .arg("--share")
            .arg(&share)
            .stdin(ProcessStdio::null())
            .spawn()
            .unwrap();
        Guest { process, device: None, place: Place::Serial(socket), share, agent_kib: None, _dir: dir }
    }

    /// The number of the agent that is a process, here; its parent is the program that made its namespaces.
    pub fn agent_pid(&self) -> String {
        let parent = self.process.id();
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
        children.trim().to_owned()
    }

    /// In a virtual machine with the kernel and the initrd of the installation that `KATA_STAGE` names; or why not.
    /// It is met at its serial port, or `by_vsock`: there the device is a program of its own, which needs nothing of
    /// the host's kernel, and which `KATA_VSOCK_DEVICE` names.
    pub fn machine(by_vsock: bool) -> Result<Guest, String> {
        let arch = std::env::consts::ARCH;
        let (machine, console) = match arch {
            "x86_64" => ("q35", "ttyS0"),
            "aarch64" => ("virt", "ttyAMA0"),
            other => return Err(format!("these tests know no machine of the architecture {other}")),
        };
        let stage = std::env::var_os("KATA_STAGE").ok_or("KATA_STAGE names no installation with a guest")?;
        let guest = PathBuf::from(stage).join("share/kata-containers");
        let dir = tempfile::tempdir().unwrap();
        let (socket, share) = (dir.path().join("agent.sock"), dir.path().join("share"));
        let mut device = None;
        let mut command = Command::new(format!("/usr/bin/qemu-system-{arch}"));
        if by_vsock {
            let program = std::env::var_os("KATA_VSOCK_DEVICE").ok_or("KATA_VSOCK_DEVICE names no vsock device")?;
            let control = dir.path().join("device.sock");
            let vm = format!("guest-cid=3,uds-path={},socket={}", socket.display(), control.display());
            let child = Command::new(program).args(["--vm", &vm]).stdin(ProcessStdio::null()).spawn();
            device = Some(child.map_err(|e| format!("the vsock device cannot be started: {e}"))?);
            while !control.exists() {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            command.args(["-chardev", &format!("socket,id=vsock,path={}", control.display())]);
            command.args(["-device", "vhost-user-vsock-pci,chardev=vsock"]);
        } else {
            command.args(["-chardev", &format!("socket,id=agent,server=on,wait=off,path={}", socket.display())]);
            command.args(["-device", "virtio-serial-pci", "-device"]);
            command.arg("virtserialport,chardev=agent,name=agent.channel.0");
        }
        let process = command
            .args(["-machine", &format!("{machine},memory-backend=ram"), "-accel", "tcg", "-cpu", "max", "-smp", "2"])
            .args(["-m", "256", "-object", "memory-backend-memfd,id=ram,size=256M,share=on"])
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
            .args(["-serial", "stdio"])
            .args(["-netdev", "hubport,hubid=0,id=one", "-netdev", "hubport,hubid=0,id=two"])
            .args(["-device", &format!("virtio-net-pci,netdev=one,addr=0a,mac={}", MACS[0])])
            .args(["-device", &format!("virtio-net-pci,netdev=two,addr=0b,mac={}", MACS[1])])
            .arg("-kernel")
            .arg(guest.join("vmlinux.elf"))
            .arg("-initrd")
            .arg(guest.join("kata-containers-initrd.img"))
            .args(["-append", &format!("console={console} quiet panic=-1 maxcpus=1 cgroup_no_v1=all")])
            .stdin(ProcessStdio::null())
            .spawn()
            .map_err(|e| format!("QEMU cannot be started: {e}"))?;
        IN_A_MACHINE.store(true, Ordering::Relaxed);
        let agent_kib =
            std::fs::metadata(guest.join("agent")).map_err(|e| format!("the stage's agent: {e}"))?.len() >> 10;
        let place = if by_vsock { Place::Vsock(socket) } else { Place::Serial(socket) };
        Ok(Guest { process, device, place, share, agent_kib: Some(agent_kib), _dir: dir })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        for process in [Some(&mut self.process), self.device.as_mut()].into_iter().flatten() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Puts busybox into the guest; all containers of the tests share it.
pub async fn make_rootfs(host: &Host) {
    let busybox = std::fs::read("/bin/busybox").expect("busybox is installed");
    let size = busybox.len() as i64;
    let mut offset = 0;
    for piece in busybox.chunks(1 << 20) {
        let request = pb::CopyFileRequest {
            path: format!("{ROOTFS}/bin/busybox"),
            file_size: size,
            file_mode: 0o100_755,
            dir_mode: 0o755,
            offset,
            data: piece.to_vec(),
            ..Default::default()
        };
        host.agent.copy_file(Context::default(), &request).await.unwrap();
        offset += piece.len() as i64;
    }
    for name in ["sh", "cat", "echo", "sleep", "true", "stty", "yes", "head", "id", "hostname"] {
        let request = pb::CopyFileRequest {
            path: format!("{ROOTFS}/bin/{name}"),
            file_mode: 0o120_777,
            data: b"busybox".to_vec(),
            ..Default::default()
        };
        host.agent.copy_file(Context::default(), &request).await.unwrap();
    }
    for name in ["proc", "dev", "sys", "etc", "tmp"] {
        let request =
            pb::CopyFileRequest { path: format!("{ROOTFS}/{name}"), file_mode: 0o040_755, ..Default::default() };
        host.agent.copy_file(Context::default(), &request).await.unwrap();
    }
}

pub fn process(args: &[&str], terminal: bool) -> oci::Process {
    oci::Process {
        Terminal: terminal,
        Args: args.iter().map(|a| (*a).to_owned()).collect(),
        Env: vec!["PATH=/bin".into()],
        Cwd: "/".into(),
        User: Some(oci::User::default()).into(),
        ..Default::default()
    }
}

fn mount(destination: &str, fstype: &str, options: &[&str]) -> oci::Mount {
    oci::Mount {
        destination: destination.into(),
        source: fstype.into(),
        type_: fstype.into(),
        options: options.iter().map(|o| (*o).to_owned()).collect(),
        ..Default::default()
    }
}

pub fn spec(id: &str, process: oci::Process) -> oci::Spec {
    let namespace = |kind: &str| oci::LinuxNamespace { Type: kind.into(), ..Default::default() };
    let linux = oci::Linux {
        CgroupsPath: format!("/kata-test-{}/{id}", std::process::id()),
        Namespaces: ["pid", "mount", "ipc", "uts"].iter().map(|k| namespace(k)).collect(),
        ..Default::default()
    };
    oci::Spec {
        Version: "1.0.2".into(),
        Process: Some(process).into(),
        Root: Some(oci::Root { Path: ROOTFS.into(), Readonly: true, ..Default::default() }).into(),
        Hostname: "inside".into(),
        Mounts: vec![
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "mode=755"]),
            mount("/dev/pts", "devpts", &["newinstance", "ptmxmode=0666", "mode=0620"]),
            mount("/tmp", "tmpfs", &[]),
        ],
        Linux: Some(linux).into(),
        ..Default::default()
    }
}

/// Whether the tests can run here at all.
pub fn possible() -> Result<(), &'static str> {
    if !rustix::process::getuid().is_root() {
        return Err("it needs root");
    }
    if !Path::new("/bin/busybox").exists() {
        return Err("/bin/busybox is missing");
    }
    Ok(())
}
