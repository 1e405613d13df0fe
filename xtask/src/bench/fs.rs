//! File systems: the share of a sandbox against the host's own, by the same program. Block devices are not measured: no
//! container gets one yet.

use std::fmt::Write;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Ground;
use super::contender::Contender;
use super::engine::oci;
use super::kata::{Build, Kata};
use super::program::{self, Step, parse};
use crate::run;

/// What is run; see there.
const PROBE: &str = include_str!("fs/probe.rs");
/// The program's own module, so that lints and the compiler see it.
#[cfg(test)]
#[allow(dead_code)]
mod probe;

/// Bytes of the files that are read, as the probe has it.
const SIZE: usize = 256 << 20;
/// Small files.
const FILES: u32 = 25_000;

/// What both said.
pub struct Files {
    host: Vec<Step>,
    guest: Vec<Step>,
}

/// An overlay of the image's files, unmounted on drop.
struct Overlay(PathBuf);

impl Overlay {
    fn mount(dir: &Path, lower: &Path) -> Result<Self> {
        let at = |name: &str| dir.join(name);
        for name in ["upper", "scratch", "root"] {
            fs::create_dir_all(at(name))?;
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            at("upper").display(),
            at("scratch").display()
        );
        run::check(run::cmd("mount", ["-t", "overlay", "overlay", "-o", &options]).arg(at("root")))?;
        Ok(Overlay(at("root")))
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        run::succeeds("umount", &[&self.0.to_string_lossy()]);
    }
}

/// Runs the probe on the host and in a sandbox: big files on a volume, small ones on the root, which is an overlay.
///
/// # Errors
/// The compiler's, the mount's, the run's.
pub fn measure(ground: &Ground, build: &Build, kata: &Kata) -> Result<Files> {
    let dir = ground.work.join("fs");
    let data = dir.join("data");
    fs::create_dir_all(&data)?;
    let overlay = Overlay::mount(&dir, &ground.rootfs)?;
    let root = &overlay.0;
    let probe = root.join("bin/probe");
    program::compile(PROBE, &dir, &probe)?;
    for mount_point in ["data", "tmp"] {
        fs::create_dir_all(root.join(mount_point))?;
    }

    fill(&data)?;
    let files = FILES.to_string();
    let mut on_host = run::cmd(&probe.to_string_lossy(), [&data, &root.join("tmp")]);
    let host = parse(&run::output(on_host.arg(&files))?)?;
    // New files: what the guest reads, it has not in its cache. The host has both in its own.
    fill(&data)?;
    let bundle = dir.join("bundle");
    let config = oci::bundle(&bundle, build, root, &["/bin/probe", "/data", "/tmp", &files])?;
    let mut spec: Value = serde_json::from_str(&fs::read_to_string(&config)?)?;
    spec["root"]["readonly"] = json!(false);
    let mounts = spec["mounts"].as_array_mut().context("a spec without mounts")?;
    mounts.push(json!({ "destination": "/data", "source": data, "type": "bind", "options": ["rbind", "rw"] }));
    fs::write(&config, spec.to_string())?;
    let contender = kata.ready(1)?;
    let id = format!("bench-fs-{}", std::process::id());
    let said = run::output(kata.runtime().args(["run", "--bundle"]).arg(&bundle).arg(id))?;
    kata.came_true(&contender)?;
    let guest = parse(&said)?;
    ensure!(host.len() == guest.len(), "the probe did not end in the guest: {said}");
    Ok(Files { host, guest })
}

/// The contender whose sandbox is used: how it began does not matter for its files.
pub fn pick(contenders: &[Contender]) -> Option<&Kata> {
    contenders.iter().find_map(|contender| match contender {
        Contender::Kata(kata) => Some(kata),
        Contender::Other(..) => None,
    })
}

fn fill(dir: &Path) -> Result<()> {
    for name in ["read", "random"] {
        let path = dir.join(name);
        drop(fs::remove_file(&path));
        let mut file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let chunk = vec![0xa5; 1 << 20];
        for _ in 0..SIZE >> 20 {
            file.write_all(&chunk)?;
        }
        // Not written back while it is measured.
        file.sync_all()?;
    }
    Ok(())
}

impl Files {
    /// A table.
    pub fn markdown(&self) -> String {
        let mut out = String::from(
            "files: a volume and the overlay root of a sandbox over virtio-fs, against the host's own; one run\n\n",
        );
        let _ = writeln!(out, "| {:<20} | {:>14} | {:>14} | {:>9} |", "", "host", "sandbox", "x slower");
        let _ = writeln!(out, "|{:-<22}|---------------:|---------------:|----------:|", "");
        for (host, guest) in self.host.iter().zip(&self.guest) {
            let shown = |step: &Step| match step.name.as_str() {
                name if name.starts_with("sequential") => format!("{:.0} MB/s", step.rate() / 1e6),
                _ => format!("{:.0} /s", step.rate()),
            };
            let slower = host.rate() / guest.rate();
            let _ = writeln!(out, "| {:<20} | {:>14} | {:>14} | {slower:>9.1} |", host.name, shown(host), shown(guest));
        }
        out
    }

    /// In seconds.
    pub fn json(&self) -> Value {
        json!({ "host": program::json(&self.host), "sandbox": program::json(&self.guest) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_probe_says_becomes_rates() {
        let host = parse("sequential-read 500000000 250000000\nsmall-list 1000000000 25000\n").unwrap();
        let guest = parse("sequential-read 1000000000 250000000\nsmall-list 4000000000 25000\n").unwrap();
        let text = Files { host, guest }.markdown();
        assert!(text.contains("500 MB/s") && text.contains("250 MB/s") && text.contains("2.0 |"), "{text}");
        assert!(text.contains("6250 /s") && text.contains("4.0 |"), "{text}");
        assert!(parse("thread panicked").is_err());
    }
}
