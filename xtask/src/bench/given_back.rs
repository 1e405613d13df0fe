//! What a sandbox's memory on the host is before its container takes a lot, when it has, and after it has let go of it.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Ground;
use super::contender::Contender;
use super::engine::oci;
use super::kata::{Build, Mode};
use super::memory::Sandbox;
use super::report::Check;
use crate::run;

/// How much it takes, in MiB.
const TAKEN: u32 = 500;
/// What it let go of must be back within this.
const WITHIN: Duration = Duration::from_secs(30);
/// Of what was taken, this much must come back.
const PART: f64 = 0.9;
/// A first sandbox settles within this.
const SETTLE: Duration = Duration::from_secs(2);

/// MB of PSS, of all processes.
pub struct GivenBack {
    before: f64,
    full: f64,
    after: f64,
    took: Duration,
}

/// With a sandbox that boots.
///
/// # Errors
/// The sandbox's.
pub fn measure(ground: &Ground, build: &Build, all: &[Contender]) -> Result<GivenBack> {
    let cold = all.iter().find(|one| one.mode() == Some(Mode::Cold));
    let Some(Contender::Kata(kata)) = cold else { anyhow::bail!("no sandbox that boots takes part") };
    let bundle = ground.work.join("given-back");
    let config = oci::bundle(&bundle, build, &ground.rootfs, &["sleep", "1000"])?;
    let mut spec: Value = serde_json::from_str(&fs::read_to_string(&config)?)?;
    let mounts = spec["mounts"].as_array_mut().context("a spec without mounts")?;
    mounts.push(json!({ "destination": "/tmp", "source": "tmpfs", "type": "tmpfs", "options": ["size=600m"] }));
    fs::write(&config, spec.to_string())?;
    let id = format!("bench-back-{}", std::process::id());
    run::check(kata.runtime().args(["run", "--detach", "--bundle"]).arg(&bundle).arg(&id))?;
    let measured = take_and_let_go(&id, |script| run::check(kata.runtime().args(["exec", &id, "sh", "-c", script])));
    run::check(kata.runtime().args(["delete", "--force", &id]))?;
    measured
}

fn take_and_let_go(id: &str, exec: impl Fn(&str) -> Result<()>) -> Result<GivenBack> {
    let now = || Sandbox::of(id).map(|sandbox| sandbox.total_mb());
    std::thread::sleep(SETTLE);
    let before = now()?;
    exec(&format!("dd if=/dev/zero of=/tmp/big bs=1M count={TAKEN} 2>/dev/null"))?;
    let full = now()?;
    exec("rm /tmp/big")?;
    let start = Instant::now();
    let mut after = now()?;
    while full - after < (full - before) * PART && start.elapsed() < WITHIN {
        std::thread::sleep(Duration::from_millis(100));
        after = now()?;
    }
    Ok(GivenBack { before, full, after, took: start.elapsed() })
}

impl GivenBack {
    /// A line.
    pub fn line(&self) -> String {
        let GivenBack { before, full, after, took } = self;
        format!(
            "memory given back: {before:.0} MB, {full:.0} MB with {TAKEN} MiB in a tmpfs, {after:.0} MB {:.1} s after its removal",
            took.as_secs_f64()
        )
    }

    /// What is promised.
    pub fn check(&self) -> Check {
        let kept = (self.after - self.before) / (self.full - self.before);
        Check { what: "memory kept that was let go of".into(), value: kept, limit: 1.0 - PART, unit: "of it" }
    }

    /// In MB and seconds.
    pub fn json(&self) -> Value {
        json!({ "before": self.before, "full": self.full, "after": self.after, "s": self.took.as_secs_f64() })
    }
}
