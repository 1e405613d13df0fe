//! Programs that measure where they run: of one source, static, of the standard library only, so that they do the very same
//! on the host, in a container and in a bare VM. They print "name nanoseconds amount" for each step.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{deps, run};

/// One step of such a program.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// What it did.
    pub name: String,
    /// How long it took.
    pub seconds: f64,
    /// Of what it is about: bytes, reads, requests.
    pub amount: f64,
}

impl Step {
    /// Of the amount, in a second.
    pub fn rate(&self) -> f64 {
        self.amount / self.seconds
    }
}

/// Compiles a source to `program`; `dir` is for its file.
///
/// # Errors
/// The compiler's, or a place that cannot be written.
pub fn compile(text: &str, dir: &Path, program: &Path) -> Result<()> {
    let source = dir.join("probe.rs");
    fs::write(&source, text).with_context(|| format!("cannot write {}", source.display()))?;
    let target = deps::guest_target();
    let mut rustc = run::cmd("rustc", ["--edition=2024", "-O", "--target", target.triple]);
    rustc.args(target.rustflags.split_whitespace()).args(["-C", "strip=symbols", "-o"]).arg(program).arg(source);
    run::check(&mut rustc)
}

/// Reads what one said.
///
/// # Errors
/// A line that is none of its.
pub fn parse(text: &str) -> Result<Vec<Step>> {
    let line = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let name = words.next()?.to_owned();
        let nanoseconds: f64 = words.next()?.parse().ok()?;
        Some(Step { name, seconds: nanoseconds / 1e9, amount: words.next()?.parse().ok()? })
    };
    text.lines().map(|text| line(text).with_context(|| format!("the probe said {text:?}"))).collect()
}

/// In seconds.
pub fn json(steps: &[Step]) -> Value {
    steps.iter().map(|s| json!({ "name": s.name, "s": s.seconds, "amount": s.amount })).collect()
}
