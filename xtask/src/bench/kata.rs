//! Ourselves in one of the ways in which a sandbox can begin, with a configuration, templates and a pool of the
//! benchmark's own.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::command::{bounded, timed};
use crate::run;

/// Where all pools are.
const POOLS: &str = "/run/kata/pool";
/// Its keeper's log, and what it says when a sandbox was taken.
const LOG: &str = ".keeper.log";
const TAKEN: &str = "a sandbox was taken";
/// It says so within this.
const LOGGED: Duration = Duration::from_secs(3);
/// A pool fills within this, for each that it is to have.
const FILL: Duration = Duration::from_secs(60);
/// A pool in which nothing is made for so long rests. Longer than its keeper holds back after one was taken.
const REST: Duration = Duration::from_millis(400);
/// A keeper and its sandboxes end within this.
const END: Duration = Duration::from_secs(30);

/// How a sandbox begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Its VM boots a kernel.
    Cold,
    /// Its VM begins where another was saved.
    Template,
    /// It has waited, with everything.
    Pool,
}

impl Mode {
    /// The slowest first.
    pub const ALL: [Mode; 3] = [Mode::Cold, Mode::Template, Mode::Pool];
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Cold => "cold",
            Mode::Template => "template",
            Mode::Pool => "pool",
        })
    }
}

/// An installation, and how it is called in the report.
#[derive(Debug, Clone)]
pub struct Build {
    /// "kata", or "A" and "B" where two are compared.
    pub label: String,
    /// Has `bin/kata-runtime`.
    pub prefix: PathBuf,
}

impl Build {
    /// Where its programs are.
    pub fn bin(&self) -> PathBuf {
        self.prefix.join("bin")
    }
}

/// What is going to be started, and how many were taken from the pool before.
pub struct Ticket {
    taken: usize,
    starts: usize,
}

/// One build in one mode. Its keeper, its pool and its templates end with it.
pub struct Kata {
    build: Build,
    mode: Mode,
    config: PathBuf,
    templates: PathBuf,
    pool: Option<PathBuf>,
    /// How many wait.
    size: usize,
}

impl Kata {
    /// Writes the configuration into `work`, makes the template and fills the pool; `size`: how many wait in it.
    ///
    /// # Errors
    /// `factory init`'s.
    pub fn prepare(build: &Build, mode: Mode, size: usize, work: &Path) -> Result<Self> {
        let name = format!("{}-{mode}", build.label);
        let templates = work.join(format!("{name}.templates"));
        let config = work.join(format!("{name}.toml"));
        let size = if mode == Mode::Pool { size } else { 0 };
        fs::write(
            &config,
            format!(
                "[factory]\nenable_template = {}\ntemplate_path = {templates:?}\nvm_cache_number = {size}\n",
                mode != Mode::Cold
            ),
        )?;
        let mut this = Kata { build: build.clone(), mode, config, templates, pool: None, size };
        if mode != Mode::Cold {
            timed(this.runtime().args(["factory", "init"])).with_context(|| this.name())?;
        }
        if mode == Mode::Pool {
            let key = this.current_pool()?["key"].as_str().map(str::to_owned).context("a pool without a key")?;
            this.pool = Some(Path::new(POOLS).join(key));
        }
        Ok(this)
    }

    /// "kata pool".
    pub fn name(&self) -> String {
        format!("{} {}", self.build.label, self.mode)
    }

    /// The mode.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The installation.
    pub fn build(&self) -> &Build {
        &self.build
    }

    /// The configuration's file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// `kata-runtime` with our configuration.
    pub fn runtime(&self) -> std::process::Command {
        let mut command = bounded(self.build.bin().join("kata-runtime"));
        command.arg("--kata-config").arg(&self.config);
        command
    }

    fn status(&self) -> Result<Value> {
        let text = run::output(self.runtime().args(["factory", "status", "--json"]))?;
        serde_json::from_str(&text).context("what `factory status --json` says")
    }

    fn current_pool(&self) -> Result<Value> {
        let status = self.status()?;
        let mut pools = status["pools"].as_array().into_iter().flatten();
        let current = pools.find(|pool| pool["current"] == true).cloned();
        current.with_context(|| format!("no pool of {}", self.name()))
    }

    /// Where the next sandbox would come from must be what is meant.
    fn check_next(&self) -> Result<()> {
        let status = self.status()?;
        let next = status["next"].as_str().unwrap_or_default();
        let (word, _) = next.split_once(' ').unwrap_or((next, ""));
        let meant = if self.mode == Mode::Cold { "boot" } else { "template" };
        ensure!(word == meant, "a sandbox of {} would come from {next:?}", self.name());
        Ok(())
    }

    /// Waits until `starts` sandboxes would begin as meant, and nothing is being made in the background.
    ///
    /// # Errors
    /// They would not.
    pub fn ready(&self, starts: usize) -> Result<Ticket> {
        let Some(pool) = &self.pool else {
            self.check_next()?;
            return Ok(Ticket { taken: 0, starts });
        };
        let wanted = self.size.max(starts);
        let deadline = Instant::now() + FILL * u32::try_from(wanted).unwrap_or(u32::MAX);
        let mut since = Instant::now();
        loop {
            let (waiting, busy) = members(pool);
            if busy || waiting < wanted {
                since = Instant::now();
            }
            if since.elapsed() >= REST {
                return Ok(Ticket { taken: taken(pool), starts });
            }
            if Instant::now() >= deadline {
                let log = fs::read_to_string(pool.join(LOG)).unwrap_or_default();
                bail!("{} does not fill: {waiting} of {wanted} wait; {log}", self.name());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Fails unless what was started since began as meant. A pool's keeper logs each sandbox that is taken. A template that
    /// cannot be used is removed by whoever tried: where it is there still, it was used.
    ///
    /// # Errors
    /// Then.
    pub fn came_true(&self, ticket: &Ticket) -> Result<()> {
        let Some(pool) = &self.pool else { return self.check_next() };
        let wanted = ticket.taken + ticket.starts;
        let deadline = Instant::now() + LOGGED;
        while taken(pool) < wanted && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        let taken = taken(pool) - ticket.taken;
        ensure!(taken == ticket.starts, "{}: {} started, and {taken} taken from the pool", self.name(), ticket.starts);
        Ok(())
    }

    fn end_pool(&self, pool: &Path) -> Result<()> {
        // Not `factory destroy`: that ends the pools of everybody on this machine.
        let keeper = self.current_pool()?["keeper"].as_i64().context("nobody keeps it")?;
        ensure!(run::succeeds("kill", &["-TERM", &keeper.to_string()]), "its keeper {keeper} cannot be told");
        let deadline = Instant::now() + END;
        while pool.exists() {
            ensure!(Instant::now() < deadline, "its keeper {keeper} does not end; see {}", pool.display());
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for Kata {
    fn drop(&mut self) {
        if let Some(pool) = &self.pool
            && let Err(err) = self.end_pool(pool)
        {
            eprintln!("    {}: {err:#}", self.name());
        }
        if let Err(err) = crate::kernel::remove_tree(&self.templates) {
            eprintln!("    {}: {err:#}", self.name());
        }
    }
}

/// How many wait, and whether one is being made or removed.
fn members(pool: &Path) -> (usize, bool) {
    let entries = fs::read_dir(pool).into_iter().flatten().flatten();
    let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let (hidden, waiting): (Vec<_>, Vec<_>) =
        dirs.partition(|entry| entry.file_name().as_encoded_bytes().starts_with(b"."));
    (waiting.len(), !hidden.is_empty())
}

/// How many the keeper has seen taken.
fn taken(pool: &Path) -> usize {
    let log = fs::read_to_string(pool.join(LOG)).unwrap_or_default();
    log.lines().filter(|line| line.contains(TAKEN)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_busy_while_one_is_made() {
        let dir = std::env::temp_dir().join(format!("kata-bench-pool-{}", std::process::id()));
        fs::create_dir_all(dir.join("1")).unwrap();
        fs::write(dir.join(".keeper"), "").unwrap();
        assert_eq!(members(&dir), (1, false));
        fs::create_dir_all(dir.join(".2")).unwrap();
        assert_eq!(members(&dir), (1, true));
        fs::write(dir.join(LOG), format!("a\nINFO {TAKEN} number=1\nb\n")).unwrap();
        assert_eq!(taken(&dir), 1);
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(members(&dir), (0, false));
    }
}
