//! What a kubelet waits for: a pod with a network and two containers, through containerd's CRI, in turns.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::contender::{Contender, OTHERS};
use super::kata::Build;
use super::program::{self, Step};
use super::report::Table;
use crate::{paths, run};

/// The package of the program that does it, and its name.
const PACKAGE: &str = "kata-testkit-cri";
const PROGRAM: &str = "pods";

/// Of runc and of ours, so many rounds.
///
/// # Errors
/// The program's: see what it says.
pub fn measure(build: &Build, contenders: &[Contender], rounds: usize) -> Result<Table> {
    run::step("building the kubelet", || {
        run::check(&mut run::cargo(["build", "--package", PACKAGE, "--example", PROGRAM]))
    })?;
    let fit: Vec<&Contender> = contenders.iter().filter(|one| handler(one).is_some()).collect();
    let mut kubelet = Kubelet::start(build, &fit)?;
    let mut table = Table::default();
    run::step("measuring pods", || {
        for round in 0..=rounds {
            for turn in 0..fit.len() {
                // Another one begins each round: nobody always follows the same one.
                let contender = fit[(turn + round) % fit.len()];
                let ticket = contender.ready(1)?;
                let steps = kubelet.pod(contender).with_context(|| contender.name())?;
                contender.came_true(ticket)?;
                // The first one warms up.
                for step in steps.iter().filter(|_| round > 0) {
                    table.add("CRI", &step.name, &contender.name(), Duration::from_secs_f64(step.seconds));
                }
            }
        }
        Ok(())
    })?;
    kubelet.end()?;
    Ok(table)
}

/// By which containerd knows it.
fn handler(contender: &Contender) -> Option<String> {
    match contender {
        Contender::Other(other, _) => (other.name == OTHERS[0].name).then(|| other.name.to_owned()),
        Contender::Kata(kata) => Some(kata.name().replace(' ', "-")),
    }
}

/// The program, with a containerd and a pod network of its own. It ends with its stdin, and removes them.
struct Kubelet {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Kubelet {
    fn start(build: &Build, contenders: &[&Contender]) -> Result<Self> {
        let program = paths::target_dir().join("debug/examples").join(PROGRAM);
        let handlers = contenders.iter().filter_map(|one| match one {
            Contender::Kata(kata) => Some(format!("{}={}", handler(one)?, kata.config().display())),
            Contender::Other(..) => None,
        });
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = run::cmd(&program.to_string_lossy(), handlers);
        command.env("PATH", format!("{}:{path}", build.bin().display()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let to = child.stdin.take();
        let from = BufReader::new(child.stdout.take().context("a piped stdout")?);
        let mut this = Kubelet { child, to, from };
        this.answer()?;
        Ok(this)
    }

    /// The life of one: how long each step took.
    fn pod(&mut self, contender: &Contender) -> Result<Vec<Step>> {
        let to = self.to.as_mut().context("it was told to end")?;
        writeln!(to, "{}", handler(contender).context("nobody of this engine")?)?;
        program::parse(&self.answer()?)
    }

    /// All up to an empty line. Each of its calls has a deadline, so it says something in the end.
    fn answer(&mut self) -> Result<String> {
        let mut said = String::new();
        loop {
            let before = said.len();
            match self.from.read_line(&mut said)? {
                0 => bail!("the kubelet ended; it said why on stderr"),
                _ if said[before..].trim().is_empty() => return Ok(said[..before].to_owned()),
                _ => {}
            }
        }
    }

    fn end(mut self) -> Result<()> {
        drop(self.to.take());
        let status = self.child.wait()?;
        anyhow::ensure!(status.success(), "pods were left: {status}");
        Ok(())
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        drop(self.to.take());
        drop(self.child.wait());
    }
}
