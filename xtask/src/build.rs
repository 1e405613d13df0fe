//! Building the two programs.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::{deps, paths, run};

/// Optimised for size and speed, or quickly built.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// What is installed and measured.
    Release,
    /// What the tests and the demo run.
    Dev,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Profile::Release => "release",
            Profile::Dev => "dev",
        }
    }

    /// Its directory below the target directory.
    pub fn dir(self) -> &'static str {
        match self {
            Profile::Release => "release",
            Profile::Dev => "debug",
        }
    }
}

/// Builds `kata` and returns its path.
///
/// # Errors
/// cargo's.
pub fn host(profile: Profile) -> Result<PathBuf> {
    run::check(&mut run::cargo(["build", "--package", "kata", "--bin", "kata", "--profile", profile.name()]))?;
    built(paths::target_dir().join(profile.dir()).join("kata"))
}

/// Builds the static agent and returns the path of a copy without debug information: the guest would unpack all of that
/// and keep it in memory.
///
/// # Errors
/// cargo's, or strip's.
pub fn agent(profile: Profile) -> Result<PathBuf> {
    let target = deps::guest_target();
    let mut cargo = run::cargo(["build", "--package", "kata-agent", "--bin", "kata-agent"]);
    cargo.args(["--profile", profile.name(), "--target", target.triple]);
    if !target.rustflags.is_empty() {
        cargo.env("RUSTFLAGS", target.rustflags);
    }
    run::check(&mut cargo)?;
    let whole = built(paths::target_dir().join(target.triple).join(profile.dir()).join("kata-agent"))?;
    let dir = paths::target_dir().join("kata/pieces").join(profile.dir());
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let stripped = dir.join("agent");
    let temp = dir.join(format!("agent.{}.new", std::process::id()));
    run::check(run::cmd("strip", ["-o"]).arg(&temp).arg(whole))?;
    std::fs::rename(&temp, &stripped).with_context(|| format!("cannot write {}", stripped.display()))?;
    Ok(stripped)
}

fn built(path: PathBuf) -> Result<PathBuf> {
    path.metadata().with_context(|| format!("cargo did not make {}", path.display()))?;
    Ok(path)
}
