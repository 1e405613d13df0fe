//! The floor: how long QEMU takes to bring the same kernel to an init that does nothing, and to bring it back from where
//! it was saved.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::net::Tap;
use crate::{image, run};

/// What init says first.
pub const READY: &str = "init-is-running";
/// What it says whenever it is asked.
const ANSWER: &str = "init-is-here";
/// A boot that takes longer has failed.
const DEADLINE: &str = "60";
/// Saving takes no longer.
const SAVE: Duration = Duration::from_secs(30);
/// As many as our driver plugs.
const ROOT_PORTS: usize = 8;
/// What boots faster than a BIOS.
const QUICK_FIRMWARE: &str = "qboot.rom";
/// MiB, as our default.
const MEMORY: u32 = 1024;

/// The initrd of such a boot, with the busybox of `work/rootfs`: its init says [`READY`], and then an answer to each line.
///
/// # Errors
/// No busybox, or a place that cannot be written.
pub fn initrd(work: &Path) -> Result<PathBuf> {
    let initrd = work.join("bare.img");
    let script = work.join("bare-init");
    let answering = format!("while read line; do echo {ANSWER}; done");
    // Where nobody can ask, it sleeps.
    fs::write(&script, format!("#!/bin/busybox sh\necho {READY}\n{answering}\nexec /bin/busybox sleep 1000\n"))?;
    let file = File::create(&initrd).with_context(|| format!("cannot write {}", initrd.display()))?;
    let busybox = work.join("rootfs/bin/busybox");
    image::write_with(BufWriter::new(file), &script, &[("bin/busybox", &busybox)], &[])?;
    Ok(initrd)
}

/// A VM of our driver's shape without anything of ours in it.
pub struct Bare {
    qemu: PathBuf,
    accel: String,
    kernel: PathBuf,
    initrd: PathBuf,
    log: PathBuf,
    /// Where it is saved; what memory is restored to must be memory as well.
    saved: PathBuf,
    memory: PathBuf,
    is_saved: bool,
}

/// Where a VM begins.
enum From {
    Kernel,
    State,
}

impl Bare {
    /// With the QEMU, the accelerator and the kernel that `runtime`, a kata-runtime, says it uses; `work` gets the initrd.
    ///
    /// # Errors
    /// What it says is not understood, no busybox, or a place that cannot be written.
    pub fn prepare(mut runtime: Command, work: &Path) -> Result<Self> {
        let env: Value = serde_json::from_str(&run::output(runtime.args(["env", "--json"]))?)?;
        let word =
            |value: &Value| value.as_str().map(str::to_owned).context("`kata-runtime env` says less than it did");
        let qemu = &env["configuration"]["hypervisor"]["qemu"];
        let memory = Path::new("/dev/shm").join(format!("kata-bench-{}", std::process::id()));
        Ok(Bare {
            qemu: word(&qemu["path"])?.into(),
            accel: word(&env["host"]["accelerator"])?,
            kernel: word(&qemu["kernel"])?.into(),
            initrd: initrd(work)?,
            log: work.join("bare.log"),
            saved: work.join("bare.saved"),
            memory,
            is_saved: false,
        })
    }

    /// From the start of QEMU to init's first words.
    ///
    /// # Errors
    /// QEMU's, or a guest that does not get there; shows the console's last line.
    pub fn boot(&self) -> Result<Duration> {
        let start = Instant::now();
        let mut vm = self.start(From::Kernel, None)?;
        vm.says(READY)?;
        Ok(start.elapsed())
    }

    /// From the copy of the saved memory to init's answer.
    ///
    /// # Errors
    /// As of [`Bare::boot`].
    pub fn restore(&mut self) -> Result<Duration> {
        if !self.is_saved {
            self.save()?;
            self.is_saved = true;
        }
        let start = Instant::now();
        let copied = self.saved.with_extension("memory");
        run::check(run::cmd("cp", ["--sparse=always"]).arg(&copied).arg(&self.memory))?;
        let state = self.saved.with_extension("state");
        let monitor = self.saved.with_extension("monitor");
        drop(fs::remove_file(&monitor));
        let mut vm = self.start(From::State, Some(&monitor))?;
        let mut to = connect(&monitor)?;
        ask(&mut to, "")?;
        ask(&mut to, "migrate_set_capability x-ignore-shared on")?;
        ask(&mut to, &format!("migrate_incoming \"exec:cat {}\"", state.display()))?;
        let mut stdin = vm.child.stdin.take().context("a piped stdin")?;
        // What is written before the guest goes on is lost, so it is asked again and again.
        let asking = std::thread::spawn(move || {
            while stdin.write_all(b"\n").and_then(|()| stdin.flush()).is_ok() {
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let answered = vm.says(ANSWER).map(|()| start.elapsed());
        drop(vm);
        drop(asking.join());
        answered
    }

    /// A VM that serves on a network: in a network namespace, with this initrd and a card on this tap.
    ///
    /// # Errors
    /// As of [`Bare::boot`].
    pub fn with_card(&self, netns: &str, tap: &Tap, initrd: &Path) -> Result<Vm<'_>> {
        let mut command = self.command("ip", &["netns", "exec", netns, "timeout", "--signal=KILL", DEADLINE]);
        drop(fs::remove_file(&self.memory));
        self.boots(&mut command, initrd);
        command.args(["-netdev", &format!("tap,id=net,ifname={},script=no,downscript=no,vhost=off", tap.name)]);
        command.args(["-device", &format!("virtio-net-pci,netdev=net,bus=rp1,romfile=,mac={}", tap.mac)]);
        let mut vm = self.spawn(command)?;
        vm.says(READY)?;
        Ok(vm)
    }

    /// As our driver has it: beside our own QEMU, or the distribution's.
    fn has_quick_firmware(&self) -> bool {
        let own = self.qemu.ancestors().nth(3).map(|prefix| prefix.join("share/kata-containers/qemu"));
        let dirs = own.into_iter().chain([PathBuf::from("/usr/share/qemu")]);
        std::env::consts::ARCH == "x86_64" && dirs.into_iter().any(|dir| dir.join(QUICK_FIRMWARE).exists())
    }

    fn save(&self) -> Result<()> {
        let monitor = self.saved.with_extension("monitor");
        let mut vm = self.start(From::Kernel, Some(&monitor))?;
        vm.says(READY)?;
        let mut to = connect(&monitor)?;
        ask(&mut to, "")?;
        ask(&mut to, "migrate_set_capability x-ignore-shared on")?;
        ask(&mut to, &format!("migrate \"exec:cat > {}\"", self.saved.with_extension("state").display()))?;
        let start = Instant::now();
        while !ask(&mut to, "info migrate")?.contains("completed") {
            ensure!(start.elapsed() < SAVE, "the bare VM cannot be saved");
            std::thread::sleep(Duration::from_millis(20));
        }
        let to = self.saved.with_extension("memory");
        run::check(run::cmd("cp", ["--sparse=always"]).arg(&self.memory).arg(to))
    }

    fn start(&self, from: From, monitor: Option<&Path>) -> Result<Vm<'_>> {
        let mut command = self.command("timeout", &["--signal=KILL", DEADLINE]);
        match from {
            From::Kernel => {
                // A guest must not find what another one left.
                drop(fs::remove_file(&self.memory));
                self.boots(&mut command, &self.initrd);
            }
            From::State => {
                command.args(["-incoming", "defer"]);
            }
        }
        if let Some(monitor) = monitor {
            command.args(["-monitor", &format!("unix:{},server,nowait", monitor.display())]);
        }
        self.spawn(command)
    }

    /// The machine, started by a program and the words before its name.
    fn command(&self, program: &str, words: &[&str]) -> Command {
        let mut command: Command = run::cmd(program, words);
        command.arg(&self.qemu);
        let (machine, cpu) = match std::env::consts::ARCH {
            "aarch64" => ("virt,gic-version=max", "max"),
            _ => ("q35,sata=off,smbus=off,usb=off,vmport=off", "max,la57=off"),
        };
        command.args(["-machine", &format!("{machine},memory-backend=m"), "-accel", &self.accel, "-cpu", cpu]);
        if self.has_quick_firmware() {
            command.args(["-bios", QUICK_FIRMWARE]);
        }
        command.args(["-m", &MEMORY.to_string()]);
        let memory = format!("memory-backend-file,id=m,size={MEMORY}M,share=on,mem-path={}", self.memory.display());
        command.args(["-object", &memory]);
        command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"]);
        for port in 1..=ROOT_PORTS {
            command.args(["-device", &format!("pcie-root-port,id=rp{port},chassis={port},slot={port}")]);
        }
        command
    }

    fn boots(&self, command: &mut Command, initrd: &Path) {
        let console = if std::env::consts::ARCH == "aarch64" { "ttyAMA0" } else { "ttyS0" };
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(initrd);
        command.args(["-append", &format!("console={console} panic=-1 quiet")]);
    }

    fn spawn(&self, mut command: Command) -> Result<Vm<'_>> {
        // What it says when it is stopped is of no interest; why it did not start is.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(&self.log)?);
        let mut child = command.spawn().context("cannot start QEMU")?;
        let out = BufReader::new(child.stdout.take().context("a piped stdout")?);
        Ok(Vm { child, out, log: &self.log })
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.memory));
    }
}

/// Waits for the monitor's socket, which QEMU makes when it starts.
fn connect(monitor: &Path) -> Result<UnixStream> {
    let start = Instant::now();
    loop {
        match UnixStream::connect(monitor) {
            Ok(to) => {
                to.set_read_timeout(Some(SAVE))?;
                return Ok(to);
            }
            Err(err) if start.elapsed() > SAVE => return Err(err).context("QEMU's monitor"),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// What QEMU's monitor answers, up to its prompt.
fn ask(to: &mut UnixStream, command: &str) -> Result<String> {
    if !command.is_empty() {
        to.write_all(format!("{command}\n").as_bytes())?;
    }
    let mut said = Vec::new();
    let mut byte = [0];
    while !said.ends_with(b"(qemu) ") {
        ensure!(to.read(&mut byte)? == 1, "QEMU's monitor ended at `{command}`");
        said.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// A running QEMU; killed on drop.
pub struct Vm<'a> {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
    log: &'a Path,
}

impl Vm<'_> {
    /// Waits for a line with `word` on the console.
    fn says(&mut self, word: &str) -> Result<()> {
        let mut last = String::new();
        for line in self.out.by_ref().split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            if line.contains(word) {
                return Ok(());
            }
            last = line;
        }
        bail!(
            "the bare VM did not say {word:?}; QEMU said: {:?}; the last line on its console: {last:?}",
            fs::read_to_string(self.log).unwrap_or_default().trim()
        )
    }
}

impl Drop for Vm<'_> {
    fn drop(&mut self) {
        // timeout passes the signal on to QEMU and dies of it itself.
        run::succeeds("kill", &["-TERM", &self.child.id().to_string()]);
        drop(self.child.wait());
    }
}
