//! `remove`: undoes what is on record, and nothing else. It may be repeated until nothing is left.

use crate::args;
use crate::engine::Engine;
use crate::error::DeployError;
use crate::host::{Host, absolute};
use crate::record::Record;
use crate::versions::{Prefix, Users};

/// What came of it.
#[derive(Debug)]
pub enum Removed {
    /// There was nothing.
    Nothing,
    /// All of it.
    All {
        /// The engine, if its configuration was changed back and it has not been restarted.
        restart: Option<Engine>,
    },
    /// The engine no longer has the runtime, but processes run from these versions, so the files stay.
    InUse {
        /// Who.
        users: Users,
        /// As above.
        restart: Option<Engine>,
    },
}

/// Removes.
///
/// # Errors
/// [`DeployError`].
pub fn remove(args: &args::Remove) -> Result<Removed, DeployError> {
    let host = Host::new(&args.place.host_root)?;
    absolute("prefix", &args.place.prefix)?;
    let dir = host.at(&args.place.prefix)?;
    // Not to make a prefix in order to find nothing in it.
    if !Record::is_in(&dir) {
        return Ok(Removed::Nothing);
    }
    let prefix = Prefix::lock(&host, &args.place.prefix)?;
    let Some(mut record) = Record::read(prefix.dir())? else { return Ok(Removed::Nothing) };
    if !record.removing {
        record.removing = true;
        record.write(prefix.dir())?;
    }
    if let Some(change) = &record.config
        && change.undo(&host)?
    {
        record.changed = Some(host.now()?);
        record.write(prefix.dir())?;
    }
    let restart = super::install::needs_restart(&host, &record)?.then_some(record.engine);
    // All or none: an engine cleans up after a sandbox of an old version with the current one.
    let current = record.version.clone();
    let mut left = prefix.prune(Some(&current))?;
    if left.versions.is_empty() {
        left = prefix.prune(None)?;
    }
    if !left.versions.is_empty() {
        return Ok(Removed::InUse { users: left, restart });
    }
    let dir = prefix.dir().to_owned();
    // The record goes before the lock and after everything it is about.
    prefix.clear_links(&record.links)?;
    Record::remove(&dir)?;
    prefix.clear()?;
    Ok(Removed::All { restart })
}
