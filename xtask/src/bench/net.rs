//! Networks: TCP to and from a container of ours, one of runc's, and a bare QEMU with the same kernel and the same kind of tap;
//! by the same program, over the same cable, in turns.

mod wire;

use std::fmt::Write;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Ground;
use super::boot::{Bare, READY};
use super::command::bounded;
use super::contender::Contender;
use super::engine::oci;
use super::kata::{Build, Mode};
use super::program::{self, Step};
use super::report::Check;
use super::stats::percentile_of;
use crate::{image, run};
pub use wire::Tap;
use wire::{ADDRESS, CARD, Wire};

/// What is run; see there.
const PROBE: &str = include_str!("net/probe.rs");
/// The program's own module, so that lints and the compiler see it.
#[cfg(test)]
#[allow(dead_code)]
mod probe;

/// What the program says.
const STEPS: usize = 6;
/// Of what a bare QEMU does with the same tap, at least.
const OF_BARE: f64 = 0.95;
/// Each takes 22 s.
const ROUNDS: usize = 5;

/// Everybody's steps, round by round.
pub struct Net {
    /// Name, and the steps of each round.
    by: Vec<(String, Vec<Vec<Step>>)>,
}

/// Whether a step is about bytes; the others are about how long a request takes.
fn is_throughput(step: &str) -> bool {
    step.ends_with("-it")
}

const BARE: &str = "bare QEMU";
const KATA: &str = "kata";
const RUNC: &str = "runc";

/// Serves in turn from each of them, and asks from the other end.
///
/// # Errors
/// ip's, tc's, the compiler's, a container's or the VM's.
pub fn measure(ground: &Ground, build: &Build, bare: &Bare, all: &[Contender], rounds: usize) -> Result<Net> {
    let dir = ground.work.join("net");
    fs::create_dir_all(&dir)?;
    let probe = ground.rootfs.join("bin/net");
    program::compile(PROBE, &dir, &probe)?;
    let initrd = initrd(&dir, ground, &probe)?;
    let wire = Wire::new()?;
    let bundle = bundle(&dir, ground, build, &wire)?;
    let containers = all.iter().filter_map(|one| match one {
        Contender::Other(other, _) => (other.name == RUNC).then_some((RUNC, one)),
        Contender::Kata(kata) => (kata.mode() == Mode::Template).then_some((KATA, one)),
    });
    let containers: Vec<(&str, &Contender)> = containers.collect();
    let mut by: Vec<(String, Vec<Vec<Step>>)> =
        [RUNC, BARE, KATA].iter().map(|name| ((*name).to_owned(), Vec::new())).collect();
    for round in 0..=rounds.min(ROUNDS) {
        for (name, steps) in &mut by {
            let said = match containers.iter().find(|(known, _)| known == name) {
                Some((_, contender)) => of_container(&bundle, ground, &wire, contender),
                None => of_bare(ground, &wire, bare, &initrd),
            };
            let said = said.with_context(|| name.clone())?;
            // The first one warms up.
            if round > 0 {
                steps.push(said);
            }
        }
    }
    Ok(Net { by })
}

/// A guest that does nothing but serve.
fn initrd(dir: &Path, ground: &Ground, probe: &Path) -> Result<PathBuf> {
    let (initrd, script) = (dir.join("net.img"), dir.join("init"));
    let busybox = ground.rootfs.join("bin/busybox");
    let lines = [
        "#!/bin/busybox sh".to_owned(),
        "/bin/busybox ip link set lo up".to_owned(),
        format!("/bin/busybox ip addr add {ADDRESS}/24 dev {CARD}"),
        format!("/bin/busybox ip link set {CARD} up"),
        format!("echo {READY}"),
        "exec /bin/net serve".to_owned(),
    ];
    fs::write(&script, lines.join("\n") + "\n")?;
    let file = File::create(&initrd).with_context(|| format!("cannot write {}", initrd.display()))?;
    image::write_with(BufWriter::new(file), &script, &[("bin/busybox", &busybox), ("bin/net", probe)], &[])?;
    Ok(initrd)
}

fn of_bare(ground: &Ground, wire: &Wire, bare: &Bare, initrd: &Path) -> Result<Vec<Step>> {
    let serving = bare.with_card(&wire.here.name, &wire.tap()?, initrd)?;
    let said = ask(wire, &ground.rootfs)?;
    drop(serving);
    wire.untap()?;
    Ok(said)
}

/// A container that does nothing but serve, in the network namespace.
fn bundle(dir: &Path, ground: &Ground, build: &Build, wire: &Wire) -> Result<PathBuf> {
    let bundle = dir.join("bundle");
    let config = oci::bundle(&bundle, build, &ground.rootfs, &["/bin/net", "serve"])?;
    let mut spec: Value = serde_json::from_str(&fs::read_to_string(&config)?)?;
    let namespaces = spec["linux"]["namespaces"].as_array_mut().context("a spec without namespaces")?;
    namespaces.retain(|n| n["type"] != "network");
    namespaces.push(json!({ "type": "network", "path": wire.here.path() }));
    fs::write(&config, spec.to_string())?;
    Ok(bundle)
}

fn of_container(bundle: &Path, ground: &Ground, wire: &Wire, contender: &Contender) -> Result<Vec<Step>> {
    let command = || match contender {
        Contender::Other(_, path) => bounded(path),
        Contender::Kata(kata) => kata.runtime(),
    };
    let id = format!("bench-net-{}", std::process::id());
    let ticket = contender.ready(1)?;
    let done = run::check(command().args(["run", "--detach", "--bundle"]).arg(bundle).arg(&id))
        .and_then(|()| ask(wire, &ground.rootfs));
    let removed = run::check(command().args(["delete", "--force", &id]));
    let said = done?;
    removed?;
    contender.came_true(ticket)?;
    Ok(said)
}

fn ask(wire: &Wire, rootfs: &Path) -> Result<Vec<Step>> {
    let mut command = bounded("ip");
    command.args(["netns", "exec", &wire.there.name]).arg(rootfs.join("bin/net")).args(["ask", ADDRESS]);
    let said = program::parse(&run::output(&mut command)?)?;
    ensure!(said.len() == STEPS, "the probe did not end: {said:?}");
    Ok(said)
}

impl Net {
    /// The median of a step: bytes in a second, or seconds.
    fn median(&self, name: &str, step: usize) -> Option<f64> {
        let (_, rounds) = self.by.iter().find(|(by, _)| by == name)?;
        let of = |step: &Step| if is_throughput(&step.name) { step.rate() } else { step.seconds };
        let mut all: Vec<f64> = rounds.iter().filter_map(|steps| steps.get(step).map(of)).collect();
        all.sort_by(f64::total_cmp);
        percentile_of(&all, 50.0)
    }

    fn names(&self) -> Vec<String> {
        let first = self.by.iter().find_map(|(_, rounds)| rounds.first());
        first.into_iter().flatten().map(|step| step.name.clone()).collect()
    }

    /// A table.
    pub fn markdown(&self) -> String {
        let rounds = self.by.first().map_or(0, |(_, rounds)| rounds.len());
        let mut out = format!(
            "TCP over one veth, by a tap without vhost where there is a VM; medians of {rounds} rounds, in turns\n\n"
        );
        let _ = writeln!(
            out,
            "| {:<14} | {:>12} | {:>12} | {:>12} | {:>9} | {:>9} |",
            "", RUNC, BARE, KATA, "x bare", "x runc"
        );
        let _ = writeln!(out, "|{:-<16}|-------------:|-------------:|-------------:|----------:|----------:|", "");
        for (step, name) in self.names().iter().enumerate() {
            let [runc, bare, kata] = [RUNC, BARE, KATA].map(|by| self.median(by, step).unwrap_or(f64::NAN));
            let shown = |value: f64| {
                if is_throughput(name) { format!("{:.0} MB/s", value / 1e6) } else { format!("{:.0} us", value * 1e6) }
            };
            let _ = writeln!(
                out,
                "| {name:<14} | {:>12} | {:>12} | {:>12} | {:>9.2} | {:>9.2} |",
                shown(runc),
                shown(bare),
                shown(kata),
                kata / bare,
                kata / runc
            );
        }
        out
    }

    /// What is promised: hardly less throughput than bare QEMU's, either way.
    pub fn checks(&self) -> Vec<Check> {
        let names = self.names();
        let check = |(step, name): (usize, &String)| {
            // By how much it is slower: what a promise limits from above.
            let slower = self.median(BARE, step)? / self.median(KATA, step)?;
            Some(Check {
                what: format!("network, {name}: bare QEMU's"),
                value: slower,
                limit: 1.0 / OF_BARE,
                unit: "x ours",
            })
        };
        names.iter().enumerate().filter(|(_, name)| is_throughput(name)).filter_map(check).collect()
    }

    /// Every sample.
    pub fn json(&self) -> Value {
        let rounds = |rounds: &[Vec<Step>]| rounds.iter().map(|steps| program::json(steps)).collect::<Vec<_>>();
        self.by
            .iter()
            .map(|(name, steps)| (name.clone(), json!(rounds(steps))))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slower_network_is_told() {
        let round = |ns: u32| program::parse(&format!("to-it {ns} 1000000\nrequest {ns} 1\n")).unwrap();
        let by = [(RUNC, 1_000_000), (BARE, 2_000_000), (KATA, 4_000_000)];
        let net = Net { by: by.iter().map(|(name, ns)| ((*name).to_owned(), vec![round(*ns)])).collect() };
        let text = net.markdown();
        assert!(text.contains("250 MB/s |      0.50 |      0.25 |"), "{text}");
        assert!(text.contains("4000 us |      2.00 |      4.00 |"), "{text}");
        assert!(net.checks().len() == 1 && net.checks().iter().all(|check| !check.holds()));
    }
}
