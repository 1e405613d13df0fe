//! The container engine as the agent uses it; the one place that names `kata_jail`.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use kata_proto::agent::CgroupStats;
use kata_proto::oci;

pub use kata_jail::{Child, JailError as EngineError, PidNamespace, ProcessIo, stats_of_all};

/// Whether the engine applies a spec's seccomp profile.
pub const SECCOMP: bool = false;

/// A container. Calls block; none of them waits for the container's program.
pub struct Container(kata_jail::Container);

impl Container {
    /// Makes the container; its first process waits for [`Container::start`].
    pub fn create(id: &str, spec: &oci::Spec, rootfs: &Path, io: ProcessIo) -> Result<(Container, Child), EngineError> {
        let (container, child) = kata_jail::Container::create(id, spec, rootfs, io)?;
        Ok((Container(container), child))
    }

    /// Lets the first process execute the user's program.
    pub fn start(&mut self) -> Result<(), EngineError> {
        self.0.start()
    }

    /// Starts another process.
    pub fn exec(&self, process: &oci::Process, io: ProcessIo) -> Result<Child, EngineError> {
        self.0.exec(process, io)
    }

    /// The container's processes, as the agent's pid namespace numbers them.
    pub fn pids(&self) -> Result<Vec<i32>, EngineError> {
        self.0.pids()
    }

    /// Kills every process of the container.
    pub fn kill_all(&self) -> Result<(), EngineError> {
        self.0.signal_all(libc::SIGKILL)
    }

    /// Freezes every process.
    pub fn pause(&self) -> Result<(), EngineError> {
        self.0.pause()
    }

    /// The reverse.
    pub fn resume(&self) -> Result<(), EngineError> {
        self.0.resume()
    }

    /// Changes limits.
    pub fn update(&self, resources: &oci::LinuxResources) -> Result<(), EngineError> {
        self.0.update(resources)
    }

    /// Reads the cgroup's counters.
    pub fn stats(&self) -> Result<CgroupStats, EngineError> {
        self.0.stats()
    }

    /// The file whose changes tell of out-of-memory kills.
    pub fn memory_events_path(&self) -> PathBuf {
        self.0.memory_events_path()
    }

    /// Kills what is left and removes the cgroup.
    pub fn destroy(self) -> Result<(), EngineError> {
        self.0.destroy()
    }
}

/// The three descriptors of a process without a terminal.
pub fn fds(stdin: OwnedFd, stdout: OwnedFd, stderr: OwnedFd) -> ProcessIo {
    ProcessIo::Fds { stdin, stdout, stderr }
}
