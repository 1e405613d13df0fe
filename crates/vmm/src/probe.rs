//! Which accelerator works here, found out by running one.
//!
//! `/dev/kvm` may exist and yet not run an ordinary guest: where KVM itself is emulated, kernel-mode code crawls
//! instruction by instruction, and QEMU hangs or aborts. So a loop of a million iterations runs in 64-bit kernel mode
//! under a deadline, in a process of its own that can be killed.

use std::fmt;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// The word after the helper mode that makes it the probe.
pub(crate) const PROBE_WORD: &str = "probe-kvm";
/// Iterations of the loop: about a millisecond on hardware, over a second where KVM emulates.
const ITERATIONS: u32 = 1_000_000;
/// How long the loop may take.
const LOOP_DEADLINE: Duration = Duration::from_millis(50);
/// How long everything else of the probe may take: starting a process, making a VM.
const SETUP_DEADLINE: Duration = Duration::from_secs(2);

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// The processor, through KVM.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg",
        })
    }
}

/// An accelerator and why it was chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccelChoice {
    /// What was chosen.
    pub accel: Accel,
    /// Whether configuration demanded it.
    pub forced: bool,
    /// Why, in words for a user.
    pub reason: String,
}

/// What the probe of KVM found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccelVerdict {
    /// Whether KVM runs ordinary guests here.
    pub usable: bool,
    /// What was seen, in words for a user.
    pub reason: String,
}

/// Chooses the accelerator: the forced one, else KVM if it works, else TCG. The probe's verdict is kept per boot in
/// the run directory. Blocks for two seconds at most, once per boot.
pub fn choose_accel(forced: Option<Accel>) -> AccelChoice {
    if let Some(accel) = forced {
        return AccelChoice { accel, forced: true, reason: "the configuration demands it".to_owned() };
    }
    let verdict = cached_verdict(Path::new(kata_types::HOST_RUN_DIR));
    let accel = if verdict.usable { Accel::Kvm } else { Accel::Tcg };
    AccelChoice { accel, forced: false, reason: verdict.reason }
}

/// The verdict of this boot; probes if there is none yet. A cache that cannot be read or written only costs time.
fn cached_verdict(run_dir: &Path) -> AccelVerdict {
    let Some(path) = cache_path(run_dir) else {
        return probe_kvm();
    };
    if let Ok(text) = std::fs::read(&path)
        && let Ok(verdict) = serde_json::from_slice(&text)
    {
        return verdict;
    }
    let verdict = probe_kvm();
    if let Err(e) = store(&path, &verdict) {
        tracing::debug!("cannot keep the accelerator's verdict in {}: {e}", path.display());
    }
    verdict
}

fn cache_path(run_dir: &Path) -> Option<PathBuf> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(run_dir.join(format!("accel-{}", boot.trim())))
}

fn store(path: &Path, verdict: &AccelVerdict) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let partial = path.with_extension(std::process::id().to_string());
    std::fs::write(&partial, serde_json::to_vec(verdict)?)?;
    std::fs::rename(&partial, path)
}

/// Runs the probe now, in a process of its own. Never hangs: that process is killed at the deadline, and abandoned if
/// even that does not end it.
pub fn probe_kvm() -> AccelVerdict {
    let no = |reason: String| AccelVerdict { usable: false, reason };
    if !Path::new("/dev/kvm").exists() {
        return no("there is no /dev/kvm".to_owned());
    }
    let spawned = Command::new(crate::spawn::self_exe())
        .arg0("kata")
        .args([crate::spawn::HELPER_MODE, PROBE_WORD])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(e) => return no(format!("the probe of KVM could not be started: {e}")),
    };
    let report = child.stdout.take().map(|out| read_report(out, Instant::now() + SETUP_DEADLINE)).unwrap_or_default();
    end(child);
    judge(&report)
}

/// Kills the probing process and reaps it. One that does not die is left, not waited for.
fn end(mut child: std::process::Child) {
    let deadline = Instant::now() + Duration::from_secs(1);
    // It may have ended by itself; then there is nothing to kill.
    let _ = child.kill();
    while Instant::now() < deadline {
        match child.try_wait() {
            Ok(None) => std::thread::sleep(Duration::from_millis(1)),
            _ => return,
        }
    }
    tracing::warn!("the probe of KVM does not end; left behind as process {}", child.id());
}

/// Reads what the probe prints until it closes, the setup's deadline passes, or the loop, once begun, takes too long.
fn read_report(mut out: std::process::ChildStdout, mut deadline: Instant) -> String {
    let mut report = String::new();
    let mut bytes = [0; 256];
    let mut running = false;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout =
            rustix::event::Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut fds = [rustix::event::PollFd::new(&out, rustix::event::PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => continue,
            Ok(n) if n > 0 => {}
            _ => return report,
        }
        match out.read(&mut bytes) {
            Ok(n) if n > 0 && report.len() < 4096 => report.push_str(&String::from_utf8_lossy(&bytes[..n])),
            _ => return report,
        }
        if !running && report.starts_with("running\n") {
            running = true;
            // Twice the loop's own: this side may be scheduled late.
            deadline = Instant::now() + 2 * LOOP_DEADLINE;
        }
    }
}

/// What the probe's words mean: "running", then `ok MICROSECONDS` or `bad REASON`.
fn judge(report: &str) -> AccelVerdict {
    let mut verdict = AccelVerdict { usable: false, reason: "the probe of KVM said nothing in time".to_owned() };
    for line in report.lines() {
        match line.split_once(' ') {
            None if line == "running" => {
                verdict.reason = format!(
                    "/dev/kvm exists but does not run a guest at speed: {ITERATIONS} iterations did not end within {} ms",
                    2 * LOOP_DEADLINE.as_millis()
                );
            }
            Some(("ok", micros)) => {
                let took = micros.parse().map(Duration::from_micros).unwrap_or(Duration::MAX);
                verdict.usable = took <= LOOP_DEADLINE;
                let ms = took.as_secs_f64() * 1e3;
                verdict.reason = if verdict.usable {
                    format!("KVM ran {ITERATIONS} iterations in {ms:.1} ms")
                } else {
                    format!("/dev/kvm exists but is too slow: {ITERATIONS} iterations took {ms:.0} ms")
                };
            }
            Some(("bad", reason)) => verdict.reason = format!("KVM cannot run a guest: {reason}"),
            _ => {}
        }
    }
    verdict
}

/// The probing process: prints "running" before the loop, then the outcome.
pub(crate) fn probe_main() -> ExitCode {
    match run_loop() {
        Ok(took) => println!("ok {}", took.as_micros()),
        Err(reason) => println!("bad {reason}"),
    }
    ExitCode::SUCCESS
}

#[cfg(target_arch = "x86_64")]
use x86_64::run_loop;

/// Not written for this architecture; a guest is then run by TCG unless the configuration demands KVM.
#[cfg(not(target_arch = "x86_64"))]
fn run_loop() -> Result<Duration, String> {
    Err(format!("the probe is not written for {}; kvm can be forced in the configuration", std::env::consts::ARCH))
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::time::{Duration, Instant};

    use kvm_bindings::{kvm_regs, kvm_segment};
    use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};

    use super::ITERATIONS;

    /// Where the code is in guest memory; the page tables are before it, a page each.
    const CODE: usize = 0x3000;

    /// Makes a VM with one vCPU in 64-bit kernel mode and times the loop.
    pub(super) fn run_loop() -> Result<Duration, String> {
        let kvm = Kvm::new().map_err(failed("open /dev/kvm"))?;
        let vm = kvm.create_vm().map_err(failed("create a VM"))?;
        kata_sys::process::kvm::give_memory(&vm, &guest_image()).map_err(|e| format!("give memory: {e}"))?;
        let mut vcpu = vm.create_vcpu(0).map_err(failed("create a vCPU"))?;
        set_long_mode(&vcpu).map_err(failed("set the vCPU's registers"))?;
        println!("running");
        let begin = Instant::now();
        match vcpu.run().map_err(failed("run"))? {
            VcpuExit::Hlt => Ok(begin.elapsed()),
            other => Err(format!("the guest ended with {other:?}")),
        }
    }

    fn failed(what: &str) -> impl Fn(kvm_ioctls::Error) -> String + '_ {
        move |e| format!("{what}: {e}")
    }

    /// Page tables that map the first 2 MiB onto themselves, and the loop.
    fn guest_image() -> Vec<u8> {
        const PRESENT_WRITABLE: u64 = 0b11;
        const LARGE: u64 = 0x80;
        let mut image = vec![0; CODE + 0x1000];
        let mut entry = |at: usize, value: u64| image[at..at + 8].copy_from_slice(&value.to_le_bytes());
        entry(0x0000, 0x1000 | PRESENT_WRITABLE);
        entry(0x1000, 0x2000 | PRESENT_WRITABLE);
        entry(0x2000, LARGE | PRESENT_WRITABLE);
        let mut code = vec![0xb9]; // mov ecx, ITERATIONS
        code.extend(ITERATIONS.to_le_bytes());
        code.extend([0xff, 0xc9]); // again: dec ecx
        code.extend([0x75, 0xfc]); // jnz again
        code.push(0xf4); // hlt
        image[CODE..CODE + code.len()].copy_from_slice(&code);
        image
    }

    /// Long mode with paging, flat segments, privilege level 0.
    fn set_long_mode(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
        let mut sregs = vcpu.get_sregs()?;
        let flat = kvm_segment { limit: u32::MAX, present: 1, s: 1, g: 1, ..kvm_segment::default() };
        sregs.cs = kvm_segment { selector: 8, type_: 11, l: 1, ..flat };
        let data = kvm_segment { selector: 16, type_: 3, db: 1, ..flat };
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.cr0 = 0x8000_0031; // PG, NE, ET, PE
        sregs.cr3 = 0;
        sregs.cr4 = 0x20; // PAE
        sregs.efer = 0x500; // LMA, LME
        vcpu.set_sregs(&sregs)?;
        vcpu.set_regs(&kvm_regs { rip: CODE as u64, rsp: 0x2ff0, rflags: 2, ..kvm_regs::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_follows_from_the_probes_words() {
        assert!(judge("running\nok 900\n").usable);
        assert!(judge("running\nok 50000\n").usable);
        let slow = judge("running\nok 1230000\n");
        assert!(!slow.usable && slow.reason.contains("1230 ms"), "{slow:?}");
        let hung = judge("running\n");
        assert!(!hung.usable && hung.reason.contains("did not end"), "{hung:?}");
        assert!(!judge("").usable);
        let bad = judge("bad open /dev/kvm: Permission denied");
        assert!(!bad.usable && bad.reason.contains("Permission denied"), "{bad:?}");
        assert!(!judge("ok nonsense").usable);
    }

    #[test]
    fn a_kept_verdict_is_used() {
        let dir = std::env::temp_dir().join(format!("kata-accel-test-{}", std::process::id()));
        let verdict = AccelVerdict { usable: true, reason: "kept".to_owned() };
        store(&cache_path(&dir).unwrap(), &verdict).unwrap();
        assert_eq!(cached_verdict(&dir), verdict);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
