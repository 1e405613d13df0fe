//! The agent under test, and what containers in it are made of.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio as ProcessStdio};

use kata_proto::agent as pb;
use kata_proto::oci;
use ttrpc::context::Context;

use crate::host::Host;

pub const ROOTFS: &str = "/run/kata-containers/test/rootfs";

/// The agent in a process of its own, as the first of a pid namespace; killed on drop.
pub struct Guest {
    process: Option<Child>,
    pub socket: PathBuf,
    /// Where the agent finds what stands for its virtio-fs share.
    pub share: PathBuf,
    _dir: tempfile::TempDir,
}

impl Guest {
    /// `KATA_TEST_AGENT_SOCKET` names an agent that runs already, for instance QEMU's socket of a guest's port.
    pub fn start() -> Guest {
        let dir = tempfile::tempdir().unwrap();
        let share = dir.path().join("share");
        std::fs::create_dir(&share).unwrap();
        if let Some(socket) = std::env::var_os("KATA_TEST_AGENT_SOCKET") {
            return Guest { process: None, socket: socket.into(), share, _dir: dir };
        }
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
        Guest { process: Some(process), socket, share, _dir: dir }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
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
