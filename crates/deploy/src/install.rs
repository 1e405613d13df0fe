//! `install`. Every step is on record before it is taken, so that a crash between any two is repeated or undone; all that
//! could be refused is refused before the first.

use std::path::{Path, PathBuf};

use crate::args::{self, CrioType};
use crate::change::{Stands, digest, missing_dirs};
use crate::engine::Engine;
use crate::error::DeployError;
use crate::host::{Host, absolute};
use crate::record::{Change, Record};
use crate::tree::Tree;
use crate::versions::{CURRENT, Prefix, Users};
use crate::{containerd, crio, files};

/// What came of it.
#[derive(Debug)]
pub struct Installed {
    /// The version that is current now.
    pub version: String,
    /// The engine.
    pub engine: Engine,
    /// Its configuration file, as the node calls it.
    pub config: PathBuf,
    /// Whether that was changed now.
    pub changed: bool,
    /// Old versions that stay, because somebody runs from them.
    pub kept: Users,
    /// Whether the engine must be restarted to know the runtime.
    pub needs_restart: bool,
}

/// A change to be made, and what the file will be then.
struct Planned {
    change: Change,
    text: String,
}

/// Installs. `source`: the prefix to copy.
///
/// # Errors
/// [`DeployError`].
pub fn install(args: &args::Install, source: &Path) -> Result<Installed, DeployError> {
    let host = Host::new(&args.place.host_root)?;
    absolute("prefix", &args.place.prefix)?;
    if let Some(file) = &args.engine_config {
        absolute("engine-config", file)?;
    }
    let main = args.engine_config.clone().unwrap_or_else(|| containerd::DEFAULT.into());
    let engine = Engine::find(&host, args.engine, &main)?;
    let tree = Tree::read(source)?;
    let version = tree.name();
    let prefix = Prefix::lock(&host, &args.place.prefix)?;
    let old = Record::read(prefix.dir())?;
    if old.is_none() {
        prefix.check_free()?;
    }
    let mut record = old.clone().unwrap_or_else(|| Record::new(engine, &main, &version));
    let planned = plan(&host, args, engine, &main, record.config.as_ref())?;

    // From here on things change.
    let elsewhere = record.config.take_if(|done| planned.as_ref().is_some_and(|p| p.change.path != done.path));
    if let Some(change) = elsewhere {
        // It was for another engine or file: that is undone first.
        change.undo(&host)?;
    }
    record.engine = engine;
    record.engine_config = main;
    record.version.clone_from(&version);
    record.removing = false;
    for name in prefix.free_links() {
        if !record.links.contains(&name) {
            record.links.push(name);
        }
    }
    if let Some(planned) = &planned {
        record.config = Some(planned.change.clone());
        record.changed = Some(host.now()?);
    }
    record.write(prefix.dir())?;
    tree.copy(&prefix.version(&version)?)?;
    prefix.switch(&version)?;
    prefix.link(&record.links)?;
    let mut changed = false;
    if let Some(planned) = &planned {
        changed = planned.change.make(&host, &planned.text)?;
        if changed {
            record.changed = Some(host.now()?);
            record.write(prefix.dir())?;
        }
    }
    let kept = prefix.prune(Some(&version))?;
    let config = record.config.as_ref().map(|c| c.path.clone()).unwrap_or_default();
    let needs_restart = needs_restart(&host, &record)?;
    Ok(Installed { version, engine, config, changed, kept, needs_restart })
}

/// Whether the engine runs and has read its configuration before our last change.
///
/// # Errors
/// A node without /proc.
pub fn needs_restart(host: &Host, record: &Record) -> Result<bool, DeployError> {
    let Some(changed) = &record.changed else { return Ok(false) };
    Ok(record.engine.restarted(host, &record.engine_config, changed)? == Some(false))
}

/// The change to make; `None` if the one on record is in force.
fn plan(
    host: &Host,
    args: &args::Install,
    engine: Engine,
    main: &Path,
    done: Option<&Change>,
) -> Result<Option<Planned>, DeployError> {
    let path = match engine {
        Engine::Containerd => containerd::deciding_file(host, main)?,
        Engine::Crio => crio::drop_in(),
    };
    let done = done.filter(|change| change.path == path);
    let bin = args.place.prefix.join(CURRENT).join("bin");
    let now = files::read(&host.at(&path)?)?;
    // Without what we did there before, whatever others have done since.
    let before = match done {
        Some(change) => change.without(host)?,
        None => now.clone(),
    };
    let replace = args.replace_upstream || done.is_some_and(|change| change.replaced.is_some());
    let mut planned = match engine {
        Engine::Containerd => containerd_change(host, replace, path, before, &bin)?,
        Engine::Crio => crio_change(host, args.crio_type, args.replace_upstream || done.is_some(), before, &bin, path)?,
    };
    if let Some(done) = done {
        planned.change.dirs.clone_from(&done.dirs);
        let as_it_would_be = now.as_deref() == Some(&planned.text);
        // What somebody has added to our table since is theirs to keep.
        let edited = done.stands(host)? == Stands::Edited && done.in_force(host)?;
        if as_it_would_be || edited && done.program == planned.change.program {
            return Ok(None);
        }
    }
    Ok(Some(planned))
}

fn containerd_change(
    host: &Host,
    replace: bool,
    path: PathBuf,
    before: Option<String>,
    bin: &Path,
) -> Result<Planned, DeployError> {
    let program = bin.join("containerd-shim-kata-v2");
    let edited = containerd::edit(&path, before.as_deref(), &program)?;
    if edited.replaced.is_some() && !replace {
        return Err(DeployError::Taken { path });
    }
    let change = Change {
        dirs: missing_dirs(host, &path)?,
        path,
        before,
        after: digest(&edited.text),
        table: edited.table,
        program,
        replaced: edited.replaced,
        made_explicit: edited.made_explicit,
    };
    Ok(Planned { change, text: edited.text })
}

fn crio_change(
    host: &Host,
    kind: CrioType,
    replace: bool,
    before: Option<String>,
    bin: &Path,
    path: PathBuf,
) -> Result<Planned, DeployError> {
    // A file of somebody else's stays as it is: ours comes after it.
    if let Some(path) = crio::taken_by(host)?
        && !replace
    {
        return Err(DeployError::Taken { path });
    }
    let text = crio::content(bin, kind)?;
    let change = Change {
        dirs: missing_dirs(host, &path)?,
        path,
        before,
        after: digest(&text),
        table: crio::TABLE.map(str::to_owned).to_vec(),
        program: bin.join(crio::program(kind)),
        replaced: None,
        made_explicit: None,
    };
    Ok(Planned { change, text })
}
