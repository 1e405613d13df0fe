//! The agent's side of a helper process: start it, give it its job, take what it reports.
//!
//! The helper is the agent's own program, run again: a copy of the running agent would have its threads' locks in
//! an unknown state, and joining or leaving namespaces wants a process of one thread. It has the socket as its
//! stdin; everything else comes through that. It is never waited for here: the agent has one loop for all exits.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use kata_proto::oci;
use nix::errno::Errno;
use rustix::fs::MemfdFlags;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::channel::{Channel, Message};
use crate::error::{JailError, Step, SysError};
use crate::job::Job;

/// How long a helper may take. Only a filesystem that does not answer takes longer, on the slowest of machines.
const DEADLINE: Duration = Duration::from_secs(120);

static SELF_EXE: OnceLock<PathBuf> = OnceLock::new();

/// Makes `program` the one that is run as `program jail-init` for helpers, in place of `/proc/self/exe`. It must call
/// [`crate::helper_main`] then. The first call counts.
pub fn set_self_exe(program: PathBuf) {
    // A second call changes nothing, as documented.
    let _ = SELF_EXE.set(program);
}

/// Where the process's stdin, stdout and stderr go.
#[derive(Debug)]
pub enum ProcessIo {
    /// A new terminal of this size; 0 leaves a dimension to the spec.
    Terminal {
        /// Lines.
        rows: u16,
        /// Characters in a line.
        cols: u16,
    },
    /// These.
    Fds {
        /// For reading.
        stdin: OwnedFd,
        /// For writing.
        stdout: OwnedFd,
        /// For writing.
        stderr: OwnedFd,
    },
}

/// A process of a container; a child of the calling process, which must wait for it.
#[derive(Debug)]
pub struct Child {
    /// Its pid in the caller's pid namespace.
    pub pid: i32,
    /// Refers to exactly this process. Close-on-exec.
    pub pidfd: OwnedFd,
    /// The master side of its terminal, if it has one. Close-on-exec.
    pub terminal: Option<OwnedFd>,
}

/// The descriptors that go with a job.
pub(crate) struct JobFds {
    /// cgroup.procs files, open for writing; the first that takes the process is used.
    pub cgroup_procs: Vec<OwnedFd>,
    /// Exec: the container's init.
    pub init: Option<OwnedFd>,
    /// Stdin, stdout and stderr, unless there is a terminal.
    pub stdio: Option<[OwnedFd; 3]>,
}

/// A helper that did all but the execve and waits.
#[derive(Debug)]
pub(crate) struct Waiting(Channel);

/// The maps of a new user namespace.
pub(crate) struct IdMaps<'a> {
    pub uids: &'a [oci::LinuxIDMapping],
    pub gids: &'a [oci::LinuxIDMapping],
}

/// Starts a helper and lets it work until the process could run.
pub(crate) fn prepare(job: &Job, fds: JobFds, maps: &IdMaps<'_>) -> Result<(Waiting, Child), JailError> {
    let deadline = Instant::now() + DEADLINE;
    let (ours, theirs) = Channel::pair().step(|| "creating the helper's socket".to_owned())?;
    let (helper_pid, helper) = spawn(theirs)?;
    let mut payload = vec![job_file(job)?];
    payload.extend(fds.cgroup_procs);
    payload.extend(fds.init);
    payload.extend(fds.stdio.into_iter().flatten());
    ours.send(&Message::Job(payload)).step(|| "giving the helper its job".to_owned())?;

    let mut process: Option<(i32, OwnedFd)> = None;
    let mut terminal = None;
    let mut ready = false;
    // The two processes of a helper speak in any order.
    let result = loop {
        if ready && process.is_some() {
            break Ok(());
        }
        match ours.recv(Some(deadline)) {
            Ok(Some(Message::Process(pid, pidfd))) => process = Some((pid, pidfd)),
            Ok(Some(Message::Terminal(master))) => terminal = Some(master),
            Ok(Some(Message::Warning(text))) => log::warn!("container {}: {text}", job.id),
            Ok(Some(Message::MapIds)) => {
                let mapped = write_id_maps(helper_pid, maps)
                    .and_then(|()| ours.send(&Message::Mapped).step(|| "answering the helper".to_owned()));
                if let Err(e) = mapped {
                    break Err(e);
                }
            }
            Ok(Some(Message::Ready)) => ready = true,
            Ok(Some(Message::Failed(e))) => break Err(e),
            Ok(Some(other)) => break Err(JailError::helper(format!("said {other:?} out of turn"))),
            Ok(None) => break Err(JailError::helper("died before the container was made")),
            Err(rustix::io::Errno::TIMEDOUT) => {
                break Err(JailError::helper(format!("did nothing for {} s", DEADLINE.as_secs())));
            }
            Err(e) => break Err(JailError::helper(format!("cannot be understood: {e}"))),
        }
    };
    match (result, process) {
        (Ok(()), Some((pid, pidfd))) => Ok((Waiting(ours), Child { pid, pidfd, terminal })),
        (result, process) => {
            // What works on is killed; what was not told to us ends when it next looks at the socket, which closes on return.
            [helper, process.map(|(_, pidfd)| pidfd)].iter().flatten().for_each(kill);
            // Never the default: the loop ends well only when both have spoken.
            Err(result.err().unwrap_or_else(|| JailError::helper("did not tell which process it made")))
        }
    }
}

impl Waiting {
    /// Lets the process run; returns when the execve is done or has failed.
    pub(crate) fn start(self) -> Result<(), JailError> {
        let gone = |_| JailError::helper("died before the start");
        self.0.send(&Message::Start).map_err(gone)?;
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self.0.recv(Some(deadline)) {
                Ok(None) => return Ok(()),
                Ok(Some(Message::Failed(e))) => return Err(e),
                Ok(Some(Message::Warning(text))) => log::warn!("{text}"),
                Ok(Some(other)) => return Err(JailError::helper(format!("said {other:?} after the start"))),
                Err(e) => return Err(JailError::helper(format!("did not start the program: {e}"))),
            }
        }
    }
}

/// Sends SIGKILL; a process that is gone already is what was wanted.
pub(crate) fn kill(pidfd: &OwnedFd) {
    if let Err(e) = pidfd_send_signal(pidfd, Signal::KILL)
        && e != rustix::io::Errno::SRCH
    {
        log::warn!("killing a container's process failed: {e}");
    }
}

/// Its pid, and its pidfd unless it has ended already.
fn spawn(socket: Channel) -> Result<(u32, Option<OwnedFd>), JailError> {
    let program = SELF_EXE.get().cloned().unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
    // Dropping the handle neither kills the process nor waits for it.
    let child = Command::new(&program)
        .arg("jail-init")
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(socket.into_fd()))
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .step(|| format!("running {} as the container's helper", program.display()))?;
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    Ok((child.id(), pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())))
}

fn job_file(job: &Job) -> Result<OwnedFd, JailError> {
    let what = || "writing the helper's job".to_owned();
    let fd = rustix::fs::memfd_create("job", MemfdFlags::CLOEXEC).step(what)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(&job.encode()).step(what)?;
    Ok(file.into())
}

/// user_namespaces(7): from outside, because a process may map only itself from inside.
fn write_id_maps(pid: u32, maps: &IdMaps<'_>) -> Result<(), JailError> {
    for (file, map) in [("gid_map", maps.gids), ("uid_map", maps.uids)] {
        let path = format!("/proc/{pid}/{file}");
        let text: String =
            map.iter().map(|m| format!("{} {} {}\n", m.ContainerID, m.HostID, m.Size)).collect::<Vec<_>>().concat();
        // The kernel takes a map in one write.
        std::fs::write(&path, text).map_err(|e| match e.errno() {
            Errno::EINVAL => JailError::invalid(format!("the kernel refuses the {file} {map:?}")),
            source => JailError::Step { step: format!("writing {path}"), source },
        })?;
    }
    Ok(())
}
