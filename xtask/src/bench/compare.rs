//! Two builds of ours, in turns: what one changed beyond noise.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::contender::Contender;
use super::difference::Difference;
use super::engine::ctr::Ctr;
use super::engine::oci::Oci;
use super::engine::{Engine, Verb};
use super::kata::{Build, Kata, Mode};
use super::report::Table;
use super::{Ground, starts};
use crate::{paths, run};

/// With fewer samples of each not even two that do not overlap are improbable enough to be believed.
const ROUNDS: usize = 6;
/// What the two are called.
const LABELS: [&str; 2] = ["A", "B"];

/// What was found.
pub struct Comparison {
    table: Table,
    lines: Vec<Line>,
}

struct Line {
    what: String,
    a: f64,
    b: f64,
    difference: Difference,
}

/// Measures both, by their own command line and through a containerd for each.
///
/// # Errors
/// The builds', or a start's.
pub fn measure(of: &[String], ground: &Ground, rounds: usize) -> Result<Comparison> {
    ensure!(rounds >= ROUNDS, "--rounds must be at least {ROUNDS}: with fewer nothing is beyond noise");
    let builds: Vec<Build> = LABELS
        .iter()
        .zip(of)
        .map(|(label, what)| Ok(Build { label: (*label).to_owned(), prefix: prefix(what)? }))
        .collect::<Result<_>>()?;
    ensure!(builds.len() == LABELS.len(), "two are compared");
    let mut contenders = Vec::new();
    run::step("templates and pools", || {
        for mode in Mode::ALL {
            for build in &builds {
                contenders.push(Contender::Kata(Kata::prepare(build, mode, 2, ground.work)?));
            }
        }
        Ok(())
    })?;
    let oci = Oci::prepare(ground.work, &builds[0], &ground.rootfs)?;
    let ctrs = Ctrs::start(&builds, ground)?;
    let engines: [&dyn Engine; 2] = [&oci, &ctrs];
    let table = starts::measure(&engines, &contenders, None, rounds, &mut Vec::new())?;
    let lines = lines(&table);
    Ok(Comparison { table, lines })
}

/// A prefix that something is installed in, or a revision of this repository, which is built and kept.
fn prefix(what: &str) -> Result<PathBuf> {
    let path = Path::new(what);
    if path.join("bin/kata-runtime").exists() {
        return Ok(fs::canonicalize(path)?);
    }
    let name = format!("{what}^{{commit}}");
    let mut rev_parse = run::cmd("git", ["rev-parse", "--verify", "--quiet", &name]);
    let commit = run::output(&mut rev_parse)
        .with_context(|| format!("{what} is neither a prefix with bin/kata-runtime nor a revision"))?;
    let commit = commit.trim();
    let dir = paths::target_dir().join("kata/compare");
    let prefix = dir.join(commit);
    // The list of what is installed is written first and last.
    if prefix.join("bin/kata-runtime").exists() {
        return Ok(prefix);
    }
    let source = dir.join(format!("{commit}.source"));
    run::step(&format!("building {what}"), || {
        run::check(run::cmd("git", ["worktree", "add", "--force", "--detach"]).arg(&source).arg(commit))?;
        let mut install = run::cargo(["xtask", "install", "--prefix"]);
        // Builds of several revisions share what they have in common.
        install.arg(&prefix).current_dir(&source).env("CARGO_TARGET_DIR", dir.join("target"));
        let built = run::check(&mut install);
        run::check(run::cmd("git", ["worktree", "remove", "--force"]).arg(&source))?;
        built
    })?;
    Ok(prefix)
}

/// A containerd for each build: it finds the shim in its `PATH`.
struct Ctrs(Vec<(String, Ctr)>);

impl Ctrs {
    fn start(builds: &[Build], ground: &Ground) -> Result<Self> {
        let start = |build: &Build| {
            let name = format!("containerd-{}", build.label);
            Ok((build.label.clone(), Ctr::start(ground.work, &name, &build.bin(), &ground.archive)?))
        };
        Ok(Ctrs(builds.iter().map(start).collect::<Result<_>>()?))
    }

    fn of(&self, contender: &Contender) -> Result<&Ctr> {
        let label = match contender {
            Contender::Kata(kata) => kata.build().label.as_str(),
            Contender::Other(other, _) => other.name,
        };
        let found = self.0.iter().find(|(name, _)| name == label).map(|(_, ctr)| ctr);
        found.with_context(|| format!("no containerd for {label}"))
    }
}

impl Engine for Ctrs {
    fn name(&self) -> &'static str {
        "ctr"
    }

    fn run(&self, contender: &Contender, id: &str) -> Result<Duration> {
        self.of(contender)?.run(contender, id)
    }

    fn begin(&self, contender: &Contender, id: &str) -> Result<Vec<(Verb, Duration)>> {
        self.of(contender)?.begin(contender, id)
    }

    fn exec(&self, contender: &Contender, id: &str, nth: usize) -> Result<Duration> {
        self.of(contender)?.exec(contender, id, nth)
    }

    fn remove(&self, contender: &Contender, id: &str) -> Result<Duration> {
        self.of(contender)?.remove(contender, id)
    }
}

fn lines(table: &Table) -> Vec<Line> {
    let mut lines = Vec::new();
    for (title, rows) in table.groups() {
        for a in &rows {
            let Some(mode) = a.contender.strip_prefix("A ") else { continue };
            let Some(b) = rows.iter().find(|row| row.contender.strip_prefix("B ") == Some(mode)) else { continue };
            if let (Some(difference), Some(of_a), Some(of_b)) =
                (Difference::of(&a.samples, &b.samples), a.samples.median(), b.samples.median())
            {
                lines.push(Line { what: format!("{title}, {mode}"), a: of_a, b: of_b, difference });
            }
        }
    }
    lines
}

impl Comparison {
    /// Every sample.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// A table, and what is beyond noise in words.
    pub fn markdown(&self) -> String {
        let mut out = String::from("A and B in turns; medians in milliseconds\n\n");
        let _ = writeln!(
            out,
            "| {:<32} | {:>6} | {:>6} | {:>5} | {:>13} | {:>6} |",
            "", "A", "B", "B / A", "95 %", "chance"
        );
        let _ = writeln!(out, "|{:-<34}|-------:|-------:|------:|--------------:|-------:|", "");
        for line in &self.lines {
            let Difference { ratio, chance, within } = line.difference;
            let within = format!("{:.2} to {:.2}", within.0, within.1);
            let _ = writeln!(
                out,
                "| {:<32} | {:>6.0} | {:>6.0} | {ratio:>5.2} | {within:>13} | {chance:>6.3} |",
                line.what, line.a, line.b
            );
        }
        out.push('\n');
        let beyond: Vec<&Line> = self.lines.iter().filter(|line| line.difference.is_beyond_noise()).collect();
        if beyond.is_empty() {
            out.push_str("nothing differs beyond noise\n");
        }
        for line in beyond {
            let way = if line.difference.ratio < 1.0 { "faster" } else { "slower" };
            let percent = (line.difference.ratio - 1.0).abs() * 100.0;
            let _ = writeln!(out, "beyond noise: {} is {percent:.0} % {way} in B", line.what);
        }
        out
    }

    /// The samples, and what was made of them.
    pub fn json(&self) -> Value {
        let lines = self.lines.iter().map(|line| {
            let d = line.difference;
            json!({
                "what": line.what, "ratio": d.ratio, "chance": d.chance, "within": [d.within.0, d.within.1],
                "beyond_noise": d.is_beyond_noise(),
            })
        });
        json!({ "samples": self.table.json(), "differences": lines.collect::<Vec<_>>() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_step_in_the_same_mode_is_compared() {
        let mut table = Table::default();
        for n in 0..12 {
            table.add("ctr", "run", "A pool", Duration::from_millis(100 + n));
            table.add("ctr", "run", "B pool", Duration::from_millis(130 + n));
            table.add("ctr", "exec", "A pool", Duration::from_millis(50 + n));
            table.add("ctr", "exec", "B pool", Duration::from_millis(50 + (n * 7) % 12));
            table.add("ctr", "exec", "A cold", Duration::from_millis(50));
        }
        let comparison = Comparison { lines: lines(&table), table };
        assert_eq!(comparison.lines.len(), 2);
        let text = comparison.markdown();
        assert_eq!(text.matches("beyond noise").count(), 1, "{text}");
        assert!(text.contains("ctr run, pool is 28 % slower in B"), "{text}");
        assert_eq!(comparison.json()["differences"][1]["beyond_noise"], false);
    }
}
