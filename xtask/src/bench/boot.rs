//! The yardstick: how long QEMU takes to bring the same kernel to the first instruction of an init that does nothing.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{image, run};

/// What init says.
pub const READY: &str = "init-is-running";
/// A boot that takes longer has failed.
const DEADLINE: &str = "60";
/// As many as our driver plugs.
const ROOT_PORTS: usize = 8;
/// MiB, as our default.
const MEMORY: u32 = 1024;

/// The initrd of such a boot, with the busybox of `work/rootfs`: its init says [`READY`] and sleeps.
///
/// # Errors
/// No busybox, or a place that cannot be written.
pub fn initrd(work: &Path) -> Result<PathBuf> {
    let initrd = work.join("bare.img");
    let script = work.join("bare-init");
    std::fs::write(&script, format!("#!/bin/busybox sh\necho {READY}\nexec /bin/busybox sleep 1000\n"))?;
    let file = File::create(&initrd).with_context(|| format!("cannot write {}", initrd.display()))?;
    let busybox = work.join("rootfs/bin/busybox");
    image::write_with(BufWriter::new(file), &script, &[("bin/busybox", &busybox)], &[])?;
    Ok(initrd)
}

/// A VM of our driver's shape without anything of ours in it.
pub struct Bare {
    accel: String,
    kernel: PathBuf,
    initrd: PathBuf,
    log: PathBuf,
}

impl Bare {
    /// Makes the initrd with a shell script as init, in `work`.
    ///
    /// # Errors
    /// No busybox, or a place that cannot be written.
    pub fn prepare(accel: &str, kernel: &Path, work: &Path) -> Result<Self> {
        Ok(Bare {
            accel: accel.to_owned(),
            kernel: kernel.to_owned(),
            initrd: initrd(work)?,
            log: work.join("bare.log"),
        })
    }

    /// From the start of QEMU to init's first words.
    ///
    /// # Errors
    /// QEMU's, or a guest that does not get there; shows the console's last line.
    pub fn boot(&self) -> Result<Duration> {
        let program = format!("qemu-system-{}", std::env::consts::ARCH);
        let mut command: Command = run::cmd("timeout", ["--signal=KILL", DEADLINE, &program]);
        let machine = if std::env::consts::ARCH == "aarch64" { "virt" } else { "q35" };
        command.args(["-machine", &format!("{machine},memory-backend=m"), "-accel", &self.accel, "-cpu", "max"]);
        command.args(["-m", &MEMORY.to_string()]);
        command.args(["-object", &format!("memory-backend-memfd,id=m,size={MEMORY}M,share=on")]);
        command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"]);
        for port in 1..=ROOT_PORTS {
            command.args(["-device", &format!("pcie-root-port,id=rp{port},chassis={port},slot={port}")]);
        }
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initrd);
        let console = if machine == "virt" { "ttyAMA0" } else { "ttyS0" };
        command.args(["-append", &format!("console={console} panic=-1 quiet")]);
        // What it says when it is stopped is of no interest; why it did not start is.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&self.log)?);
        let start = Instant::now();
        let mut child = command.spawn().context("cannot start QEMU")?;
        let stdout = child.stdout.take().context("a piped stdout")?;
        let mut last = String::new();
        let mut took = None;
        for line in BufReader::new(stdout).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            if line.contains(READY) {
                took = Some(start.elapsed());
                break;
            }
            last = line;
        }
        // timeout passes the signal on to QEMU and dies of it itself.
        run::succeeds("kill", &["-TERM", &child.id().to_string()]);
        child.wait()?;
        match took {
            Some(took) => Ok(took),
            None => bail!(
                "the bare VM did not boot; QEMU said: {:?}; the last line on its console: {last:?}",
                std::fs::read_to_string(&self.log).unwrap_or_default().trim()
            ),
        }
    }
}
