//! What the agent holds of a container.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use kata_proto::{agent, oci};
use kata_sys::jail::send_signal;
use nix::errno::Errno;
use protobuf::Message as _;
use rustix::process::{PidfdFlags, pidfd_open};

use crate::cgroup::Cgroup;
use crate::error::{JailError, Step, SysError};
use crate::job::{Job, Kind};
use crate::launch::{self, Child, IdMaps, JobFds, ProcessIo, Waiting};
use crate::mounts::Mounts;
use crate::namespaces::Namespaces;
use crate::process;

/// A container: a cgroup, and the process that was its first.
///
/// Dropping it leaves everything as it is; [`Container::destroy`] ends it. Nothing here waits for children: whoever made
/// the container has to, for the processes in [`Child`] and for any other child (helpers, orphans), and that on another
/// thread than the one that is in here: a pid namespace ends only when all its processes have been waited for.
#[derive(Debug)]
pub struct Container {
    id: String,
    cgroup: Cgroup,
    init: i32,
    init_fd: OwnedFd,
    mounts: Mounts,
    waiting: Option<Waiting>,
    /// `CLONE_NEW*` of the namespaces that an exec has to join.
    namespaces: i32,
    /// What a further process gets unless it says otherwise.
    capabilities: protobuf::MessageField<oci::LinuxCapabilities>,
}

impl Container {
    /// Makes a container up to the point where its program could run: all that the spec says is done, the program is
    /// found, and the init waits for [`Container::start`]. Blocking.
    ///
    /// `rootfs` is the root filesystem in the caller's view, `spec.Root` only says whether it is read-only.
    ///
    /// # Errors
    /// [`JailError`] as the step that failed has it; nothing is left then but children that are about to end.
    pub fn create(id: &str, spec: &oci::Spec, rootfs: &Path, io: ProcessIo) -> Result<(Self, Child), JailError> {
        let linux = spec.Linux.get_or_default();
        check(spec)?;
        let namespaces = Namespaces::parse(&linux.Namespaces)?;
        let rootfs = rootfs.to_str().ok_or_else(|| JailError::invalid(format!("root filesystem path {rootfs:?}")))?;
        let cgroup = Cgroup::create(&linux.CgroupsPath, id)?;
        let made = cgroup
            .set(linux.Resources.get_or_default(), true)
            .and_then(|()| {
                let dir = cgroup.dir().to_string_lossy().into_owned();
                let spec_bytes = encode(spec)?;
                let procs = cgroup.open_procs(None)?;
                let mut job = job(Kind::Create, id, &io, spec_bytes, procs.len());
                job.rootfs = rootfs.to_owned();
                job.cgroup = dir;
                let fds = JobFds { cgroup_procs: procs, init: None, stdio: stdio(io) };
                let maps = IdMaps { uids: &linux.UIDMappings, gids: &linux.GIDMappings };
                launch::prepare(&job, fds, &maps)
            })
            .and_then(|(waiting, child)| {
                let init_fd = child.pidfd.try_clone().step(|| "keeping the init's pidfd".to_owned())?;
                let mounts = Mounts::of(child.pid)?;
                Ok((waiting, child, init_fd, mounts))
            });
        match made {
            Ok((waiting, child, init_fd, mounts)) => {
                let container = Container {
                    id: id.to_owned(),
                    cgroup,
                    init: child.pid,
                    init_fd,
                    mounts,
                    waiting: Some(waiting),
                    namespaces: namespaces.flags().bits(),
                    capabilities: spec.Process.get_or_default().Capabilities.clone(),
                };
                Ok((container, child))
            }
            Err(e) => {
                if let Err(left) = cgroup.destroy() {
                    log::warn!("after container {id} failed: {left}");
                }
                Err(e)
            }
        }
    }

    /// Runs the container's program.
    ///
    /// # Errors
    /// When the execve fails, when the init is gone, and when this is not the first call.
    pub fn start(&mut self) -> Result<(), JailError> {
        match self.waiting.take() {
            Some(waiting) => waiting.start(),
            None => Err(self.state("it is started already")),
        }
    }

    /// Runs a further process in the container. Blocking; returns when its program runs.
    ///
    /// # Errors
    /// As for [`Container::create`] and [`Container::start`]; also while the container is paused or its init is gone.
    pub fn exec(&self, process: &oci::Process, io: ProcessIo) -> Result<Child, JailError> {
        process::check(process)?;
        if self.cgroup.is_frozen()? {
            return Err(self.state("cannot run a process in it while it is paused"));
        }
        let mut process = process.clone();
        if process.Capabilities.is_none() {
            process.Capabilities = self.capabilities.clone();
        }
        let spec = oci::Spec { Process: protobuf::MessageField::some(process), ..Default::default() };
        let procs = self.cgroup.open_procs(Some(self.init))?;
        let mut job = job(Kind::Exec, &self.id, &io, encode(&spec)?, procs.len());
        job.namespaces = self.namespaces as u32;
        let init = self.init_fd.try_clone().step(|| "copying the init's pidfd".to_owned())?;
        let fds = JobFds { cgroup_procs: procs, init: Some(init), stdio: stdio(io) };
        let (waiting, child) = launch::prepare(&job, fds, &IdMaps { uids: &[], gids: &[] })?;
        match waiting.start() {
            Ok(()) => Ok(child),
            Err(e) => {
                launch::kill(&child.pidfd);
                Err(e)
            }
        }
    }

    /// The pid of the container's first process in the caller's pid namespace.
    pub fn init_pid(&self) -> i32 {
        self.init
    }

    /// All processes of the container in the caller's pid namespace, in order.
    ///
    /// # Errors
    /// When the cgroup cannot be read.
    pub fn pids(&self) -> Result<Vec<i32>, JailError> {
        self.cgroup.pids()
    }

    /// Sends a signal to all processes of the container. SIGKILL reaches all of them, however fast they fork.
    ///
    /// # Errors
    /// For a number that is no signal, and when the cgroup cannot be read or written.
    pub fn signal_all(&self, number: i32) -> Result<(), JailError> {
        if number == libc::SIGKILL {
            return self.cgroup.kill();
        }
        if !(1..=64).contains(&number) {
            return Err(JailError::Step { step: format!("sending signal {number}"), source: Errno::EINVAL });
        }
        // By pidfd, and only to what is still ours once it is open: before that the number may have become another
        // process's.
        let open = |pid: i32| Some((pid, pidfd_open(rustix::process::Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?));
        let processes: Vec<(i32, OwnedFd)> = self.cgroup.pids()?.into_iter().filter_map(open).collect();
        let ours = self.cgroup.pids()?;
        for (pid, fd) in processes.iter().filter(|(pid, _)| ours.binary_search(pid).is_ok()) {
            match send_signal(fd, number) {
                Err(e) if e.errno() == Errno::ESRCH => {}
                other => other.step(|| format!("sending signal {number} to process {pid}"))?,
            }
        }
        Ok(())
    }

    /// Freezes all processes of the container; returns when they are.
    ///
    /// # Errors
    /// When that takes more than some seconds (they are thawed again then), and when the cgroup cannot be written.
    pub fn pause(&self) -> Result<(), JailError> {
        self.cgroup.freeze(true)
    }

    /// Thaws them.
    ///
    /// # Errors
    /// As for [`Container::pause`].
    pub fn resume(&self) -> Result<(), JailError> {
        self.cgroup.freeze(false)
    }

    /// Changes the limits that `resources` names; the others stay, and so do the device rules if it has none.
    ///
    /// # Errors
    /// For values without meaning, and when the kernel refuses one.
    pub fn update(&self, resources: &oci::LinuxResources) -> Result<(), JailError> {
        self.cgroup.set(resources, !resources.Devices.is_empty())
    }

    /// What the container has used.
    ///
    /// # Errors
    /// When the cgroup is gone.
    pub fn stats(&self) -> Result<agent::CgroupStats, JailError> {
        if !self.cgroup.dir().exists() {
            return Err(self.state("its cgroup is gone"));
        }
        Ok(crate::cgroup::stats::read(self.cgroup.dir()))
    }

    /// The file whose `oom_kill` counts the processes that the kernel killed for want of memory; it tells of a change by
    /// inotify (modify) and poll (POLLPRI).
    pub fn memory_events_path(&self) -> PathBuf {
        self.cgroup.dir().join("memory.events")
    }

    /// Ends it: kills what is left, removes the cgroup, and lets the mounts go. Blocking.
    ///
    /// # Errors
    /// When a process does not die within some seconds; the mounts go with the last one then.
    pub fn destroy(self) -> Result<(), JailError> {
        // An init that waits for its start sees the channel close; the kill is for the others.
        self.cgroup.destroy()?;
        self.mounts.leave();
        Ok(())
    }

    fn state(&self, what: &str) -> JailError {
        JailError::State { id: self.id.clone(), what: what.to_owned() }
    }
}

/// What this engine does not do is refused before anything is made.
fn check(spec: &oci::Spec) -> Result<(), JailError> {
    let linux = spec.Linux.as_ref().ok_or_else(|| JailError::invalid("it has no linux part"))?;
    process::check(spec.Process.as_ref().ok_or_else(|| JailError::invalid("it has no process"))?)?;
    if linux.Seccomp.is_some() {
        return Err(JailError::unsupported("seccomp filters"));
    }
    if !linux.MountLabel.is_empty() {
        return Err(JailError::unsupported(format!("mount label {:?}", linux.MountLabel)));
    }
    if linux.IntelRdt.is_some() {
        return Err(JailError::unsupported("Intel RDT"));
    }
    if let Some(h) = spec.Hooks.as_ref() {
        let lists = [&h.Prestart, &h.Poststart, &h.Poststop, &h.CreateRuntime, &h.CreateContainer, &h.StartContainer];
        if let Some(hook) = lists.into_iter().flatten().next() {
            return Err(JailError::unsupported(format!("hook {:?}", hook.Path)));
        }
    }
    Ok(())
}

fn encode(spec: &oci::Spec) -> Result<Vec<u8>, JailError> {
    spec.write_to_bytes().map_err(|e| JailError::invalid(format!("it cannot be encoded: {e}")))
}

fn job(kind: Kind, id: &str, io: &ProcessIo, spec: Vec<u8>, cgroup_files: usize) -> Job {
    let (terminal, rows, cols) = match io {
        ProcessIo::Terminal { rows, cols } => (true, *rows, *cols),
        ProcessIo::Fds { .. } => (false, 0, 0),
    };
    Job {
        kind,
        id: id.to_owned(),
        rootfs: String::new(),
        cgroup: String::new(),
        spec,
        terminal,
        rows,
        cols,
        namespaces: 0,
        cgroup_files: cgroup_files as u32,
    }
}

fn stdio(io: ProcessIo) -> Option<[OwnedFd; 3]> {
    match io {
        ProcessIo::Terminal { .. } => None,
        ProcessIo::Fds { stdin, stdout, stderr } => Some([stdin, stdout, stderr]),
    }
}
