//! What an idle sandbox holds, by proportional set size: a page that several processes share counts once in all.

use std::fmt::Write;
use std::fs;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::contender::Contender;
use super::engine::{Engine, Kept};
use super::processes::{self, Role};
use super::smaps;

/// An idle sandbox is let settle for so long before it is measured.
const SETTLE: Duration = Duration::from_secs(3);
/// KiB in a MB, as the kernel counts.
const KIB: f64 = 1024.0;

/// One container with all that it takes on the host; KiB.
#[derive(Debug, Default, Clone, Copy)]
pub struct Sandbox {
    /// The guest's memory, in whatever process it is mapped.
    pub guest_kib: u64,
    /// The VMM's translated code.
    pub buffer_kib: u64,
    /// The rest of the VMM.
    pub vmm_kib: u64,
    /// The sandbox's daemon.
    pub daemon_kib: u64,
    /// The file daemon.
    pub files_kib: u64,
    /// All others: stand-in, shim, workload.
    pub other_kib: u64,
}

impl Sandbox {
    /// Of a running container.
    ///
    /// # Errors
    /// It has no processes.
    pub fn of(id: &str) -> Result<Sandbox> {
        let mut this = Sandbox::default();
        for process in processes::of_container(id)? {
            let text = fs::read_to_string(format!("/proc/{}/smaps", process.pid)).unwrap_or_default();
            let split = smaps::split(&smaps::parse(&text));
            this.guest_kib += split.guest_kib;
            let own = split.rest_kib;
            match process.role {
                Role::Vmm => {
                    this.buffer_kib += split.buffer_kib;
                    this.vmm_kib += own;
                }
                Role::Daemon => this.daemon_kib += own + split.buffer_kib,
                Role::FileDaemon => this.files_kib += own + split.buffer_kib,
                Role::Other => this.other_kib += own + split.buffer_kib,
            }
        }
        Ok(this)
    }

    fn total_kib(&self) -> u64 {
        self.guest_kib + self.buffer_kib + self.vmm_kib + self.daemon_kib + self.files_kib + self.other_kib
    }

    /// All of it, in MB.
    pub fn total_mb(&self) -> f64 {
        self.total_kib() as f64 / KIB
    }

    /// The daemon's, in MB.
    pub fn daemon_mb(&self) -> f64 {
        self.daemon_kib as f64 / KIB
    }

    fn json(&self) -> Value {
        json!({
            "guest": self.guest_kib, "buffer": self.buffer_kib, "vmm": self.vmm_kib, "daemon": self.daemon_kib,
            "files": self.files_kib, "other": self.other_kib,
        })
    }
}

/// An idle sandbox of each contender.
#[derive(Debug, Default)]
pub struct Memory {
    rows: Vec<(String, Sandbox, bool)>,
}

/// Starts one of each, and looks at it when it is idle.
///
/// # Errors
/// The engine's.
pub fn measure(engine: &dyn Engine, contenders: &[Contender]) -> Result<Memory> {
    let mut memory = Memory::default();
    for (n, contender) in contenders.iter().enumerate() {
        let ours = matches!(contender, Contender::Kata(_));
        let kept = match Kept::start(engine, contender, &format!("m{n}")) {
            Ok(kept) => kept,
            Err(err) if !ours => {
                eprintln!("    {} is left out: {}", contender.name(), err.root_cause());
                continue;
            }
            Err(err) => return Err(err),
        };
        std::thread::sleep(SETTLE);
        memory.rows.push((contender.name(), Sandbox::of(&kept.id)?, ours));
        kept.remove()?;
    }
    Ok(memory)
}

impl Memory {
    /// By the contender's name.
    pub fn of(&self, contender: &str) -> Option<&Sandbox> {
        self.rows.iter().find(|(name, ..)| name == contender).map(|(_, sandbox, _)| sandbox)
    }

    /// Those of ours.
    pub fn ours(&self) -> impl Iterator<Item = (&str, &Sandbox)> {
        self.rows.iter().filter(|(_, _, ours)| *ours).map(|(name, sandbox, _)| (name.as_str(), sandbox))
    }

    /// A table in MB.
    pub fn markdown(&self) -> String {
        let mut out = String::from("an idle sandbox, MB of PSS\n\n");
        let head = ["all", "guest's", "buffer", "VMM", "daemon", "files", "other"];
        let _ = write!(out, "| {:<15} |", "");
        for name in head {
            let _ = write!(out, " {name:>7} |");
        }
        let _ = writeln!(out, "\n|{:-<17}|{}", "", "--------:|".repeat(head.len()));
        for (name, s, _) in &self.rows {
            let _ = write!(out, "| {name:<15} |");
            let all = s.total_kib();
            for kib in [all, s.guest_kib, s.buffer_kib, s.vmm_kib, s.daemon_kib, s.files_kib, s.other_kib] {
                let _ = write!(out, " {:>7.1} |", kib as f64 / KIB);
            }
            out.push('\n');
        }
        out
    }

    /// In KiB.
    pub fn json(&self) -> Value {
        self.rows
            .iter()
            .map(|(name, sandbox, _)| (name.clone(), sandbox.json()))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_is_the_sum_of_its_parts() {
        let sandbox =
            Sandbox { guest_kib: 40960, buffer_kib: 20480, vmm_kib: 10240, daemon_kib: 3072, ..Sandbox::default() };
        assert!((sandbox.total_mb() - 73.0).abs() < 1e-9);
        let memory =
            Memory { rows: vec![("runc".into(), Sandbox::default(), false), ("kata pool".into(), sandbox, true)] };
        assert_eq!(memory.ours().count(), 1);
        assert!(memory.of("kata pool").is_some() && memory.of("x").is_none());
        let text = memory.markdown();
        assert!(text.contains("| kata pool       |    73.0 |    40.0 |    20.0 |    10.0 |     3.0 |"), "{text}");
    }
}
