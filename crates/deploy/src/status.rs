//! `status`: what is installed, read only.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::args;
use crate::change::Stands;
use crate::engine::Engine;
use crate::error::DeployError;
use crate::host::{Host, absolute};
use crate::record::Record;
use crate::versions::users;

/// What there is.
#[derive(Debug, Serialize)]
pub struct Status {
    /// The prefix, as the node calls it.
    pub prefix: PathBuf,
    /// Nothing: not installed.
    pub installation: Option<Installation>,
}

/// An installation.
#[derive(Debug, Serialize)]
pub struct Installation {
    /// The version that new sandboxes are of.
    pub version: String,
    /// All versions that are there, with the processes that run from each; `null` if not all could be looked at.
    pub versions: BTreeMap<String, Option<Vec<i32>>>,
    /// Whether a removal has begun and waits for processes to end.
    pub removing: bool,
    /// The engine.
    pub engine: Engine,
    /// Its configuration file, as the node calls it.
    pub config: Option<PathBuf>,
    /// Whether our runtime is in it.
    pub configured: bool,
    /// Whether somebody has edited it since.
    pub config_edited: bool,
    /// Whether the engine has been started since our last change; `null`: it does not run.
    pub engine_restarted: Option<bool>,
}

/// Looks.
///
/// # Errors
/// [`DeployError`].
pub fn status(args: &args::Status) -> Result<Status, DeployError> {
    let host = Host::new(&args.place.host_root)?;
    absolute("prefix", &args.place.prefix)?;
    let dir = host.at(&args.place.prefix)?;
    let Some(record) = Record::read(&dir)? else {
        return Ok(Status { prefix: args.place.prefix.clone(), installation: None });
    };
    let users = users(&host, &dir)?;
    let file = record.config.as_ref().map(|c| c.path.as_path());
    let engine_restarted = match &record.changed {
        Some(changed) => record.engine.restarted(&host, &record.engine_config, changed)?,
        None => None,
    };
    let installation = Installation {
        version: record.version.clone(),
        versions: users.versions.into_iter().map(|(name, pids)| (name, users.certain.then_some(pids))).collect(),
        removing: record.removing,
        engine: record.engine,
        config: file.map(PathBuf::from),
        configured: record.config.as_ref().map(|c| c.in_force(&host)).transpose()?.unwrap_or(false),
        config_edited: match &record.config {
            Some(change) => change.stands(&host)? == Stands::Edited,
            None => false,
        },
        engine_restarted,
    };
    Ok(Status { prefix: args.place.prefix.clone(), installation: Some(installation) })
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(it) = &self.installation else {
            return writeln!(f, "nothing is installed in {}", self.prefix.display());
        };
        writeln!(f, "installed in {}, version {}", self.prefix.display(), it.version)?;
        for (name, pids) in &it.versions {
            let who = match pids {
                Some(pids) if pids.is_empty() => "no process runs from it".to_owned(),
                Some(pids) => format!("processes {pids:?} run from it"),
                None => "not every process could be looked at".to_owned(),
            };
            writeln!(f, "  version {name}: {who}")?;
        }
        if it.removing {
            writeln!(f, "  being removed: waits for those processes to end; then run `kata-deploy remove` again")?;
        }
        let name = it.engine.name();
        if let Some(config) = &it.config {
            let has = if it.configured { "has" } else { "does not have" };
            let edited = if it.config_edited { ", and was edited by somebody else since" } else { "" };
            writeln!(f, "  {}: {has} the runtime{edited}", config.display())?;
        }
        match it.engine_restarted {
            Some(true) => writeln!(f, "  {name} has been started since the last change"),
            Some(false) => writeln!(f, "  {name} has not been restarted since: `systemctl restart {name}`"),
            None => writeln!(f, "  {name} does not run"),
        }
    }
}
