//! One change to an engine's configuration: made, found made or half made after a crash, and undone.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use toml_edit::DocumentMut;

use crate::error::{DeployError, io};
use crate::files;
use crate::host::Host;
use crate::record::Change;
use crate::toml_table;

/// What identifies a content.
pub fn digest(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}

/// The directories above this file that are not there, deepest last, as the node calls them.
///
/// # Errors
/// Links in a circle.
pub fn missing_dirs(host: &Host, path: &Path) -> Result<Vec<PathBuf>, DeployError> {
    let mut missing = Vec::new();
    for dir in path.ancestors().skip(1) {
        if host.at(dir)?.exists() {
            break;
        }
        missing.insert(0, dir.to_owned());
    }
    Ok(missing)
}

/// How a file stands to a change that is on record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stands {
    /// As it was before.
    Before,
    /// As we wrote it.
    After,
    /// Somebody has edited it since.
    Edited,
}

impl Change {
    /// How the file stands.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn stands(&self, host: &Host) -> Result<Stands, DeployError> {
        let now = files::read(&host.at(&self.path)?)?;
        Ok(if now.as_deref().is_some_and(|text| digest(text) == self.after) {
            Stands::After
        } else if now == self.before {
            Stands::Before
        } else {
            Stands::Edited
        })
    }

    /// Whether our table is in the file now.
    ///
    /// # Errors
    /// A file that cannot be read or is no TOML.
    pub fn in_force(&self, host: &Host) -> Result<bool, DeployError> {
        let Some(text) = files::read(&host.at(&self.path)?)? else { return Ok(false) };
        Ok(self.is_in(&toml_table::parse(&self.path, &text)?))
    }

    /// Whether the runtime of our name in `doc` is ours. Somebody may have added to it, or put another in its place.
    fn is_in(&self, doc: &DocumentMut) -> bool {
        let Some(table) = toml_table::get(doc, &self.keys()) else { return false };
        ["runtime_path", "runtime_type"].into_iter().any(|key| {
            table.get(key).and_then(|value| value.as_str()).is_some_and(|path| Path::new(path) == self.program)
        })
    }

    /// The keys of our table.
    pub fn keys(&self) -> Vec<&str> {
        self.table.iter().map(String::as_str).collect()
    }

    /// Writes `text`, whose digest is on record. Whether anything was to be written.
    ///
    /// # Errors
    /// Names the file.
    pub fn make(&self, host: &Host, text: &str) -> Result<bool, DeployError> {
        if self.stands(host)? == Stands::After {
            return Ok(false);
        }
        let path = host.at(&self.path)?;
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(io("make", dir))?;
        }
        files::replace(&path, text, 0o644)?;
        Ok(true)
    }

    /// What the file was without the change, to the byte where nobody has edited it since; `None`: no file.
    ///
    /// # Errors
    /// A file that cannot be read or is no TOML.
    pub fn without(&self, host: &Host) -> Result<Option<String>, DeployError> {
        match self.stands(host)? {
            Stands::Before | Stands::After => Ok(self.before.clone()),
            Stands::Edited => match files::read(&host.at(&self.path)?)? {
                Some(text) => self.cut(&text),
                None => Ok(None),
            },
        }
    }

    /// Takes our table, and no more, out of a file that somebody has edited.
    fn cut(&self, text: &str) -> Result<Option<String>, DeployError> {
        let mut doc = toml_table::parse(&self.path, text)?;
        let keys = self.keys();
        if !self.is_in(&doc) {
            // Whoever took it out has seen to the rest.
            return Ok(Some(text.to_owned()));
        }
        toml_table::take(&mut doc, &keys);
        if let Some(old) = &self.replaced {
            toml_table::put(&mut doc, &self.path, &keys, toml_table::from_text(&self.path, old)?)?;
        }
        if let Some(runc) = &self.made_explicit {
            let runc: Vec<&str> = runc.iter().map(String::as_str).collect();
            let siblings = toml_table::get(&doc, &runc[..runc.len() - 1]).and_then(|i| i.as_table_like());
            let alone = siblings.is_some_and(|t| t.len() == 1);
            let as_made = toml_table::get(&doc, &runc).and_then(|i| i.as_table_like()).is_some_and(|t| t.len() == 1);
            // With another runtime beside it, it must go on being named.
            if alone && as_made {
                toml_table::take(&mut doc, &runc);
            }
        }
        let nothing_else = doc.iter().all(|(key, _)| key == "version");
        Ok(if self.before.is_none() && nothing_else { None } else { Some(doc.to_string()) })
    }

    /// Undoes it. Whether anything was to be undone.
    ///
    /// # Errors
    /// Names the file.
    pub fn undo(&self, host: &Host) -> Result<bool, DeployError> {
        let path = host.at(&self.path)?;
        let now = files::read(&path)?;
        let without = self.without(host)?;
        if without != now {
            match &without {
                Some(text) => files::replace(&path, text, 0o644)?,
                None => files::remove(&path)?,
            }
        }
        for dir in self.dirs.iter().rev() {
            // One in which somebody else has put something stays.
            drop(fs::remove_dir(host.at(dir)?));
        }
        Ok(without != now)
    }
}
