//! From a specification to a running VM.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Instant;

use kata_vmm::spawn::{RLimit, Spawn, start_time};
use kata_vmm::{AgentAddr, LaunchError, VmRecord, VmSpec};

use crate::command::{self, AGENT_FD, CONSOLE_FD, QMP_FD};
use crate::qmp::{Qmp, QmpError};
use crate::uid::UidLock;
use crate::vm::{ConsoleReader, QemuVm, SocketFile};
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

    let agent = spec.run_dir.join("agent.sock");
    let (agent_listener, agent_file) = listen(agent.clone())?;
    let pair = || UnixStream::pair().map_err(os("make a pair of sockets".to_owned()));
    let (qmp, qmp_theirs) = pair()?;
    let (console, console_theirs) = pair()?;
    let console = ConsoleReader::start(console).map_err(os("read the console's socket".to_owned()))?;

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
        .fd(CONSOLE_FD, console_theirs.into());
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
    Ok(QemuVm::new(
        process,
        qmp,
        console,
        AgentAddr::Serial { path: agent },
        agent_file,
        uid,
        record,
        &spec,
        qemu.accel(),
    ))
}

/// Makes the agent's listening socket. What a crashed predecessor left there is replaced.
fn listen(path: PathBuf) -> Result<(UnixListener, SocketFile), LaunchError> {
    if let Err(e) = std::fs::remove_file(&path)
        && e.kind() != io::ErrorKind::NotFound
    {
        return Err(os(format!("replace {}", path.display()))(e));
    }
    let listener = UnixListener::bind(&path).map_err(os(format!("listen at {}", path.display())))?;
    Ok((listener, SocketFile(path)))
}
