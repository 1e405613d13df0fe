//! Templates: guests saved when they were ready for work, each in a directory named by its shape.
//!
//! A template is made in a directory of its own, written through to the disk, and renamed into place: who finds it finds
//! it whole. One builder at a time holds the lock; what a killed builder left is removed by the next.

mod build;

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use kata_types::Mib;
use kata_vmm::{MemorySharing, Snapshot};
use rustix::fs::{FlockOperation, flock};
use thiserror::Error;

pub use build::{BuildError, build};

const STATE: &str = "state";
const MEMORY: &str = "memory";
/// What is being made; the builder's pid follows.
const UNFINISHED: &str = ".making-";
const LOCK: &str = ".lock";
/// How many are kept: configurations that take turns. The least recently used goes first.
const KEEP: usize = 4;

/// Why templates cannot be looked at or changed.
#[derive(Debug, Error)]
#[error("cannot {what} {path}: {source}")]
pub struct TemplateError {
    /// What was tried.
    pub what: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why not.
    pub source: io::Error,
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TemplateError {
    let path = path.to_owned();
    move |source| TemplateError { what, path, source }
}

/// The directory of templates.
#[derive(Debug, Clone)]
pub struct Templates {
    dir: PathBuf,
}

/// One that is whole.
#[derive(Debug, Clone)]
pub struct Template {
    dir: PathBuf,
    shape: String,
}

/// Held by whoever changes the directory.
pub struct Lock {
    _file: File,
}

impl Templates {
    /// Those in `dir`, which need not exist.
    pub fn at(dir: &Path) -> Templates {
        Templates { dir: dir.to_owned() }
    }

    /// The template of this shape.
    ///
    /// # Errors
    /// [`TemplateError`] when the directory is not root's alone: what is in it becomes every guest's memory.
    pub fn find(&self, shape: &str) -> Result<Option<Template>, TemplateError> {
        let template = Template { dir: self.dir.join(shape), shape: shape.to_owned() };
        match fs::metadata(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed("look at", &self.dir)(e)),
            Ok(meta) => private(&meta).map_err(failed("trust", &self.dir))?,
        }
        Ok(template.dir.join(STATE).exists().then_some(template))
    }

    /// All that are whole.
    ///
    /// # Errors
    /// [`TemplateError`].
    pub fn list(&self) -> Result<Vec<Template>, TemplateError> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed("list", &self.dir)(e)),
        };
        let mut found: Vec<Template> = entries
            .flatten()
            .filter_map(|entry| {
                let shape = entry.file_name().into_string().ok().filter(|name| !name.starts_with('.'))?;
                Some(Template { dir: entry.path(), shape })
            })
            .filter(|template| template.dir.join(STATE).exists())
            .collect();
        found.sort_by(|a, b| a.shape.cmp(&b.shape));
        Ok(found)
    }

    /// Makes the directory and waits until nobody else changes it. Blocks.
    ///
    /// # Errors
    /// [`TemplateError`].
    pub fn lock(&self) -> Result<Lock, TemplateError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        made.map_err(failed("make", &self.dir))?;
        let meta = fs::metadata(&self.dir).map_err(failed("look at", &self.dir))?;
        private(&meta).map_err(failed("trust", &self.dir))?;
        let path = self.dir.join(LOCK);
        let file =
            File::options().write(true).create(true).truncate(false).open(&path).map_err(failed("open", &path))?;
        flock(&file, FlockOperation::LockExclusive).map_err(|e| failed("lock", &path)(e.into()))?;
        Ok(Lock { _file: file })
    }

    /// Removes a template, if it is there. VMs that began from it have no need of it.
    ///
    /// # Errors
    /// [`TemplateError`].
    pub fn remove(&self, shape: &str) -> Result<(), TemplateError> {
        let dir = self.dir.join(shape);
        // First out of the way of those that look for it, in one step.
        let doomed = self.dir.join(format!("{UNFINISHED}removed-{}-{shape}", std::process::id()));
        match fs::rename(&dir, &doomed) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(failed("remove", &dir))?,
        }
        fs::remove_dir_all(&doomed).map_err(failed("remove", &doomed))
    }

    /// Removes them all, and the directory if nothing of others' is in it.
    ///
    /// # Errors
    /// [`TemplateError`].
    pub fn destroy(&self) -> Result<(), TemplateError> {
        if !self.dir.exists() {
            return Ok(());
        }
        let lock = self.lock()?;
        for template in self.list()? {
            self.remove(&template.shape)?;
        }
        self.sweep(&lock)?;
        let path = self.dir.join(LOCK);
        fs::remove_file(&path).map_err(failed("remove", &path))?;
        // Something of somebody else's may be in it.
        drop(fs::remove_dir(&self.dir));
        Ok(())
    }

    /// Removes what builders and removers that were killed have left.
    fn sweep(&self, _: &Lock) -> Result<(), TemplateError> {
        for entry in fs::read_dir(&self.dir).map_err(failed("list", &self.dir))?.flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
                // Sockets and mounts of a machine may be in it.
                kata_storage::remove_run_dir(&entry.path())
                    .map_err(|e| failed("remove", &entry.path())(io::Error::other(e.to_string())))?;
            }
        }
        Ok(())
    }

    /// A new directory to make a template in.
    fn begin(&self, lock: &Lock) -> Result<PathBuf, TemplateError> {
        self.sweep(lock)?;
        let dir = self.dir.join(format!("{UNFINISHED}{}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&dir).map_err(failed("make", &dir))?;
        Ok(dir)
    }

    /// Makes what has been made the template of its shape; the ones not used for longest go.
    fn publish(&self, made: &Path, shape: &str) -> Result<Template, TemplateError> {
        for name in [STATE, MEMORY] {
            let path = made.join(name);
            // A crash of the host must not leave the name without the content.
            File::open(&path).and_then(|file| file.sync_all()).map_err(failed("write", &path))?;
        }
        let dir = self.dir.join(shape);
        fs::rename(made, &dir).map_err(failed("put into place", &dir))?;
        let template = Template { dir, shape: shape.to_owned() };
        let mut all = self.list()?;
        all.sort_by_key(|t| std::cmp::Reverse((t.shape == shape, t.used())));
        for old in all.into_iter().skip(KEEP) {
            self.remove(&old.shape)?;
        }
        Ok(template)
    }
}

/// Only root may write there, or even look.
fn private(meta: &fs::Metadata) -> io::Result<()> {
    if meta.is_dir() && meta.uid() == rustix::process::geteuid().as_raw() && meta.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, "others than root can write there; chmod 700, or remove it"))
}

impl Template {
    /// What it is a template of.
    pub fn shape(&self) -> &str {
        &self.shape
    }

    /// When a VM last began from it.
    pub fn used(&self) -> SystemTime {
        fs::metadata(self.dir.join(STATE)).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// What it takes on the host: state and memory without its holes.
    pub fn size(&self) -> Mib {
        let of = |name| fs::metadata(self.dir.join(name)).map_or(0, |m| m.blocks() * 512);
        Mib::from_bytes_round_up(of(STATE) + of(MEMORY))
    }

    /// The files for a new VM, which gets a copy of the memory.
    ///
    /// # Errors
    /// When a file cannot be opened; it may just have been removed.
    pub fn open(&self) -> io::Result<Snapshot> {
        let state = File::options().read(true).write(true).open(self.dir.join(STATE))?;
        // Its use is told by its time. Nothing is lost if that fails.
        drop(state.set_modified(SystemTime::now()));
        let memory = File::open(self.dir.join(MEMORY))?;
        Ok(Snapshot { state, memory, sharing: MemorySharing::Copied })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(templates: &Templates, shape: &str) {
        let lock = templates.lock().unwrap();
        let made = templates.begin(&lock).unwrap();
        fs::write(made.join(MEMORY), shape).unwrap();
        fs::write(made.join(STATE), shape).unwrap();
        templates.publish(&made, shape).unwrap();
    }

    #[test]
    fn a_template_is_found_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let templates = Templates::at(&dir.path().join("t"));
        assert!(templates.find("a").unwrap().is_none());
        let lock = templates.lock().unwrap();
        let made = templates.begin(&lock).unwrap();
        fs::write(made.join(STATE), "").unwrap();
        assert!(templates.find("a").unwrap().is_none() && templates.list().unwrap().is_empty());
        drop(lock);
        // The next builder removes what is left of that one.
        make(&templates, "a");
        assert!(!made.exists());
        assert_eq!(templates.find("a").unwrap().unwrap().shape(), "a");
        templates.remove("a").unwrap();
        templates.remove("a").unwrap();
        assert!(templates.find("a").unwrap().is_none());
        templates.destroy().unwrap();
        templates.destroy().unwrap();
        assert!(!dir.path().join("t").exists());
    }

    #[test]
    fn those_not_used_for_longest_go() {
        let dir = tempfile::tempdir().unwrap();
        let templates = Templates::at(dir.path());
        for n in 0..KEEP {
            make(&templates, &format!("{n}"));
        }
        let old = SystemTime::now() - std::time::Duration::from_secs(3600);
        let state = |n: usize| File::options().write(true).open(dir.path().join(format!("{n}")).join(STATE)).unwrap();
        for n in 0..KEEP {
            state(n).set_modified(old + std::time::Duration::from_secs(n as u64)).unwrap();
        }
        templates.find("0").unwrap().unwrap().open().unwrap();
        make(&templates, "new");
        let left: Vec<String> = templates.list().unwrap().into_iter().map(|t| t.shape).collect();
        assert_eq!(left, ["0", "2", "3", "new"]);
    }

    #[test]
    fn a_directory_that_others_can_write_is_not_trusted() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let templates = Templates::at(dir.path());
        make(&templates, "a");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let err = templates.find("a").unwrap_err().to_string();
        assert!(err.contains("others than root") && err.contains("chmod"), "{err}");
        assert!(templates.lock().is_err());
    }
}
