//! Measuring ourselves beside others: the same engines, the same image, the same machine, round by round in turn, so that
//! what else the machine does falls on all alike.

mod agent;
pub mod boot;
mod command;
mod compare;
mod contender;
mod difference;
mod engine;
mod fs;
mod given_back;
mod idle;
mod kata;
mod memory;
mod net;
mod netns;
mod pods;
mod processes;
mod program;
mod promises;
mod report;
mod scale;
mod smaps;
mod starts;
pub mod stats;
mod svg;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::build::Profile;
use crate::{demo, deps, guest, layout, oci_image, paths, run};
use command::Work;
use contender::Contender;
use engine::Engine;
use engine::ctr::Ctr;
use engine::docker::{Docker, Network};
use engine::oci::Oci;
use kata::{Build, Kata, Mode};
use report::Check;

/// So many times is each number of containers started at once.
const BURSTS: usize = 3;

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Section {
    /// Starts, execs and ends in every engine, with every runtime and in every mode; bare QEMU as the floor.
    Starts,
    /// What an idle sandbox holds, and what of it is what.
    Memory,
    /// What idle sandboxes cost the CPUs.
    Idle,
    /// 1 to 20 at once, and 100 kept running. Takes minutes.
    Scale,
    /// A volume and an overlay root against the host's own files.
    Fs,
    /// TCP through a sandbox's network card, against runc's and a bare QEMU with the same tap.
    Net,
    /// A pod with a network and two containers, through containerd's CRI as a kubelet asks for it.
    Pods,
}

/// How to measure.
#[derive(clap::Args)]
pub struct Options {
    /// Rounds; one more is run first and not counted.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// What to measure.
    #[arg(long, value_delimiter = ',', default_value = "starts,memory,idle")]
    only: Vec<Section>,
    /// Idle sandboxes whose CPU time is measured, of each kind.
    #[arg(long, default_value_t = 4)]
    idle_sandboxes: usize,
    /// Seconds for which they are watched.
    #[arg(long, default_value_t = 20)]
    idle_seconds: u64,
    /// Sandboxes that `scale` keeps running.
    #[arg(long, default_value_t = 100)]
    keep: usize,
    /// Instead of all that: measure two builds in turns and say what differs beyond noise. Each is a prefix that was
    /// installed to, or a revision of this repository, which is built.
    #[arg(long, num_args = 2, value_names = ["A", "B"])]
    compare: Option<Vec<String>>,
    /// Measure the dev profile: quickly built, and slower.
    #[arg(long)]
    dev: bool,
    /// Fail if a promise is not kept.
    #[arg(long)]
    check: bool,
}

/// Measures, prints tables, and leaves every sample and a picture in the target directory.
///
/// # Errors
/// The builds', an engine that does not work, or, with `--check`, a promise that is not kept.
pub fn run(options: &Options) -> Result<()> {
    ensure!(deps::am_root(), "engines and VMs take root");
    ensure!(options.rounds > 0, "--rounds must be at least 1");
    ensure!(options.idle_sandboxes > 0 && options.idle_seconds > 0, "nothing is measured of no sandbox in no time");
    run::step("Debian packages", || deps::ensure(&[deps::BUILD, deps::RUN, deps::TEST].concat()))?;
    if let Some(of) = &options.compare {
        return compare(of, options.rounds);
    }
    let kernel = run::step("the guest kernel", guest::tuned)?;
    let profile = if options.dev { Profile::Dev } else { Profile::Release };
    let build = Build { label: "kata".into(), prefix: layout::stage(profile, &kernel)? };
    let work = Work::new()?;
    let ground = Ground::prepare(work.path())?;
    let mut found = Found::default();
    let measured = measure(options, &build, &ground, &mut found);
    // Also of a run that failed: what was measured is measured.
    let out = found.keep("results.json")?;
    measured?;
    found.print();
    println!("\nevery sample: {}", out.display());
    let broken = found.checks.iter().filter(|check| !check.holds()).count();
    if options.check && broken > 0 {
        bail!("{broken} promises are not kept");
    }
    Ok(())
}

fn compare(of: &[String], rounds: usize) -> Result<()> {
    let work = Work::new()?;
    let ground = Ground::prepare(work.path())?;
    let comparison = compare::measure(of, &ground, rounds)?;
    let mut found = Found::default();
    found.text.push(comparison.table().markdown());
    found.text.push(comparison.markdown());
    found.raw.insert("compare".into(), comparison.json());
    found.pictures.push(("compare.svg", svg::plot(comparison.table(), &format!("A: {}; B: {}", of[0], of[1]))));
    let out = found.keep("compare.json")?;
    found.print();
    println!("every sample: {}", out.display());
    Ok(())
}

/// What every section stands on.
struct Ground<'a> {
    work: &'a Path,
    rootfs: PathBuf,
    archive: PathBuf,
}

impl<'a> Ground<'a> {
    fn prepare(work: &'a Path) -> Result<Self> {
        let rootfs = work.join("rootfs");
        demo::busybox_rootfs(&rootfs)?;
        let archive = work.join("image.tar");
        oci_image::docker_archive(&rootfs, engine::IMAGE, &archive)?;
        Ok(Ground { work, rootfs, archive })
    }
}

/// What was found out.
#[derive(Default)]
struct Found {
    /// For people.
    text: Vec<String>,
    /// For programs.
    raw: serde_json::Map<String, Value>,
    pictures: Vec<(&'static str, String)>,
    checks: Vec<Check>,
}

impl Found {
    fn keep(&self, name: &str) -> Result<PathBuf> {
        let dir = paths::target_dir().join("kata/bench");
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let checks: Vec<Value> = self.checks.iter().map(Check::json).collect();
        let mut raw = self.raw.clone();
        raw.insert("checks".into(), json!(checks));
        let file = dir.join(name);
        std::fs::write(&file, serde_json::to_vec_pretty(&raw)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
        for (name, picture) in &self.pictures {
            std::fs::write(dir.join(name), picture)?;
        }
        Ok(dir)
    }

    fn print(&self) {
        for part in &self.text {
            println!("\n{}", part.trim_end());
        }
        println!();
        for check in &self.checks {
            println!("{}", check.line());
        }
    }
}

fn measure(options: &Options, build: &Build, ground: &Ground, found: &mut Found) -> Result<()> {
    let has = |section| options.only.contains(&section);
    let mut contenders = contender::installed();
    run::step("templates and a pool", || {
        for mode in Mode::ALL {
            // Two: one start of it is measured as a whole and one step by step.
            contenders.push(Contender::Kata(Kata::prepare(build, mode, 2, ground.work)?));
        }
        Ok(())
    })?;
    let ctr = Ctr::start(ground.work, "containerd", &build.bin(), &ground.archive)?;
    if has(Section::Starts) {
        let docker = Docker::start(ground.work, &contenders, &ground.archive, Network::None)?;
        let networked = Docker::start(ground.work, &contenders, &ground.archive, Network::Bridge)?;
        let oci = Oci::prepare(ground.work, build, &ground.rootfs)?;
        let engines: [&dyn Engine; 4] = [&oci, &ctr, &docker, &networked];
        let mut bare =
            boot::Bare::prepare(run::cmd(&build.bin().join("kata-runtime").to_string_lossy(), [""; 0]), ground.work)?;
        let mut skipped = Vec::new();
        let table = starts::measure(&engines, &contenders, Some(&mut bare), options.rounds, &mut skipped)?;
        found.text.push(format!("{} rounds, in turns; milliseconds\n\n{}", options.rounds, table.markdown()));
        found.text.push(starts::of_networks(&table));
        if !skipped.is_empty() {
            found.text.push(format!("left out:\n    {}", skipped.join("\n    ")));
        }
        found.checks.extend(promises::of_starts(&table));
        found.raw.insert("starts".into(), table.json());
        found.pictures.push(("starts.svg", svg::plot(&table, "containers: every sample, and the median")));
    }
    if has(Section::Memory) {
        let memory = run::step("measuring idle sandboxes", || memory::measure(&ctr, &contenders))?;
        found.text.push(memory.markdown());
        found.checks.extend(promises::of_memory(&memory));
        found.raw.insert("memory".into(), memory.json());
        let back = run::step("memory given back", || given_back::measure(ground, build, &contenders))?;
        found.text.extend(back.iter().map(given_back::GivenBack::line));
        found.checks.extend(back.iter().map(given_back::GivenBack::check));
        found.raw.insert("given_back".into(), back.iter().map(given_back::GivenBack::json).collect());
        let agent = run::step("measuring the agent", || agent::pss_kib(&build.prefix, &ground.rootfs, ground.work))?;
        found.text.push(format!(
            "agent, in the guest: {:.1} MB PSS (of the guest's memory, counted above)",
            agent as f64 / 1024.0
        ));
        found.raw.insert("agent_kib".into(), json!(agent));
    }
    let ours = |modes: &[Mode]| -> Vec<&Contender> {
        contenders.iter().filter(|one| one.mode().is_some_and(|mode| modes.contains(&mode))).collect()
    };
    if has(Section::Idle) {
        let watched = Duration::from_secs(options.idle_seconds);
        let both = ours(&[Mode::Cold, Mode::Template]);
        let idle =
            run::step("watching idle sandboxes", || idle::measure(&ctr, &both, options.idle_sandboxes, watched))?;
        found.text.extend(idle.iter().map(idle::Idle::line));
        found.checks.extend(promises::of_idle(&idle));
        found.raw.insert("idle".into(), idle.iter().map(idle::Idle::json).collect());
    }
    if has(Section::Scale) {
        let oci = Oci::prepare(ground.work, build, &ground.rootfs)?;
        let mut starters: Vec<&Contender> = contenders.iter().filter(|one| one.name() == "runc").collect();
        starters.extend(ours(&[Mode::Cold, Mode::Template]));
        let mut scale = scale::Scale {
            bursts: run::step("many at once", || scale::bursts(&oci, &starters, BURSTS))?,
            ..scale::Scale::default()
        };
        for kept in ours(&[Mode::Template]) {
            scale.series.push(run::step("many kept", || scale::series(&ctr, kept, options.keep))?);
        }
        found.text.push(scale.markdown());
        found.checks.extend(promises::of_scale(&scale));
        found.raw.insert("scale".into(), scale.json());
    }
    if has(Section::Fs)
        && let Some(kata) = fs::pick(&contenders)
    {
        let files = run::step("measuring files", || fs::measure(ground, build, kata))?;
        found.text.push(files.markdown());
        found.raw.insert("fs".into(), files.json());
    }
    if has(Section::Net) {
        let runtime = run::cmd(&build.bin().join("kata-runtime").to_string_lossy(), [""; 0]);
        let bare = boot::Bare::prepare(runtime, ground.work)?;
        let net = run::step("measuring networks", || net::measure(ground, build, &bare, &contenders, options.rounds))?;
        found.text.push(net.markdown());
        found.checks.extend(net.checks());
        found.raw.insert("net".into(), net.json());
    }
    if has(Section::Pods) {
        let table = pods::measure(build, &contenders, options.rounds)?;
        found.text.push(format!(
            "a pod with a network and two containers, {} rounds, in turns; milliseconds\n\n{}",
            options.rounds,
            table.markdown()
        ));
        found.raw.insert("pods".into(), table.json());
    }
    Ok(())
}
