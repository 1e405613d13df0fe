//! Every test: those of the crates, and those of the whole system on real engines in real VMs.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::build::Profile;
use crate::mode::Mode;
use crate::summary::{Expected, Summary};
use crate::watch::{self, End};
use crate::{deps, guest, layout, newer, paths, qemu, run};

/// A test program that prints nothing for so long hangs. The whole-system tests print at the end of each test.
const SILENCE: Duration = Duration::from_secs(900);
/// The whole-system tests that run in every mode. The others do nothing else with a sandbox, or have a factory of their own.
const CORE: [&str; 4] = ["oci", "oci_stdio", "ctr", "kills"];
/// The skips that are in order.
const EXPECTED: &str = "tests/expected-skips.txt";

/// What to run.
#[derive(clap::Args)]
pub struct Options {
    /// Only the tests of the crates: no root, no VM.
    #[arg(long, conflicts_with = "system")]
    units: bool,
    /// Only the whole-system tests.
    #[arg(long)]
    system: bool,
    /// Only with sandboxes that begin so, of the whole-system tests.
    #[arg(long)]
    mode: Option<Mode>,
    /// Only tests whose name contains this.
    filter: Option<String>,
}

/// Runs the tests. The last line printed is `N passed, N failed, N skipped`.
pub fn run(options: &Options) -> ExitCode {
    let start = Instant::now();
    let mut summary = Summary::default();
    let mut good = true;
    if let Err(err) = all(options, &mut summary) {
        eprintln!("xtask: {err:#}");
        good = false;
        // Nobody shall read "0 failed" there.
        summary.failed = summary.failed.max(1);
    }
    for failure in &summary.failures {
        eprintln!("    {failure}");
    }
    eprintln!("    all in {}", run::seconds(start.elapsed()));
    println!("{summary}");
    if good && summary.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn all(options: &Options, summary: &mut Summary) -> Result<()> {
    run::step("Debian packages", || deps::ensure(deps::BUILD))?;
    if options.units {
        crates(options, None, summary)?;
    } else {
        ensure!(deps::am_root(), "the whole-system tests need root; `cargo xtask test --units` does not");
        run::step("Debian packages for VMs and engines", || deps::ensure(&[deps::RUN, deps::TEST].concat()))?;
        let kernel = run::step("the guest kernel", guest::tuned)?;
        if qemu::has_recipe() {
            run::step("our own QEMU", qemu::ensure_built)?;
        }
        let stage = layout::stage(Profile::Dev, &kernel)?;
        if !options.system {
            crates(options, Some(&stage), summary)?;
        }
        whole_system(options, &stage, summary)?;
    }
    verdict(options, summary)
}

fn crates(options: &Options, stage: Option<&PathBuf>, summary: &mut Summary) -> Result<()> {
    // Examples are built, because some tests run them.
    let mut cargo = run::cargo(["test", "--workspace", "--exclude", "kata-system-tests", "--no-fail-fast"]);
    cargo.args(["--lib", "--bins", "--tests", "--examples"]);
    if let Some(stage) = stage {
        let (name, version) = deps::VSOCK_DEVICE;
        let device = run::step("a vsock device for tests", || deps::program(name, version))?;
        cargo.env("KATA_STAGE", stage).env("KATA_VSOCK_DEVICE", device);
    }
    program("tests of the crates", cargo, &[], options, summary)
}

/// All of the whole-system tests with sandboxes from the pool, and their core again with templates, and booting; the last
/// on the distribution's QEMU.
fn whole_system(options: &Options, stage: &PathBuf, summary: &mut Summary) -> Result<()> {
    // The same with Debian's own kernel, for the tests that boot it. Without a network they skip, and say so.
    let debian = match guest::distro().and_then(|kernel| layout::stage(Profile::Dev, &kernel)) {
        Ok(stage) => {
            Mode::Boot.configure(&stage)?;
            Some(stage)
        }
        Err(err) => {
            eprintln!("    without Debian's kernel: {err:#}");
            None
        }
    };
    let newer = run::step("newer engines", newer::engines)?;
    for mode in Mode::ALL {
        if options.mode.is_some_and(|only| only != mode) {
            continue;
        }
        let mut cargo = run::cargo(["test", "--package", "kata-system-tests", "--no-fail-fast"]);
        if mode == Mode::Pool {
            cargo.args(["--lib", "--bins", "--tests"]);
        } else {
            cargo.args(CORE.iter().flat_map(|test| ["--test", test]));
        }
        cargo.env("KATA_STAGE", stage).env("KATA_TEST_MODE", mode.name()).env("KATA_NEWER_ENGINES", &newer);
        if let Some(debian) = &debian {
            cargo.env("KATA_STAGE_DEBIAN", debian);
        }
        let ready = mode.ready(stage)?;
        let name = format!("whole-system tests, sandboxes {}", mode.says());
        program(&name, cargo, &["--test-threads=1"], options, summary)?;
        drop(ready);
    }
    Mode::unconfigure(stage)
}

/// One `cargo test`, shown as it runs and counted.
fn program(name: &str, mut cargo: Command, args: &[&str], options: &Options, summary: &mut Summary) -> Result<()> {
    cargo.args(["--", "--show-output"]).args(args).args(&options.filter);
    let failed_before = summary.failed;
    eprintln!("==> {name}");
    let start = Instant::now();
    let end = watch::lines(&mut cargo, SILENCE, |line| {
        println!("{line}");
        summary.line(line);
    })?;
    summary.end(name, end == End::Exited(true), failed_before);
    eprintln!(
        "    {} in {}: {name}",
        if summary.failed == failed_before { "done" } else { "FAILED" },
        run::seconds(start.elapsed())
    );
    Ok(())
}

fn verdict(options: &Options, summary: &Summary) -> Result<()> {
    let path = paths::repo_root().join(EXPECTED);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let expected = Expected::parse(&text).with_context(|| EXPECTED.to_owned())?;
    for reason in &summary.skips {
        eprintln!("    skipped: {reason}");
    }
    let unexpected = summary.unexpected(&expected);
    ensure!(
        unexpected.is_empty(),
        "{} tests were skipped for reasons that {EXPECTED} does not expect: {}",
        unexpected.len(),
        unexpected.join("; ")
    );
    ensure!(summary.passed > 0 || options.filter.is_some(), "no test ran");
    Ok(())
}
