//! A rehearsal: a machine that waits for its sandbox makes a container of ours, runs a process in it, and removes it. What
//! the first container of a machine costs more than the second (code that is translated or read in when it first
//! runs, caches of the guest's kernel) is then paid before anybody waits. Nothing of it is left in the guest but
//! numbers that have been used.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use kata_agent_client::CallError;
use kata_oci::Spec;
use kata_proto::agent as pb;
use kata_types::ContainerId;
use protobuf::MessageField;
use thiserror::Error;

use super::Machine;
use crate::convert;
use crate::plan::{self, Limits, PlanError, RealHost};
use crate::stdio::{Endpoint, Pumps, StdioError, StdioSpec};

/// Its container, and its directory in the run directory.
const NAME: &str = "rehearsal";
/// The first time fills QEMU's translation buffer, which may be thrown away in the middle of it; the next ones are short.
const ROUNDS: usize = 3;
/// A program that waits for a signal, and one that ends.
const WAITS: &str = "waits";
const ENDS: &str = "ends";

/// Why a rehearsal failed. The machine may still be good, but nobody should have to find out.
#[derive(Debug, Error)]
pub enum ExerciseError {
    /// The agent.
    #[error(transparent)]
    Agent(#[from] CallError),
    /// Its root file system.
    #[error(transparent)]
    Share(#[from] kata_storage::ShareError),
    /// Its spec.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Its output.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// Its files.
    #[error("cannot make the files of the rehearsal: {0}")]
    Files(#[from] io::Error),
    /// Its process.
    #[error("the rehearsal's process ended with {0}")]
    Ended(i32),
    /// This architecture has no program.
    #[error("there is no program for the rehearsal on {0}")]
    Architecture(&'static str),
}

impl Machine {
    /// Rehearses, in a machine that is nobody's yet. `run_dir` is its directory.
    ///
    /// # Errors
    /// [`ExerciseError`].
    pub async fn exercise(&mut self, run_dir: &Path) -> Result<(), ExerciseError> {
        for round in 0..ROUNDS {
            // Names of their own: what the guest still remembers of one must not be taken for the next.
            let name = format!("{NAME}-{round}");
            let id = ContainerId::new(name.clone()).unwrap_or_else(|_| unreachable!("a valid id"));
            let dir = run_dir.join(name);
            let done = self.rehearse(&id, &dir).await;
            let removed = self.share.remove_container(&id).map_err(ExerciseError::from);
            fs::remove_dir_all(&dir)?;
            done.and(removed)?;
        }
        Ok(())
    }

    async fn rehearse(&mut self, id: &ContainerId, dir: &Path) -> Result<(), ExerciseError> {
        let rootfs = dir.join("rootfs");
        make_rootfs(&rootfs)?;
        let guest_root = self.share.add_rootfs(id, &[], &rootfs, false)?;
        let mut spec: Spec = serde_json::from_value(kata_oci::example_spec()).map_err(io::Error::from)?;
        let mut process = spec.process.take().unwrap_or_default();
        process.terminal = false;
        process.args = vec![format!("/{WAITS}")];
        spec.process = Some(process.clone());
        let limits = Limits { max_vcpus: u32::MAX, drop_seccomp: true };
        let mut planned = plan::plan(&spec, id.as_str(), limits, &RealHost)?;
        planned.spec.Root.mut_or_insert_default().Path = guest_root;

        let calls = self.agent.calls().clone();
        let stdio = nowhere()?.open()?;
        let mut create = pb::CreateContainerRequest::new();
        create.container_id = id.to_string();
        create.OCI = MessageField::some(planned.spec);
        create.stdio_streams = stdio.streams;
        calls.create_container(create).await?;
        let pumps = Pumps::start(stdio, &self.agent, id.as_str(), "").await?;
        let mut start = pb::StartContainerRequest::new();
        start.container_id = id.to_string();
        calls.start_container(start).await?;

        process.args = vec![format!("/{ENDS}")];
        let exec_stdio = nowhere()?.open()?;
        let mut exec = pb::ExecProcessRequest::new();
        exec.container_id = id.to_string();
        exec.exec_id = ENDS.to_owned();
        exec.process = MessageField::some(convert::process(&process));
        exec.stdio_streams = exec_stdio.streams;
        calls.exec_process(exec).await?;
        let exec_pumps = Pumps::start(exec_stdio, &self.agent, id.as_str(), ENDS).await?;
        let ended = self.wait_for(id, ENDS).await?;

        let mut kill = pb::SignalProcessRequest::new();
        kill.container_id = id.to_string();
        kill.signal = 9;
        calls.signal_process(kill).await?;
        self.wait_for(id, "").await?;
        let mut remove = pb::RemoveContainerRequest::new();
        remove.container_id = id.to_string();
        calls.remove_container(remove).await?;
        pumps.abort();
        exec_pumps.abort();
        if ended == 0 { Ok(()) } else { Err(ExerciseError::Ended(ended)) }
    }

    async fn wait_for(&self, id: &ContainerId, exec: &str) -> Result<i32, CallError> {
        let mut wait = pb::WaitProcessRequest::new();
        wait.container_id = id.to_string();
        wait.exec_id = exec.to_owned();
        Ok(self.agent.calls().wait_process(wait).await?.status)
    }
}

/// Output streams that lead nowhere.
fn nowhere() -> io::Result<StdioSpec> {
    let null = || fs::File::options().write(true).open("/dev/null").map(|f| Some(Endpoint::Fd(f.into())));
    Ok(StdioSpec { terminal: false, stdin: None, stdout: null()?, stderr: null()? })
}

fn make_rootfs(rootfs: &Path) -> Result<(), ExerciseError> {
    fs::create_dir_all(rootfs)?;
    for dir in ["proc", "dev", "sys"] {
        fs::create_dir_all(rootfs.join(dir))?;
    }
    for (name, code) in [(WAITS, code::WAITS), (ENDS, code::ENDS)] {
        if code.is_empty() {
            return Err(ExerciseError::Architecture(std::env::consts::ARCH));
        }
        let path = rootfs.join(name);
        fs::write(&path, elf(code))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Instructions of the two programs.
#[cfg(target_arch = "x86_64")]
mod code {
    /// ELF's number of the architecture.
    pub const MACHINE: u16 = 62;
    /// `xor edi, edi; mov eax, 60 (exit); syscall`
    pub const ENDS: &[u8] = &[0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05];
    /// `again: mov eax, 34 (pause); syscall; jmp again`
    pub const WAITS: &[u8] = &[0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7];
}

/// Instructions of the two programs.
#[cfg(target_arch = "aarch64")]
mod code {
    /// ELF's number of the architecture.
    pub const MACHINE: u16 = 183;
    /// `mov x0, 0; mov x8, 93 (exit); svc 0`
    pub const ENDS: &[u8] = &[0, 0, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 1, 0, 0, 0xd4];
    /// `again: mov x0..x4, 0; mov x8, 73 (ppoll: of nothing, for ever); svc 0; b again`
    pub const WAITS: &[u8] = &[
        0, 0, 0x80, 0xd2, 1, 0, 0x80, 0xd2, 2, 0, 0x80, 0xd2, 3, 0, 0x80, 0xd2, 4, 0, 0x80, 0xd2, 0x28, 0x09, 0x80,
        0xd2, 1, 0, 0, 0xd4, 0xf9, 0xff, 0xff, 0x17,
    ];
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod code {
    pub const MACHINE: u16 = 0;
    pub const ENDS: &[u8] = &[];
    pub const WAITS: &[u8] = &[];
}

/// A whole program of one segment (elf(5)): header, program header, code.
fn elf(code: &[u8]) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let size = HEADERS + code.len() as u64;
    let mut out = b"\x7fELF\x02\x01\x01".to_vec();
    out.resize(16, 0);
    out.extend(2u16.to_le_bytes()); // ET_EXEC
    out.extend(code::MACHINE.to_le_bytes());
    out.extend(1u32.to_le_bytes());
    for value in [BASE + HEADERS, 64, 0] {
        out.extend(value.to_le_bytes()); // entry, program headers, section headers
    }
    out.extend(0u32.to_le_bytes());
    for value in [64u16, 56, 1, 0, 0, 0] {
        out.extend(value.to_le_bytes()); // sizes and numbers of headers
    }
    out.extend(1u32.to_le_bytes()); // PT_LOAD
    out.extend(5u32.to_le_bytes()); // readable, executable
    for value in [0, BASE, BASE, size, size, 0x1000] {
        out.extend(value.to_le_bytes());
    }
    out.extend(code);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    #[test]
    fn the_programs_do_what_they_say() {
        let dir = tempfile::tempdir().unwrap();
        make_rootfs(dir.path()).unwrap();
        assert!(Command::new(dir.path().join(ENDS)).status().unwrap().success());
        let mut waits = Command::new(dir.path().join(WAITS)).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(waits.try_wait().unwrap().is_none());
        waits.kill().unwrap();
        assert_eq!(waits.wait().unwrap().signal(), Some(9));
    }
}
