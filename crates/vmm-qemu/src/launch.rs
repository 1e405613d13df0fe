//! From a specification to a running VM.

use std::fs::File;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

use kata_vmm::spawn::{RLimit, Spawn, start_time};
use kata_vmm::{AgentAddr, Begin, LaunchError, MemorySharing, VmRecord, VmSpec, snapshot};

use crate::command::{self, AGENT_FD, CONSOLE_FD, MEMORY_FD, QMP_FD};
use crate::qmp::{Qmp, QmpError};
use crate::uid::UidLock;
use crate::vm::{ConsoleReader, Parts, QemuVm, SocketFile};
use crate::{NAME, Qemu, input, uid_dir};

/// Enough for QEMU's devices, and little for one that was taken over.
const OPEN_FILES: u64 = 512;

fn os(what: String) -> impl FnOnce(io::Error) -> LaunchError {
    move |source| LaunchError::Os { what, source }
}

pub(crate) async fn launch(qemu: &Qemu, spec: VmSpec, deadline: Instant) -> Result<QemuVm, LaunchError> {
    input::check(&spec, qemu.config.uid_range.is_some())?;
    let binary = std::fs::canonicalize(&spec.binary).map_err(os(format!("resolve {}", spec.binary.display())))?;
    let uid = match qemu.config.uid_range {
        Some((first, last)) => {
            let dir = uid_dir();
            let taken = UidLock::take(&dir, first, last);
            Some(taken.map_err(os(format!("find a free uid of {first}-{last} in {}", dir.display())))?)
        }
        None => None,
    };

    let (agent_listener, agent, agent_file) = listen(&spec.run_dir, "agent.sock")?;
    let pair = || UnixStream::pair().map_err(os("make a pair of sockets".to_owned()));
    let (qmp, qmp_theirs) = pair()?;
    let (console, console_theirs) = pair()?;
    let console = ConsoleReader::start(console).map_err(os("read the console's socket".to_owned()))?;

    let (memory, filling) = memory(&spec)?;
    let theirs = memory.try_clone().map_err(os("duplicate a descriptor".to_owned()))?;

    let mut spawn = Spawn::new(&binary)
        .args(command::arguments(&spec, qemu.machine, qemu.accel(), command::firmware(&binary, qemu.machine)))
        .root(command::root(&spec, &binary, qemu.machine, qemu.accel()))
        .pid_ns()
        .net_ns()
        .ipc_ns()
        .cgroups(&spec.cgroups)
        .capabilities(&[])
        .rlimit(RLimit::NoFile(OPEN_FILES))
        .rlimit(RLimit::Core(0))
        .fd(QMP_FD, qmp_theirs.into())
        .fd(AGENT_FD, agent_listener.into())
        .fd(CONSOLE_FD, console_theirs.into())
        .fd(MEMORY_FD, theirs.into());
    if let Some(lock) = &uid {
        spawn = spawn.user(lock.uid(), lock.uid());
    }
    let process =
        spawn.start(deadline).await.map_err(|source| LaunchError::Spawn { binary: spec.binary.clone(), source })?;
    let record = VmRecord {
        driver: NAME.to_owned(),
        pid: process.pid(),
        start_time: start_time(process.pid())
            .map_err(os(format!("read the start time of process {}", process.pid())))?,
        uid: uid.as_ref().map(UidLock::uid),
    };

    let qmp = qmp
        .set_nonblocking(true)
        .and_then(|()| tokio::net::UnixStream::from_std(qmp))
        .map_err(os("watch QEMU's control socket".to_owned()))?;
    let stage = "answer on its control channel";
    let qmp = match Qmp::connect(qmp, deadline).await {
        Ok(qmp) => qmp,
        Err(QmpError::Closed(reason)) => {
            // The connection ends a moment before the process does.
            let ended = tokio::time::timeout(std::time::Duration::from_secs(2), process.wait()).await;
            return Err(match ended {
                Ok(exit) => LaunchError::Died { stage: "start", exit },
                Err(_) => LaunchError::Control { stage, reason },
            });
        }
        Err(QmpError::Deadline(_)) => return Err(LaunchError::Deadline { stage }),
        Err(QmpError::Refused(reason)) => return Err(LaunchError::Control { stage, reason }),
    };
    tracing::info!(pid = process.pid(), accel = %qemu.accel(), "QEMU answers");
    let parts = Parts {
        process,
        qmp,
        console,
        agent: AgentAddr::Serial { path: agent },
        agent_file,
        uid,
        record,
        memory,
        accel: qemu.accel(),
    };
    let vm = QemuVm::new(parts, &spec);
    if let Begin::Restore(from) = spec.begin {
        let copied = match filling {
            Some(filling) => filling.await.unwrap_or_else(|e| Err(io::Error::other(e))),
            None => Ok(0),
        };
        copied.map_err(os("copy the template's memory".to_owned()))?;
        vm.restore(from.state, deadline).await?;
    }
    Ok(vm)
}

/// A copy of a template's memory that is being made.
type Filling = tokio::task::JoinHandle<io::Result<u64>>;

/// The memory of the VM. A copy is made on a thread of its own, while QEMU starts.
fn memory(spec: &VmSpec) -> Result<(File, Option<Filling>), LaunchError> {
    let new = || snapshot::memory(spec.memory).map_err(os(format!("make {} of memory", spec.memory)));
    let Begin::Restore(from) = &spec.begin else { return Ok((new()?, None)) };
    let template = from.memory.try_clone().map_err(os("duplicate a descriptor".to_owned()))?;
    let length = template.metadata().map_err(os("look at the template's memory".to_owned()))?.len();
    if length != spec.memory.bytes() {
        let text = format!("the template's memory has {length} bytes, and the VM is to have {}", spec.memory);
        return Err(LaunchError::Size(text));
    }
    if from.sharing == MemorySharing::CopyOnWrite {
        return Ok((template, None));
    }
    let memory = new()?;
    let to = memory.try_clone().map_err(os("duplicate a descriptor".to_owned()))?;
    Ok((memory, Some(tokio::task::spawn_blocking(move || snapshot::copy_sparse(&template, &to)))))
}

/// Makes the agent's listening socket. What a crashed predecessor left there is replaced.
fn listen(dir: &Path, name: &'static str) -> Result<(UnixListener, PathBuf, SocketFile), LaunchError> {
    let path = dir.join(name);
    let what = |what: &str| os(format!("{what} {}", path.display()));
    if let Err(e) = std::fs::remove_file(&path)
        && e.kind() != io::ErrorKind::NotFound
    {
        return Err(what("replace")(e));
    }
    let file = SocketFile::new(dir, name).map_err(what("open the directory of"))?;
    let listener = UnixListener::bind(&path).map_err(what("listen at"))?;
    Ok((listener, path, file))
}
