//! What one QEMU costs beside another: the same machine, kernel and init, round by round in turn.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::check::{TCG, arguments};
use crate::bench::boot::{self, READY};
use crate::bench::stats::Samples;
use crate::kernel::remove_tree;
use crate::{demo, guest, run};

/// A machine that says nothing for so long has failed.
const SILENCE: Duration = Duration::from_secs(60);
/// A booted guest is let settle for so long before its memory is measured.
const SETTLE: Duration = Duration::from_millis(500);
/// MiB of the guest.
const MEMORY: u32 = 256;

/// What is measured of one binary.
#[derive(Default)]
struct Figures {
    greeting: Samples,
    answer: Samples,
    /// With no kernel to load, as where a template is restored.
    bare_answer: Samples,
    boot: Samples,
    memory: Vec<Memory>,
    libraries: usize,
    calls: Option<Calls>,
}

/// KiB of a process, by proportional set size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Memory {
    all: u64,
    anonymous: u64,
    files: u64,
    /// The guest's own, which is a memfd.
    guest: u64,
}

/// System calls from the start to the guest's init and the end.
#[derive(Debug, PartialEq, Eq)]
struct Calls {
    distinct: usize,
    all: u64,
}

/// Measures and prints a table.
///
/// # Errors
/// No kernel, or a QEMU that does not start or boot.
pub fn run(binaries: &[PathBuf], rounds: usize) -> Result<()> {
    ensure!(rounds > 0, "--rounds must be at least 1");
    let kernel = guest::tuned()?;
    let work = std::env::temp_dir().join(format!("kata-qemu-{}", std::process::id()));
    let result = measure(binaries, rounds, &kernel.path, &work);
    remove_tree(&work)?;
    print(binaries, rounds, &result?)
}

fn measure(binaries: &[PathBuf], rounds: usize, kernel: &Path, work: &Path) -> Result<Vec<Figures>> {
    demo::busybox_rootfs(&work.join("rootfs"))?;
    let initrd = boot::initrd(work)?;
    let mut all: Vec<Figures> = binaries.iter().map(|_| Figures::default()).collect();
    for round in 0..=rounds {
        for (binary, figures) in binaries.iter().zip(&mut all) {
            let one = || format!("measuring {}", binary.display());
            let (greeting, answer) = time_to_qmp(binary, Some(kernel)).with_context(one)?;
            let (_, bare_answer) = time_to_qmp(binary, None).with_context(one)?;
            figures.greeting.push_if(round > 0, greeting);
            figures.answer.push_if(round > 0, answer);
            figures.bare_answer.push_if(round > 0, bare_answer);
            let (took, vm) = boot_to_init(booting(binary, kernel, &initrd)).with_context(one)?;
            figures.boot.push_if(round > 0, took);
            std::thread::sleep(SETTLE);
            if round > 0 {
                figures.memory.push(memory(vm.child.id())?);
            }
            figures.libraries = libraries(vm.child.id())?;
        }
        eprintln!("    round {round} of {rounds}");
    }
    if run::succeeds("strace", &["-V"]) {
        for (binary, figures) in binaries.iter().zip(&mut all) {
            figures.calls = Some(calls(binary, kernel, &initrd, work)?);
        }
    } else {
        eprintln!("    there is no strace here (Debian package strace): system calls are not counted");
    }
    Ok(all)
}

/// A QEMU whose stdio is a socket with a time limit; killed when dropped.
struct Vm {
    child: Child,
    lines: BufReader<UnixStream>,
}

impl Drop for Vm {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Vm {
    fn start(mut command: Command) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(SILENCE))?;
        let theirs = OwnedFd::from(theirs);
        command.stdin(Stdio::from(theirs.try_clone()?)).stdout(Stdio::from(theirs));
        let shown = run::show(&command);
        let child = command.spawn().with_context(|| format!("cannot start `{shown}`"))?;
        Ok(Vm { child, lines: BufReader::new(ours) })
    }

    /// Reads until a line has this in it.
    fn until(&mut self, wanted: &str) -> Result<()> {
        let mut line = Vec::new();
        loop {
            let last = String::from_utf8_lossy(&line).trim().to_owned();
            line.clear();
            let got = self.lines.read_until(b'\n', &mut line);
            let got = got.with_context(|| format!("it fell silent; its last line: {last:?}"))?;
            ensure!(got > 0, "it ended; its last line: {last:?}");
            if String::from_utf8_lossy(&line).contains(wanted) {
                return Ok(());
            }
        }
    }
}

fn shaped(binary: &Path) -> Command {
    let mut command = Command::new(binary);
    // The firmware for all, and where QEMU brings none there is nothing to compare.
    command.args(arguments(std::env::consts::ARCH, TCG, MEMORY, std::env::consts::ARCH == "x86_64"));
    command
}

/// From the start to the greeting, and to the first answer: the machine is complete only then.
fn time_to_qmp(binary: &Path, kernel: Option<&Path>) -> Result<(Duration, Duration)> {
    let mut command = shaped(binary);
    command.args(["-S", "-serial", "null", "-qmp", "stdio"]);
    if let Some(kernel) = kernel {
        command.arg("-kernel").arg(kernel);
    }
    let start = Instant::now();
    let mut vm = Vm::start(command)?;
    vm.lines.get_mut().write_all(b"{\"execute\":\"qmp_capabilities\"}\n")?;
    vm.until("\"QMP\"")?;
    let greeting = start.elapsed();
    vm.until("\"return\"")?;
    Ok((greeting, start.elapsed()))
}

fn booting(binary: &Path, kernel: &Path, initrd: &Path) -> Command {
    let console = if std::env::consts::ARCH == "aarch64" { "ttyAMA0" } else { "ttyS0" };
    let mut command = shaped(binary);
    command.args(["-serial", "stdio", "-kernel"]).arg(kernel).arg("-initrd").arg(initrd);
    // The driver's parameters without KVM (crates/vmm-qemu/src/machine.rs).
    let params = "panic=-1 quiet maxcpus=1 lpj=10000000 noreplace-smp no_timer_check tsc=reliable swiotlb=noforce";
    command.args(["-append", &format!("console={console} {params}")]);
    command
}

fn boot_to_init(command: Command) -> Result<(Duration, Vm)> {
    let start = Instant::now();
    let mut vm = Vm::start(command)?;
    vm.until(READY)?;
    Ok((start.elapsed(), vm))
}

fn memory(pid: u32) -> Result<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("cannot read the memory of QEMU")?;
    Ok(parse_memory(&text))
}

fn parse_memory(rollup: &str) -> Memory {
    let of = |name: &str| {
        let line = rollup.lines().find_map(|l| l.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse().ok());
        line.unwrap_or_default()
    };
    Memory { all: of("Pss:"), anonymous: of("Pss_Anon:"), files: of("Pss_File:"), guest: of("Pss_Shmem:") }
}

/// Shared libraries that it has mapped, the loader included.
fn libraries(pid: u32) -> Result<usize> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).context("cannot read the mappings of QEMU")?;
    let files: BTreeSet<&str> = maps.lines().filter_map(|l| l.split_whitespace().nth(5)).collect();
    Ok(files.into_iter().filter(|f| f.ends_with(".so") || f.contains(".so.")).count())
}

fn calls(binary: &Path, kernel: &Path, initrd: &Path, work: &Path) -> Result<Calls> {
    let log = work.join("strace");
    let traced = booting(binary, kernel, initrd);
    let mut command = Command::new("strace");
    command.args(["-f", "-c", "-o"]).arg(&log).arg(traced.get_program()).args(traced.get_args());
    // QEMU says there that it was told to end.
    command.stderr(Stdio::null());
    let (_, mut vm) = boot_to_init(command)?;
    // strace ends when QEMU does; a killed strace would leave it running.
    let strace = vm.child.id();
    let children = fs::read_to_string(format!("/proc/{strace}/task/{strace}/children"))?;
    for pid in children.split_whitespace() {
        run::succeeds("kill", &["-TERM", pid]);
    }
    vm.child.wait()?;
    Ok(parse_calls(&fs::read_to_string(&log).context("strace wrote no summary")?))
}

/// "% time, seconds, usecs/call, calls, errors if there were any, syscall", a line each.
fn parse_calls(summary: &str) -> Calls {
    let lines = summary.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let percent: f64 = words.first()?.parse().ok()?;
        let name = *words.last()?;
        (percent >= 0.0 && name != "total").then_some(words.get(3)?.parse::<u64>().ok()?)
    });
    let counts: Vec<u64> = lines.collect();
    Calls { distinct: counts.len(), all: counts.iter().sum() }
}

fn print(binaries: &[PathBuf], rounds: usize, all: &[Figures]) -> Result<()> {
    println!(
        "\n{rounds} rounds, interleaved; milliseconds as min/median/max; MB of PSS as medians; guest of {MEMORY} MiB\n"
    );
    for (binary, figures) in binaries.iter().zip(all) {
        let version = run::output(&mut run::cmd(&binary.to_string_lossy(), ["-version"]))?;
        println!("{}\n    {}", binary.display(), version.lines().next().unwrap_or_default());
        println!(
            "    binary            {:.1} MB, {} shared libraries",
            mb(binary.metadata()?.len() >> 10),
            figures.libraries
        );
        println!("    to the greeting   {}", figures.greeting);
        println!("    to its answer     {}", figures.answer);
        println!("      with no kernel  {}", figures.bare_answer);
        println!("    boot to init      {}", figures.boot);
        let median = |of: fn(&Memory) -> u64| {
            let mut sorted: Vec<u64> = figures.memory.iter().map(of).collect();
            sorted.sort_unstable();
            mb(sorted.get(sorted.len() / 2).copied().unwrap_or_default())
        };
        println!(
            "    PSS, idle         {:.1}: anonymous {:.1}, files {:.1}, guest {:.1}",
            median(|m| m.all),
            median(|m| m.anonymous),
            median(|m| m.files),
            median(|m| m.guest)
        );
        if let Some(calls) = &figures.calls {
            println!("    system calls      {} different, {} in all", calls.distinct, calls.all);
        }
    }
    Ok(())
}

fn mb(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_and_strace_say_is_understood() {
        let rollup = "Rss: 9 kB\nPss:   40 kB\nPss_Anon:  10 kB\nPss_File: 20 kB\nPss_Shmem: 10 kB\n";
        assert_eq!(parse_memory(rollup), Memory { all: 40, anonymous: 10, files: 20, guest: 10 });
        let summary = "% time     seconds  usecs/call     calls    errors syscall\n\
                       ------ ----------- ----------- --------- --------- ----------------\n\
                       50.00    0.001000           1        10         2 futex\n\
                       50.00    0.001000           1         5           read\n\
                       ------ ----------- ----------- --------- --------- ----------------\n\
                       100.00    0.002000           1        15         2 total\n";
        assert_eq!(parse_calls(summary), Calls { distinct: 2, all: 15 });
    }
}
