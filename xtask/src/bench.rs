//! Measuring ourselves beside runc: the same engine, the same image, the same machine, round by round in turn, so that
//! what else the machine does falls on all alike.

mod agent;
pub mod boot;
mod engine;
mod memory;
pub mod stats;

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::build::Profile;
use crate::{demo, deps, guest, layout, oci_image, run};
use engine::{Containerd, Runtime};
use stats::Samples;

/// How a start is allowed to compare: bare boot, and so many times runc's.
const RUNC_TIMES: u32 = 4;
/// An idle sandbox is let settle for so long before its memory is measured.
const SETTLE: Duration = Duration::from_secs(3);

/// How to measure.
#[derive(clap::Args)]
pub struct Options {
    /// Rounds; one more is run first and not counted.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// QEMU's accelerator for the bare boot; give what `kata-runtime check` says.
    #[arg(long, default_value = "tcg")]
    accel: String,
    /// Measure the dev profile: quickly built, and slower.
    #[arg(long)]
    dev: bool,
    /// Fail if a start takes longer than a bare boot and four times runc's start.
    #[arg(long)]
    check: bool,
}

/// Measures and prints a table.
///
/// # Errors
/// The builds', an engine that does not work, or, with `--check`, a start that is too slow.
pub fn run(options: &Options) -> Result<()> {
    ensure!(deps::am_root(), "engines and VMs take root");
    ensure!(options.rounds > 0, "--rounds must be at least 1");
    run::step("Debian packages", || deps::ensure(&[deps::BUILD, deps::RUN, deps::TEST].concat()))?;
    let kernel = run::step("the guest kernel", guest::tuned)?;
    let profile = if options.dev { Profile::Dev } else { Profile::Release };
    let stage = layout::stage(profile, &kernel)?;

    // Short, because a socket's path may have 107 bytes only.
    let work = std::env::temp_dir().join(format!("kata-bench-{}", std::process::id()));
    let result = measure(options, &stage, &work);
    crate::kernel::remove_tree(&work)?;
    result
}

fn measure(options: &Options, stage: &Path, work: &Path) -> Result<()> {
    let rootfs = work.join("rootfs");
    demo::busybox_rootfs(&rootfs)?;
    let archive = work.join("image.tar");
    oci_image::docker_archive(&rootfs, engine::IMAGE, &archive)?;
    let bare = boot::Bare::prepare(&options.accel, &stage.join(layout::KERNEL), work)?;
    let containerd = Containerd::start(work, &stage.join("bin"))?;
    containerd.load(&archive)?;

    let mut starts = [Samples::default(), Samples::default()];
    let mut execs = [Samples::default(), Samples::default()];
    let mut boots = Samples::default();
    run::step("measuring starts", || {
        for round in 0..=options.rounds {
            let counts = round > 0;
            for (runtime, samples) in Runtime::BOTH.into_iter().zip(&mut starts) {
                samples.push_if(counts, containerd.run(runtime, &format!("s{round}"))?);
            }
            boots.push_if(counts, bare.boot()?);
        }
        Ok(())
    })?;
    let mut idle = Vec::new();
    run::step("measuring an idle sandbox, and execs in it", || {
        for runtime in Runtime::BOTH {
            let before = memory::pids();
            containerd.run_detached(runtime, runtime.name())?;
            std::thread::sleep(SETTLE);
            idle.push((runtime, memory::of_new_processes(&before)));
        }
        for round in 0..=options.rounds {
            for (runtime, samples) in Runtime::BOTH.into_iter().zip(&mut execs) {
                samples.push_if(round > 0, containerd.exec(runtime.name(), &format!("e{round}"))?);
            }
        }
        for runtime in Runtime::BOTH {
            containerd.remove(runtime.name())?;
        }
        Ok(())
    })?;
    drop(containerd);
    let agent_kib = run::step("measuring the agent", || agent::pss_kib(stage, &rootfs, work))?;

    println!("\n{} rounds, interleaved; milliseconds, min/median/max\n", options.rounds);
    println!("| {:<34} | {:>16} | {:>20} | {:>7} |", "", "runc", "kata", "ratio");
    println!("|{:-<36}|{:->18}|{:->22}|{:->9}|", "", "", "", "");
    for (name, [runc, kata]) in [("ctr run --rm busybox true", &starts), ("ctr task exec true", &execs)] {
        println!("| {name:<34} | {:>16} | {:>20} | {:>6.1}x |", runc.to_string(), kata.to_string(), kata.over(runc));
    }
    let bare_name = format!("bare QEMU boot to init ({})", options.accel);
    println!("| {bare_name:<34} | {:>16} | {:>20} | {:>7} |", "", boots.to_string(), "");
    println!();
    for (runtime, processes) in &idle {
        let sum: u64 = processes.iter().map(|p| p.pss_kib).sum();
        println!("idle sandbox, {}: {:.1} MB PSS in all", runtime.name(), sum as f64 / 1024.0);
        for process in processes {
            println!("    {:>8.1} MB  {}", process.pss_kib as f64 / 1024.0, process.name);
        }
    }
    println!(
        "agent, in the guest: {:.1} MB PSS (of the guest's memory, which QEMU's holds)",
        agent_kib as f64 / 1024.0
    );
    let allowed = boots.median() + starts[0].median() * RUNC_TIMES;
    let took = starts[1].median();
    let verdict = if took <= allowed { "holds" } else { "does NOT hold" };
    println!(
        "\nstart {} <= bare boot + {RUNC_TIMES} x runc = {}: {verdict}",
        stats::milliseconds(took),
        stats::milliseconds(allowed)
    );
    if options.check && took > allowed {
        bail!("a start takes too long");
    }
    Ok(())
}
