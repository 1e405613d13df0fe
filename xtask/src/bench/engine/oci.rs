//! The runtimes' own command lines, called as an engine calls them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Engine, KEEP, Verb};
use crate::bench::command::{bounded, timed};
use crate::bench::contender::Contender;
use crate::bench::kata::Build;
use crate::run;

/// Two bundles, and a directory for the runtimes' state.
pub struct Oci {
    dir: PathBuf,
}

impl Oci {
    /// Writes the bundles: one runs `true`, the other sleeps.
    ///
    /// # Errors
    /// `kata-runtime spec`'s, or a place that cannot be written.
    pub fn prepare(work: &Path, build: &Build, rootfs: &Path) -> Result<Self> {
        let dir = work.join("oci");
        bundle(&dir.join("true"), build, rootfs, &["true"])?;
        bundle(&dir.join("keep"), build, rootfs, &KEEP)?;
        Ok(Oci { dir })
    }

    fn command(&self, contender: &Contender) -> Command {
        let mut command = match contender {
            Contender::Other(_, program) => bounded(program),
            Contender::Kata(kata) => kata.runtime(),
        };
        // Each its own: they do not read each other's state.
        command.arg("--root").arg(self.dir.join(contender.name().replace(' ', "-")));
        command
    }
}

/// A bundle whose container runs `args` on the file system at `rootfs`.
///
/// # Errors
/// As of [`Oci::prepare`].
pub fn bundle(dir: &Path, build: &Build, rootfs: &Path, args: &[&str]) -> Result<PathBuf> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let runtime = build.bin().join("kata-runtime");
    run::check(run::cmd(&runtime.to_string_lossy(), ["spec", "--bundle"]).arg(dir))?;
    let config = dir.join("config.json");
    let mut spec: Value = serde_json::from_str(&fs::read_to_string(&config)?)?;
    spec["root"]["path"] = json!(rootfs);
    spec["process"]["terminal"] = json!(false);
    spec["process"]["args"] = json!(args);
    spec["process"]["env"] = json!(["PATH=/bin"]);
    fs::write(&config, spec.to_string())?;
    Ok(config)
}

impl Engine for Oci {
    fn name(&self) -> &'static str {
        "runtime"
    }

    fn run(&self, contender: &Contender, id: &str) -> Result<Duration> {
        timed(self.command(contender).args(["run", "--bundle"]).arg(self.dir.join("true")).arg(id))
    }

    fn begin(&self, contender: &Contender, id: &str) -> Result<Vec<(Verb, Duration)>> {
        let bundle = self.dir.join("keep");
        let create = timed(self.command(contender).args(["create", "--bundle"]).arg(bundle).arg(id))?;
        let start = timed(self.command(contender).args(["start", id]));
        if start.is_err() {
            drop(self.remove(contender, id));
        }
        Ok(vec![("create", create), ("start", start?)])
    }

    fn exec(&self, contender: &Contender, id: &str, _: usize) -> Result<Duration> {
        timed(self.command(contender).args(["exec", id, "true"]))
    }

    fn remove(&self, contender: &Contender, id: &str) -> Result<Duration> {
        timed(self.command(contender).args(["delete", "--force", id]))
    }
}
