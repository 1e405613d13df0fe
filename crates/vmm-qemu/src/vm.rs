//! A running QEMU.

mod disks;
mod nic;
mod threads;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use kata_types::Mib;
use kata_vmm::spawn::Spawned;
use kata_vmm::{
    Accel, AgentAddr, Begin, Console, Device, DeviceError, DeviceId, GuestAddr, MemorySharing, ResizeError, Resources,
    SaveError, Stop, Unsupported, Vm, VmExit, VmProcesses, VmRecord, VmSpec,
};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::command::{ROOT_PORTS, port};
use crate::qmp::{Qmp, QmpError, wait_event};
use crate::uid::UidLock;

/// How long QEMU may take over one command; a device's command may wait for the guest's CPUs to stop.
const COMMAND: Duration = Duration::from_secs(20);
/// How long the guest may take to let go of a device.
const UNPLUG: Duration = Duration::from_secs(30);
/// How long the guest may take to accept or give back memory.
const RESIZE: Duration = Duration::from_secs(5);
/// How long a killed process may take to end.
const KILL: Duration = Duration::from_secs(5);
/// The root port that is kept for the memory device.
const MEMORY_PORT: usize = ROOT_PORTS - 1;
/// virtio-mem's unit, that of a huge page on x86_64 and of 4 KiB granules on aarch64.
const MEMORY_STEP: Mib = Mib(2);

/// Removes a socket's file when dropped: in the directory where it was made, whatever that is called by then. Under its old
/// name there may be another sandbox.
#[derive(Debug)]
pub(crate) struct SocketFile {
    dir: OwnedFd,
    name: &'static str,
}

impl SocketFile {
    /// The file of this name in a directory.
    pub(crate) fn new(dir: &Path, name: &'static str) -> io::Result<SocketFile> {
        use rustix::fs::{Mode, OFlags};
        let dir = rustix::fs::open(dir, OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::PATH, Mode::empty())?;
        Ok(SocketFile { dir, name })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        match rustix::fs::unlinkat(&self.dir, self.name, rustix::fs::AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(e) => tracing::warn!("cannot remove the socket {}: {e}", self.name),
        }
    }
}

/// Reads the guest's console into a ring.
#[derive(Debug)]
pub(crate) struct ConsoleReader {
    console: Console,
    task: tokio::task::JoinHandle<()>,
}

impl ConsoleReader {
    /// Reads until the other end closes.
    pub(crate) fn start(stream: UnixStream) -> io::Result<ConsoleReader> {
        stream.set_nonblocking(true)?;
        let stream = tokio::net::UnixStream::from_std(stream)?;
        let console = Console::default();
        let into = console.clone();
        let task = tokio::spawn(async move {
            let mut bytes = [0; 4096];
            while stream.readable().await.is_ok() {
                match stream.try_read(&mut bytes) {
                    Ok(0) => return,
                    Ok(n) => into.push_and(&bytes[..n], |line| tracing::debug!(target: "guest_console", "{line}")),
                    Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                    Err(_) => return,
                }
            }
        });
        Ok(ConsoleReader { console, task })
    }
}

impl Drop for ConsoleReader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A plugged device: its root port, and what else must go when it goes.
#[derive(Debug)]
struct Plugged {
    port: usize,
    backend: Backend,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backend {
    /// A character device with the vhost-user socket.
    Chardev,
    /// A block node over a set of descriptors.
    Block { fdset: u64 },
    /// A net device over taps.
    Net,
}

/// A VM. Fields are dropped in their order: the process first, then what it used.
pub(crate) struct QemuVm {
    process: Spawned,
    pub(crate) qmp: Qmp,
    console: ConsoleReader,
    agent: AgentAddr,
    record: VmRecord,
    accel: Accel,
    /// What it booted with, or, where that is copy-on-write, the template.
    pub(crate) memory: File,
    /// No other process can take part in the guest's memory.
    private_memory: bool,
    boot_memory: Mib,
    max_memory: Mib,
    /// What the memory device was last asked to hold; none: it is not plugged yet.
    hot_memory: Option<Mib>,
    vcpus: u32,
    max_vcpus: u32,
    devices: BTreeMap<DeviceId, Plugged>,
    scsi: disks::Scsi,
    _agent_file: SocketFile,
    _uid: Option<UidLock>,
}

/// What a launch has put together.
pub(crate) struct Parts {
    pub process: Spawned,
    pub qmp: Qmp,
    pub console: ConsoleReader,
    pub agent: AgentAddr,
    pub agent_file: SocketFile,
    pub uid: Option<UidLock>,
    pub record: VmRecord,
    pub memory: File,
    pub accel: Accel,
}

impl QemuVm {
    pub(crate) fn new(parts: Parts, spec: &VmSpec) -> QemuVm {
        let Parts { process, qmp, console, agent, agent_file, uid, record, memory, accel } = parts;
        let private_memory = matches!(&spec.begin, Begin::Restore(from) if from.sharing == MemorySharing::CopyOnWrite);
        QemuVm {
            process,
            qmp,
            console,
            agent,
            record,
            accel,
            memory,
            private_memory,
            boot_memory: spec.memory,
            max_memory: spec.max_memory,
            hot_memory: None,
            vcpus: spec.vcpus,
            max_vcpus: spec.max_vcpus,
            devices: BTreeMap::new(),
            scsi: disks::Scsi::default(),
            _agent_file: agent_file,
            _uid: uid,
        }
    }

    /// A command of ours; `operation` is for the error.
    pub(crate) async fn command(
        &self,
        operation: &str,
        command: &str,
        arguments: Value,
        fd: Option<&OwnedFd>,
    ) -> Result<Value, DeviceError> {
        let deadline = Instant::now() + COMMAND;
        let fd = fd.map(AsFd::as_fd);
        self.qmp.execute(command, arguments, fd, deadline).await.map_err(|e| {
            let mut reason = e.to_string();
            if let (QmpError::Closed(_), Some(exit)) = (&e, &*self.process.exited().borrow()) {
                reason = format!("it has {exit}");
            }
            DeviceError::Refused { operation: operation.to_owned(), reason }
        })
    }

    /// A command that takes back what a failed operation did. Its own failure is only logged: the operation's counts.
    async fn undo(&self, command: &str, arguments: Value) {
        if let Err(e) = self.command("clean up", command, arguments, None).await {
            tracing::warn!("{e}");
        }
    }

    /// The first root port without a device.
    fn free_port(&self, id: &DeviceId) -> Result<usize, DeviceError> {
        if self.devices.contains_key(id) || self.scsi.has(id) {
            return Err(DeviceError::Id { id: id.0.clone(), reason: "is taken".to_owned() });
        }
        self.free_ports().next().ok_or_else(|| DeviceError::NoSlot(id.0.clone()))
    }

    fn free_ports(&self) -> impl Iterator<Item = usize> {
        let taken = |port| self.scsi.port() == Some(port) || self.devices.values().any(|d| d.port == port);
        (0..MEMORY_PORT).filter(move |port| !taken(*port))
    }

    async fn plug_fs(&mut self, id: DeviceId, tag: String, socket: OwnedFd) -> Result<GuestAddr, DeviceError> {
        if self.private_memory {
            let operation = "plug a vhost-user device into memory that is copy-on-write".to_owned();
            return Err(Unsupported { operation, by: crate::NAME.to_owned() }.into());
        }
        let index = self.free_port(&id)?;
        let operation = format!("plug the file system {}", id.0);
        let (chardev, fdname) = (format!("chr-{}", id.0), format!("fd-{}", id.0));
        self.command(&operation, "getfd", json!({ "fdname": fdname }), Some(&socket)).await?;
        let backend = json!({
            "id": chardev,
            "backend": {
                "type": "socket",
                "data": { "addr": { "type": "fd", "data": { "str": fdname } }, "server": false },
            },
        });
        if let Err(e) = self.command(&operation, "chardev-add", backend, None).await {
            self.undo("closefd", json!({ "fdname": fdname })).await;
            return Err(e);
        }
        let device = json!({
            "driver": "vhost-user-fs-pci", "id": device_name(&id), "bus": port(index), "chardev": chardev, "tag": tag,
        });
        if let Err(e) = self.command(&operation, "device_add", device, None).await {
            self.undo("chardev-remove", json!({ "id": chardev })).await;
            return Err(e);
        }
        self.devices.insert(id, Plugged { port: index, backend: Backend::Chardev });
        Ok(GuestAddr::FsTag(tag))
    }

    /// Waits until a device that was told to go has gone.
    async fn unplug(&self, id: &DeviceId) -> Result<(), DeviceError> {
        self.remove_device(&format!("unplug {}", id.0), &device_name(id), UNPLUG).await
    }

    async fn remove_device(&self, operation: &str, name: &str, limit: Duration) -> Result<(), DeviceError> {
        let mut events = self.qmp.events();
        self.command(operation, "device_del", json!({ "id": name }), None).await?;
        let gone = wait_event(&mut events, limit, |event| {
            let ours = event.data["device"] == name;
            match event.name.as_str() {
                "DEVICE_DELETED" if ours => Some(Ok(())),
                "DEVICE_UNPLUG_GUEST_ERROR" if ours => Some(Err("the guest refused")),
                _ => None,
            }
        });
        let refused =
            |reason: &str| DeviceError::Refused { operation: operation.to_owned(), reason: reason.to_owned() };
        match gone.await {
            Some(Ok(())) => Ok(()),
            Some(Err(reason)) => Err(refused(reason)),
            None => Err(refused("the guest did not let go of it in time")),
        }
    }

    /// Makes the memory device hold `wanted`. Returns what it holds when it has grown or the time for that is over; for what the
    /// guest gives back nobody waits: it does so as it can, which may take it seconds, or until somebody in it frees memory.
    async fn resize_memory(&mut self, wanted: Mib) -> Result<Mib, DeviceError> {
        let operation = "resize the memory";
        let capacity = Mib((self.max_memory - self.boot_memory).0 / MEMORY_STEP.0 * MEMORY_STEP.0);
        let wanted = wanted.round_up_to(MEMORY_STEP).min(capacity);
        match self.hot_memory {
            None if wanted.0 == 0 => return Ok(Mib(0)),
            None => {
                let backend = json!({
                    "qom-type": "memory-backend-memfd", "id": "hotram", "size": capacity.bytes(), "share": true,
                    // The host gives pages as the guest touches them; it need not have them all now.
                    "reserve": false,
                });
                self.command(operation, "object-add", backend, None).await?;
                let device = json!({
                    "driver": "virtio-mem-pci", "id": "hotmem", "bus": port(MEMORY_PORT), "memdev": "hotram",
                    "requested-size": wanted.bytes(),
                });
                if let Err(e) = self.command(operation, "device_add", device, None).await {
                    self.undo("object-del", json!({ "id": "hotram" })).await;
                    return Err(e);
                }
            }
            Some(_) => {
                let set = json!({
                    "path": "/machine/peripheral/hotmem", "property": "requested-size", "value": wanted.bytes(),
                });
                self.command(operation, "qom-set", set, None).await?;
            }
        }
        let had = self.hot_memory.replace(wanted);
        if had.is_some_and(|had| wanted < had) {
            return Ok(wanted);
        }
        let deadline = Instant::now() + RESIZE;
        loop {
            let get = json!({ "path": "/machine/peripheral/hotmem", "property": "size" });
            let size = self.command(operation, "qom-get", get, None).await?;
            let size = size.as_u64().ok_or_else(|| DeviceError::Refused {
                operation: operation.to_owned(),
                reason: format!("the size of the memory device is {size}"),
            })?;
            // Whole steps, so nothing is lost by rounding down.
            let size = Mib(size >> 20);
            if size == wanted || Instant::now() >= deadline {
                return Ok(size);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Unplugs CPUs that were plugged until there are `wanted`, the last one first; returns how many there are. The guest
    /// may keep one: then that many is what there is.
    async fn unplug_cpus(&mut self, wanted: u32) -> Result<u32, DeviceError> {
        while self.vcpus > wanted {
            let name = format!("cpu-{}", self.vcpus - 1);
            if let Err(e) = self.remove_device("unplug a vCPU", &name, RESIZE).await {
                tracing::warn!("{e}");
                break;
            }
            self.vcpus -= 1;
        }
        Ok(self.vcpus)
    }

    /// Plugs CPUs until there are `wanted`; returns how many there are.
    async fn plug_cpus(&mut self, wanted: u32) -> Result<u32, DeviceError> {
        let operation = "plug a vCPU";
        let slots = self.command(operation, "query-hotpluggable-cpus", Value::Null, None).await?;
        // A slot with a CPU in it has a path.
        let free = slots.as_array().into_iter().flatten().filter(|slot| slot.get("qom-path").is_none());
        // The slots come last one first.
        for slot in free.collect::<Vec<_>>().into_iter().rev() {
            if self.vcpus >= wanted {
                break;
            }
            let mut device = slot["props"].clone();
            device["driver"] = slot["type"].clone();
            device["id"] = json!(format!("cpu-{}", self.vcpus));
            self.command(operation, "device_add", device, None).await?;
            self.vcpus += 1;
        }
        Ok(self.vcpus)
    }
}

/// Device names in QEMU, apart from those of the machine's own.
fn device_name(id: &DeviceId) -> String {
    format!("dev-{}", id.0)
}

/// Letters, digits, '-'; begins with a letter; not longer than QEMU takes.
fn check_id(id: &DeviceId) -> Result<(), DeviceError> {
    let good = id.0.len() <= 64
        && id.0.starts_with(|c: char| c.is_ascii_alphabetic())
        && id.0.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    if good {
        return Ok(());
    }
    let reason = "may hold up to 64 letters, digits and '-' and begins with a letter".to_owned();
    Err(DeviceError::Id { id: id.0.clone(), reason })
}

#[async_trait]
impl Vm for QemuVm {
    fn agent_addr(&self) -> &AgentAddr {
        &self.agent
    }

    fn processes(&self) -> VmProcesses {
        VmProcesses { vmm: self.process.pid() }
    }

    fn exited(&self) -> watch::Receiver<Option<VmExit>> {
        self.process.exited()
    }

    fn console(&self) -> Console {
        self.console.console.clone()
    }

    async fn vcpu_threads(&mut self) -> Result<Vec<i32>, DeviceError> {
        self.find_vcpu_threads().await
    }

    async fn attach(&mut self, device: Device) -> Result<GuestAddr, DeviceError> {
        match device {
            Device::VhostUserFs { id, tag, socket } => {
                check_id(&id)?;
                self.plug_fs(id, tag, socket).await
            }
            Device::Block { id, file, read_only } => {
                check_id(&id)?;
                self.plug_block(id, file, read_only).await
            }
            Device::Nic { id, mac, queues } => {
                check_id(&id)?;
                self.plug_nic(id, mac, queues).await
            }
        }
    }

    async fn detach(&mut self, id: &DeviceId) -> Result<(), DeviceError> {
        if self.scsi.has(id) {
            return self.unplug_scsi_disk(id).await;
        }
        let Some(backend) = self.devices.get(id).map(|d| d.backend) else {
            return Err(DeviceError::Id { id: id.0.clone(), reason: "is not plugged".to_owned() });
        };
        self.unplug(id).await?;
        self.devices.remove(id);
        let operation = format!("release {}", id.0);
        match backend {
            Backend::Chardev => {
                let chardev = json!({ "id": format!("chr-{}", id.0) });
                self.command(&operation, "chardev-remove", chardev, None).await?;
            }
            Backend::Block { fdset } => {
                self.close_image(&operation, id, fdset).await?;
            }
            Backend::Net => {
                self.command(&operation, "netdev_del", json!({ "id": nic::netdev(id) }), None).await?;
            }
        }
        Ok(())
    }

    async fn resize(&mut self, to: Resources) -> Result<Resources, ResizeError> {
        let over = |what, asked: String, max: String| Err(ResizeError::OverMaximum { what, asked, max });
        if to.memory > self.max_memory {
            return over("memory", to.memory.to_string(), self.max_memory.to_string());
        }
        if to.vcpus > self.max_vcpus {
            return over("vCPUs", to.vcpus.to_string(), self.max_vcpus.to_string());
        }
        // What it booted with stays.
        let hot = self.resize_memory(to.memory - self.boot_memory).await?;
        let vcpus = match self.accel {
            // All are present; the agent onlines as many as it is told.
            Accel::Tcg => {
                self.vcpus = to.vcpus;
                self.vcpus
            }
            Accel::Kvm if to.vcpus < self.vcpus => self.unplug_cpus(to.vcpus).await?,
            Accel::Kvm => self.plug_cpus(to.vcpus).await?,
        };
        Ok(Resources { memory: self.boot_memory + hot, vcpus })
    }

    async fn pause(&mut self) -> Result<(), DeviceError> {
        self.command("pause", "stop", Value::Null, None).await.map(drop)
    }

    async fn resume(&mut self) -> Result<(), DeviceError> {
        self.command("resume", "cont", Value::Null, None).await.map(drop)
    }

    async fn save(&mut self, state: File, memory: File) -> Result<(), SaveError> {
        self.write_snapshot(state, memory).await
    }

    fn record(&self) -> VmRecord {
        self.record.clone()
    }

    async fn stop(&mut self, how: Stop, deadline: Instant) -> VmExit {
        self.process.expect_exit();
        if how == Stop::Quit {
            // Its answer or the end of the connection: either will do, and if neither comes the deadline decides.
            if let Err(e) = self.qmp.execute("quit", Value::Null, None, deadline).await {
                tracing::debug!("quit: {e}");
            }
            if let Ok(exit) = tokio::time::timeout_at(deadline.into(), self.process.wait()).await {
                return exit;
            }
            tracing::warn!("QEMU did not quit in time; it is killed");
        }
        if let Err(e) = self.process.kill() {
            tracing::error!("cannot kill QEMU: {e}");
        }
        match tokio::time::timeout(KILL, self.process.wait()).await {
            Ok(exit) => exit,
            Err(_) => {
                tracing::error!(pid = self.process.pid(), "QEMU was killed and yet is there, stuck in the kernel");
                VmExit {
                    code: None,
                    signal: None,
                    expected: true,
                    stderr_tail: "it was killed and does not end".into(),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_mean_something_else_to_qemu_are_refused() {
        for bad in ["", "1a", "a,b", "a/b", "a b", "ä", "-a"] {
            assert!(check_id(&DeviceId(bad.to_owned())).is_err(), "{bad:?}");
        }
        assert!(check_id(&DeviceId("share".to_owned())).is_ok());
        assert!(check_id(&DeviceId("a".repeat(65))).is_err());
    }
}
