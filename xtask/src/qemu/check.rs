//! Whether a QEMU that was just built is one that the driver can use: asked of itself, before it is kept.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::recipe::Recipe;
use super::{DATA, binary};
use crate::run;

/// Seconds after which a QEMU that does not answer is killed.
const DEADLINE: &str = "30";
/// Devices that need nothing behind them, plugged into root ports as the driver does.
const PLUGGED: &[(&str, &str)] = &[
    ("virtio-rng-pci", "rp1"),
    ("virtio-balloon-pci", "rp2"),
    ("virtio-scsi-pci", "rp3"),
    ("virtio-net-pci", "rp4"),
    ("virtio-mem-pci", "rp5"),
    ("virtio-blk-pci", "rp6"),
];

/// Checks what is in `prefix`.
///
/// # Errors
/// What is missing, or does not work.
pub fn check(recipe: &Recipe, prefix: &Path) -> Result<()> {
    let qemu = prefix.join(binary(&recipe.arch));
    let headers = run::output(&mut run::cmd("readelf", [Path::new("-dlW"), &qemu]))?;
    ensure!(!headers.contains("INTERP") && !headers.contains("(NEEDED)"), "it needs shared libraries:\n{headers}");

    // On stdout, and of some versions on stderr.
    let help = run::cmd(&qemu.to_string_lossy(), ["-device", "help"]).output()?;
    let help = format!("{}{}", String::from_utf8_lossy(&help.stdout), String::from_utf8_lossy(&help.stderr));
    let missing = missing(&recipe.required, &help);
    ensure!(missing.is_empty(), "it lacks what packaging/qemu/required.txt names: {}", missing.join(", "));

    let firmware = prefix.join(DATA).join("qboot.rom");
    let mut running = Running::start(&qemu, &recipe.arch, firmware.exists())?;
    let result = running.ask_for_all().and_then(|()| running.end());
    drop(running.child.kill());
    drop(running.child.wait());
    result
}

/// The required devices that `-device help` does not name.
fn missing<'a>(required: &'a [String], help: &str) -> Vec<&'a str> {
    required.iter().filter(|name| !help.contains(&format!("name \"{name}\""))).map(String::as_str).collect()
}

/// Our driver's shape (crates/vmm-qemu/src/command.rs), with QMP on stdio.
pub fn arguments(arch: &str, accel: &str, memory: u32, quick_firmware: bool) -> Vec<String> {
    let mut args = Vec::new();
    let mut add = |words: &[&str]| args.extend(words.iter().map(|&w| w.to_owned()));
    let (machine, cpu) = match arch {
        "aarch64" => ("virt,gic-version=max", "max"),
        _ => ("q35,sata=off,smbus=off,usb=off,vmport=off", "max,la57=off"),
    };
    add(&["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    add(&["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
    add(&["-machine", &format!("{machine},memory-backend=ram"), "-accel", accel, "-cpu", cpu]);
    add(&["-smp", "cpus=1,maxcpus=1,sockets=1,cores=1,threads=1"]);
    add(&["-m", &format!("size={memory}M,slots=1,maxmem={}M", memory + 1024)]);
    add(&["-object", &format!("memory-backend-memfd,id=ram,size={memory}M,share=on")]);
    if quick_firmware {
        add(&["-bios", "qboot.rom"]);
    }
    add(&["-device", "virtio-serial-pci,id=serial,max_ports=2,bus=pcie.0,addr=0x1,disable-legacy=on"]);
    for port in 1..=8 {
        let slot = port + 1;
        add(&["-device", &format!("pcie-root-port,id=rp{port},bus=pcie.0,addr={slot:#x},chassis={slot}")]);
    }
    args
}

/// The accelerator of the driver without KVM.
pub const TCG: &str = "tcg,thread=multi,tb-size=32";

/// A QEMU that has been started, stopped before its first instruction.
struct Running {
    child: Child,
    answers: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Running {
    fn start(qemu: &Path, arch: &str, quick_firmware: bool) -> Result<Self> {
        // Outlives no check: killed by timeout at last.
        let mut command: Command = run::cmd("timeout", ["--signal=KILL", DEADLINE]);
        command
            .arg(qemu)
            .args(arguments(arch, TCG, 128, quick_firmware))
            .args(["-S", "-serial", "null", "-qmp", "stdio"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start `timeout`")?;
        let stdout = child.stdout.take().context("a piped stdout")?;
        let mut running = Running { child, answers: BufReader::new(stdout).lines() };
        let greeting = running.line()?;
        ensure!(greeting.get("QMP").is_some(), "it does not greet, but says: {greeting}");
        running.execute("qmp_capabilities", &Value::Null)?;
        Ok(running)
    }

    fn line(&mut self) -> Result<Value> {
        let line = self.answers.next().context("QEMU ended, or did not answer in time; what it said is above")??;
        serde_json::from_str(&line).with_context(|| format!("QEMU said {line:?}"))
    }

    fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = if arguments.is_null() {
            json!({ "execute": command })
        } else {
            json!({ "execute": command, "arguments": arguments })
        };
        let stdin = self.child.stdin.as_mut().context("a piped stdin")?;
        writeln!(stdin, "{request}").with_context(|| format!("cannot send {command}"))?;
        loop {
            let mut answer = self.line()?;
            if let Some(error) = answer.get("error") {
                bail!("{request} was refused: {}", error["desc"]);
            }
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
            // An event.
        }
    }

    /// Everything that the driver asks of a machine and that can be had without a guest.
    fn ask_for_all(&mut self) -> Result<()> {
        self.execute(
            "object-add",
            &json!({ "qom-type": "memory-backend-memfd", "id": "hot", "size": 512u64 << 20, "share": true, "reserve": false }),
        )?;
        self.execute(
            "blockdev-add",
            &json!({ "node-name": "disk", "driver": "raw", "read-only": true,
                     "file": { "driver": "file", "filename": "/proc/self/exe", "read-only": true } }),
        )?;
        for (driver, port) in PLUGGED {
            let mut device = json!({ "driver": driver, "id": driver, "bus": port });
            match *driver {
                "virtio-mem-pci" => device["memdev"] = json!("hot"),
                "virtio-blk-pci" => device["drive"] = json!("disk"),
                // Its boot ROM is nothing that a container's machine needs, and is not built.
                "virtio-net-pci" => device["romfile"] = json!(""),
                _ => {}
            }
            self.execute("device_add", &device)?;
        }
        let capability = json!({ "capabilities": [{ "capability": "x-ignore-shared", "state": true }] });
        self.execute("migrate-set-capabilities", &capability)?;
        let commands = self.execute("query-commands", &Value::Null)?;
        let names: Vec<&str> = commands.as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()).collect();
        for command in
            ["getfd", "closefd", "add-fd", "remove-fd", "chardev-add", "blockdev-del", "migrate", "device_del"]
        {
            ensure!(names.contains(&command), "its control channel lacks {command}");
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        self.execute("quit", &Value::Null)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "it ended with {status}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_is_found_missing() {
        let help = "name \"virtio-rng-pci\", bus PCI, alias \"virtio-rng\"\nname \"virtio-mem\", bus virtio-bus\n";
        let required = ["virtio-rng-pci".to_owned(), "virtio-mem-pci".to_owned(), "virtio-rng".to_owned()];
        assert_eq!(missing(&required, help), ["virtio-mem-pci", "virtio-rng"]);
    }

    #[test]
    fn the_shape_is_the_drivers() {
        let driver = std::fs::read_to_string(crate::paths::repo_root().join("crates/vmm-qemu/src/command.rs")).unwrap();
        let shape = arguments("x86_64", TCG, 128, true);
        let of = |flag: &str| shape[shape.iter().position(|a| a == flag).unwrap() + 1].clone();
        assert!(driver.contains(&of("-sandbox")), "the driver's -sandbox is another now");
        // The buffer's size depends on how the guest begins.
        let accel = TCG.trim_end_matches(|c: char| c.is_ascii_digit());
        assert!(driver.contains(accel), "the driver's -accel is another now");
    }
}
