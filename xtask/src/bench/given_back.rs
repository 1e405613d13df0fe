//! What a sandbox's memory on the host is before its container takes a lot, when it has, and after it has let go of it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Ground;
use super::contender::Contender;
use super::engine::oci;
use super::kata::{Build, Kata, Mode};
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
    /// Whose.
    contender: String,
    before: f64,
    full: f64,
    after: f64,
    took: Duration,
}

/// With a sandbox that boots, and with one that begins from a template.
///
/// # Errors
/// The sandboxes'.
pub fn measure(ground: &Ground, build: &Build, all: &[Contender]) -> Result<Vec<GivenBack>> {
    let bundle = ground.work.join("given-back");
    let config = oci::bundle(&bundle, build, &ground.rootfs, &["sleep", "1000"])?;
    let mut spec: Value = serde_json::from_str(&fs::read_to_string(&config)?)?;
    let mounts = spec["mounts"].as_array_mut().context("a spec without mounts")?;
    mounts.push(json!({ "destination": "/tmp", "source": "tmpfs", "type": "tmpfs", "options": ["size=600m"] }));
    fs::write(&config, spec.to_string())?;
    let kinds = all.iter().filter_map(|one| match one {
        Contender::Kata(kata) if kata.mode() != Mode::Pool => Some(kata),
        _ => None,
    });
    kinds.map(|kata| of(kata, &bundle)).collect()
}

fn of(kata: &Kata, bundle: &Path) -> Result<GivenBack> {
    let id = format!("bench-back-{}", std::process::id());
    let begun = run::check(kata.runtime().args(["run", "--detach", "--bundle"]).arg(bundle).arg(&id));
    let exec = |script: &str| run::check(kata.runtime().args(["exec", &id, "sh", "-c", script]));
    let measured = begun.and_then(|()| take_and_let_go(kata.name(), &id, exec));
    let deleted = run::check(kata.runtime().args(["delete", "--force", &id]));
    let measured = measured?;
    deleted?;
    Ok(measured)
}

fn take_and_let_go(contender: String, id: &str, exec: impl Fn(&str) -> Result<()>) -> Result<GivenBack> {
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
    Ok(GivenBack { contender, before, full, after, took: start.elapsed() })
}

impl GivenBack {
    /// A line.
    pub fn line(&self) -> String {
        let GivenBack { contender, before, full, after, took } = self;
        format!(
            "memory given back, {contender}: {before:.0} MB, {full:.0} MB with {TAKEN} MiB in a tmpfs, {after:.0} MB {:.1} s after its removal",
            took.as_secs_f64()
        )
    }

    /// What is promised.
    pub fn check(&self) -> Check {
        let kept = (self.after - self.before) / (self.full - self.before);
        Check {
            what: format!("memory kept that was let go of, {}", self.contender),
            value: kept,
            limit: 1.0 - PART,
            unit: "of it",
        }
    }

    /// In MB and seconds.
    pub fn json(&self) -> Value {
        json!({ "contender": self.contender, "before": self.before, "full": self.full, "after": self.after, "s": self.took.as_secs_f64() })
    }
}
