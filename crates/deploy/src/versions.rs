//! The prefix on the node:
//!
//! ```text
//! /opt/kata/versions/<digest>/{bin,libexec,share}   whole, never changed
//! /opt/kata/current -> versions/<digest>            switched atomically; the engine's configuration leads through it
//! /opt/kata/{bin,libexec,share} -> current/...      for people, where the names are free
//! ```
//!
//! A process that runs from a version keeps it: its own files are the ones it was started with.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{DeployError, io};
use crate::files;
use crate::host::{FileId, Host};
use crate::tree::names;

/// The link that is switched.
pub const CURRENT: &str = "current";
const VERSIONS: &str = "versions";
const LOCK: &str = ".lock";
/// Names for people.
const LINKS: [&str; 3] = ["bin", "libexec", "share"];
/// The word by which a keeper of templates and pools is started. It serves only sandboxes to come.
const KEEPER: &str = "factory-daemon";
/// How long keepers have to end what waits in their pools.
const DRAIN: Duration = Duration::from_secs(10);

/// The prefix, locked.
#[derive(Debug)]
pub struct Prefix {
    host: Host,
    /// As we see it.
    dir: PathBuf,
    _lock: File,
}

impl Prefix {
    /// Makes the prefix if it must, and locks it until this is dropped.
    ///
    /// # Errors
    /// A place that cannot be written, or somebody who is at it already.
    pub fn lock(host: &Host, prefix: &Path) -> Result<Prefix, DeployError> {
        let dir = host.at(prefix)?;
        fs::create_dir_all(&dir).map_err(io("make", &dir))?;
        let path = dir.join(LOCK);
        let lock = File::options().create(true).append(true).open(&path).map_err(io("open", &path))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| DeployError::Busy { path: dir.clone() })?;
        Ok(Prefix { host: host.clone(), dir, _lock: lock })
    }

    /// As we see it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where this version is or will be.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn version(&self, name: &str) -> Result<PathBuf, DeployError> {
        let dir = self.dir.join(VERSIONS);
        fs::create_dir_all(&dir).map_err(io("make", &dir))?;
        Ok(dir.join(name))
    }

    /// Refuses a place where `versions` or `current` is something of somebody else's.
    ///
    /// # Errors
    /// [`DeployError::ForeignPrefix`].
    pub fn check_free(&self) -> Result<(), DeployError> {
        for name in [VERSIONS, CURRENT] {
            if fs::symlink_metadata(self.dir.join(name)).is_ok() {
                return Err(DeployError::ForeignPrefix { path: self.dir.clone(), found: name.to_owned() });
            }
        }
        Ok(())
    }

    /// Makes this version the current one.
    ///
    /// # Errors
    /// Names the link.
    pub fn switch(&self, version: &str) -> Result<(), DeployError> {
        files::replace_link(&self.dir.join(CURRENT), &Path::new(VERSIONS).join(version))
    }

    /// The names for people that are free. Upstream has directories of these names.
    pub fn free_links(&self) -> Vec<String> {
        let free = LINKS.into_iter().filter(|name| fs::symlink_metadata(self.dir.join(name)).is_err());
        free.map(str::to_owned).collect()
    }

    /// Makes them.
    ///
    /// # Errors
    /// Names the link.
    pub fn link(&self, links: &[String]) -> Result<(), DeployError> {
        links.iter().try_for_each(|name| files::replace_link(&self.dir.join(name), &Path::new(CURRENT).join(name)))
    }

    /// Removes every version but `keep` that no process runs from, after telling the keepers of others to end. Returns
    /// who runs from those that stay.
    ///
    /// # Errors
    /// A directory that cannot be read or removed.
    pub fn prune(&self, keep: Option<&str>) -> Result<Users, DeployError> {
        let deadline = Instant::now() + DRAIN;
        self.end_keepers(keep)?;
        loop {
            let users = users(&self.host, &self.dir)?;
            for name in users.versions.iter().filter(|(n, pids)| Some(n.as_str()) != keep && pids.is_empty()) {
                files::remove_tree(&self.dir.join(VERSIONS).join(name.0))?;
            }
            self.sweep()?;
            let left: BTreeMap<String, Vec<i32>> = users
                .versions
                .into_iter()
                .filter(|(name, pids)| Some(name.as_str()) != keep && !pids.is_empty())
                .collect();
            if left.is_empty() || !self.waits_for_pool(&left) || Instant::now() >= deadline {
                return Ok(Users { versions: left, certain: users.certain });
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Whether one of these is a keeper, or waits in a pool of one that was told to end.
    fn waits_for_pool(&self, left: &BTreeMap<String, Vec<i32>>) -> bool {
        let pids: BTreeSet<i32> = left.values().flatten().copied().collect();
        let pool = |argv: &[String]| argv.iter().any(|arg| arg == KEEPER || arg == "--pool");
        self.host.processes().iter().any(|p| pids.contains(&p.pid) && pool(&p.argv))
    }

    fn end_keepers(&self, keep: Option<&str>) -> Result<(), DeployError> {
        let users = users(&self.host, &self.dir)?;
        let old = users.versions.iter().filter(|(name, _)| Some(name.as_str()) != keep);
        let old: BTreeSet<i32> = old.flat_map(|(_, pids)| pids).copied().collect();
        for process in self.host.processes() {
            if old.contains(&process.pid)
                && process.argv.get(1).is_some_and(|word| word == KEEPER)
                && let Some(pid) = rustix::process::Pid::from_raw(process.pid)
            {
                // Gone meanwhile: then it has ended.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
        }
        Ok(())
    }

    /// What a crash has left of a copy.
    fn sweep(&self) -> Result<(), DeployError> {
        let dir = self.dir.join(VERSIONS);
        for name in names(&dir).unwrap_or_default() {
            if name.to_string_lossy().starts_with('.') {
                files::remove_tree(&dir.join(name))?;
            }
        }
        Ok(())
    }

    /// Removes the links and what versions were in.
    ///
    /// # Errors
    /// Names what cannot be removed.
    pub fn clear_links(&self, links: &[String]) -> Result<(), DeployError> {
        for name in links.iter().map(String::as_str).chain([CURRENT]) {
            files::remove(&self.dir.join(name))?;
        }
        drop(fs::remove_dir(self.dir.join(VERSIONS)));
        Ok(())
    }

    /// Removes the lock and, when it is empty then, the prefix.
    ///
    /// # Errors
    /// Names what cannot be removed.
    pub fn clear(self) -> Result<(), DeployError> {
        files::remove(&self.dir.join(LOCK))?;
        // In a container it may be a mount, and something of somebody else's may be in it: then it stays.
        drop(fs::remove_dir(&self.dir));
        Ok(())
    }
}

/// The versions of a prefix.
#[derive(Debug, Default)]
pub struct Users {
    /// Each with the processes that run from it, as far as is known.
    pub versions: BTreeMap<String, Vec<i32>>,
    /// Whether every process could be looked at. If not, every version counts as run from, by "process" 0.
    pub certain: bool,
}

/// The versions that are in `prefix` (as we see it), and who runs from them.
///
/// # Errors
/// A directory that cannot be read.
pub fn users(host: &Host, prefix: &Path) -> Result<Users, DeployError> {
    let dir = prefix.join(VERSIONS);
    let mut programs: BTreeMap<String, BTreeSet<FileId>> = BTreeMap::new();
    if dir.exists() {
        for name in names(&dir)?.into_iter().filter(|n| !n.to_string_lossy().starts_with('.')) {
            let mut files = BTreeSet::new();
            collect(&dir.join(&name), &mut files)?;
            programs.insert(name.to_string_lossy().into_owned(), files);
        }
    }
    let sets = programs.iter().map(|(name, files)| (name.as_str(), files.clone())).collect();
    let runs = host.runs(&sets);
    let certain = runs.is_some();
    let pids = |name: &str| match &runs {
        Some(runs) => runs.get(name).cloned().unwrap_or_default(),
        None => vec![0],
    };
    let versions = programs.keys().map(|name| (name.clone(), pids(name))).collect();
    Ok(Users { versions, certain })
}

fn collect(dir: &Path, files: &mut BTreeSet<FileId>) -> Result<(), DeployError> {
    for name in names(dir)? {
        let path = dir.join(name);
        let meta = fs::symlink_metadata(&path).map_err(io("read", &path))?;
        if meta.is_dir() {
            collect(&path, files)?;
        } else if meta.is_file() {
            files.insert((meta.dev(), meta.ino()));
        }
    }
    Ok(())
}
