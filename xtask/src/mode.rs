//! How the sandboxes of a test run begin: out of the pool, from a template, or by booting.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::run;

/// Beside the stage's configuration.
const DROP_IN: &str = "share/defaults/kata-containers/config.d/50-test.toml";
/// How many sandboxes wait: tests make one or two at a time.
const WAITING: u32 = 2;

/// How they begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// They wait for their name.
    Pool,
    /// They are restored.
    Template,
    /// They boot.
    Boot,
}

impl Mode {
    /// All, the fastest first.
    pub const ALL: [Mode; 3] = [Mode::Pool, Mode::Template, Mode::Boot];

    /// For the tests.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Pool => "pool",
            Mode::Template => "template",
            Mode::Boot => "boot",
        }
    }

    /// For people.
    pub fn says(self) -> &'static str {
        match self {
            Mode::Pool => "from the pool",
            Mode::Template => "from a template",
            Mode::Boot => "that boot",
        }
    }

    fn text(self) -> String {
        let (template, pool) = match self {
            Mode::Pool => (true, WAITING),
            Mode::Template => (true, 0),
            Mode::Boot => (false, 0),
        };
        let mut text = format!("[factory]\nenable_template = {template}\nvm_cache_number = {pool}\n");
        if self == Mode::Boot {
            // So that it is tested, too.
            text += &format!("[hypervisor.qemu]\npath = \"/usr/bin/qemu-system-{}\"\n", std::env::consts::ARCH);
        }
        text
    }

    /// Makes a stage begin its sandboxes so.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn configure(self, stage: &Path) -> Result<()> {
        let file = stage.join(DROP_IN);
        let dir = file.parent().context("a file in a directory")?;
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        fs::write(&file, self.text()).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Leaves a stage with its own configuration.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn unconfigure(stage: &Path) -> Result<()> {
        let file = stage.join(DROP_IN);
        match fs::remove_file(&file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(e).with_context(|| format!("cannot remove {}", file.display()))
            }
            _ => Ok(()),
        }
    }

    /// Configures a stage, makes what its sandboxes begin from, and takes that away again when dropped.
    ///
    /// # Errors
    /// The factory's.
    pub fn ready(self, stage: &Path) -> Result<Factory> {
        self.configure(stage)?;
        let factory = Factory { runtime: stage.join("bin/kata-runtime") };
        // What an interrupted run has left.
        factory.call("destroy")?;
        if self != Mode::Boot {
            run::step(&format!("the factory, for sandboxes {}", self.says()), || factory.call("init"))?;
        }
        Ok(factory)
    }
}

/// A factory that is in use.
pub struct Factory {
    runtime: PathBuf,
}

impl Factory {
    fn call(&self, verb: &str) -> Result<()> {
        run::output(&mut run::cmd(&self.runtime.to_string_lossy(), ["factory", verb])).map(drop)
    }
}

impl Drop for Factory {
    fn drop(&mut self) {
        if let Err(err) = self.call("destroy") {
            eprintln!("    {err:#}");
        }
    }
}
