//! The record: what was changed on the node, written before it is changed. It is all that `remove` goes by.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::engine::Engine;
use crate::error::DeployError;
use crate::files;
use crate::host::Moment;

/// Below the prefix.
const NAME: &str = "deploy.json";
/// Of the record's form.
const FORMAT: u32 = 1;

/// What was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// [`FORMAT`].
    format: u32,
    /// The engine it was installed for.
    pub engine: Engine,
    /// The file that engine reads first, as the node calls it. What was changed may be one that it imports.
    pub engine_config: PathBuf,
    /// The version that is to be the current one.
    pub version: String,
    /// Names below the prefix that lead into the current version, and were free.
    pub links: Vec<String>,
    /// What was done to the engine's configuration.
    pub config: Option<Change>,
    /// Whether it is being removed.
    pub removing: bool,
    /// When the engine's configuration last changed, until it is known to have been restarted.
    pub changed: Option<Moment>,
}

/// A change to a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// The file, as the node calls it.
    pub path: PathBuf,
    /// What was in it; nothing: it was not there.
    pub before: Option<String>,
    /// SHA-256 of what we wrote.
    pub after: String,
    /// The keys that lead to our table.
    pub table: Vec<String>,
    /// The program that our table leads to: one that leads elsewhere is not ours.
    pub program: PathBuf,
    /// The table of somebody else that was in its place, as TOML.
    pub replaced: Option<String>,
    /// The keys that lead to a table which only says what the engine took for granted without any.
    pub made_explicit: Option<Vec<String>>,
    /// Directories that were made for the file, deepest last, as the node calls them.
    pub dirs: Vec<PathBuf>,
}

impl Record {
    /// Of an installation that begins.
    pub fn new(engine: Engine, engine_config: &Path, version: &str) -> Record {
        Record {
            format: FORMAT,
            engine,
            engine_config: engine_config.to_owned(),
            version: version.to_owned(),
            links: Vec::new(),
            config: None,
            removing: false,
            changed: None,
        }
    }

    /// The one of the installation in `prefix` (as we see it).
    ///
    /// # Errors
    /// One that cannot be read or understood.
    pub fn read(prefix: &Path) -> Result<Option<Record>, DeployError> {
        let path = prefix.join(NAME);
        let Some(text) = files::read(&path)? else { return Ok(None) };
        let damaged = |why: String| DeployError::Record { path: path.clone(), why };
        let record: Record = serde_json::from_str(&text).map_err(|e| damaged(e.to_string()))?;
        if record.format == FORMAT { Ok(Some(record)) } else { Err(damaged(format!("format {}", record.format))) }
    }

    /// Writes it. Only root may read it: an engine's configuration can hold passwords of registries.
    ///
    /// # Errors
    /// Names the file.
    pub fn write(&self, prefix: &Path) -> Result<(), DeployError> {
        let text = serde_json::to_string_pretty(self).unwrap_or_default();
        files::replace(&prefix.join(NAME), &text, 0o600)
    }

    /// Removes it.
    ///
    /// # Errors
    /// Names the file.
    pub fn remove(prefix: &Path) -> Result<(), DeployError> {
        files::remove(&prefix.join(NAME))
    }

    /// Whether a prefix has one, readable or not.
    pub fn is_in(prefix: &Path) -> bool {
        fs::symlink_metadata(prefix.join(NAME)).is_ok()
    }
}
