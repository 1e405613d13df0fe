//! The pool's directory: who waits, and how one is taken.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use kata_config::Config;
use kata_sandbox::ProcessRecord;
use kata_vmm::Vmm;
use kata_vmm::spawn::start_time;
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// A waiting sandbox says this on its stdout when it can be taken.
pub const READY_WORD: &str = "ready";
/// And this when it has been.
pub const TAKEN_WORD: &str = "taken";

/// Held by the pool's keeper; holds its pid.
const LOCK: &str = ".keeper";
/// The keeper's log.
const LOG: &str = ".keeper.log";
/// The directory of all pools.
const POOLS: &str = "pool";

/// Why a pool cannot be used.
#[derive(Debug, Error)]
pub enum PoolError {
    /// A file or directory.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The VM it would be for cannot be.
    #[error(transparent)]
    Vm(#[from] kata_vmm::LaunchError),
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PoolError {
    let path = path.to_owned();
    move |source| PoolError::Io { what, path, source }
}

/// What all sandboxes of one pool have in common: the VM's shape, the whole configuration but for how much the host's
/// side logs, and this very program.
///
/// # Errors
/// [`PoolError`] when a file that shapes the VM, or this program, cannot be read.
pub fn pool_key(config: &Config, vmm: &dyn Vmm) -> Result<String, PoolError> {
    let shape = kata_sandbox::vm_shape(config, vmm)?;
    let mut common = config.clone();
    common.runtime.enable_debug = false;
    let text = serde_json::to_string(&common).unwrap_or_default();
    let me = installed_program();
    let program = kata_vmm::content_digest(&me).map_err(failed("read", &me))?;
    let mut key = hex::encode(Sha256::digest(format!("{}\n{program}\n{text}", shape.unwrap_or_default())));
    // Short, because sockets are below it.
    key.truncate(16);
    Ok(key)
}

/// This program as it is installed now: after an upgrade another one than runs.
fn installed_program() -> PathBuf {
    let path = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
    // The kernel's word for a file that has been replaced (proc_pid_exe(5)).
    match path.to_str().and_then(|text| text.strip_suffix(" (deleted)")) {
        Some(text) => text.into(),
        None => path,
    }
}

/// The directory of the sandboxes that wait, of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    dir: PathBuf,
}

/// Held by a keeper as long as it lives.
#[derive(Debug)]
pub struct KeeperLock {
    _file: File,
}

impl Pool {
    /// The pool of this key; its directory need not exist.
    pub fn of(key: &str) -> Pool {
        Pool { dir: Path::new(kata_types::HOST_RUN_DIR).join(POOLS).join(key) }
    }

    /// Every pool that has a directory.
    pub fn all() -> Vec<Pool> {
        let entries = fs::read_dir(Path::new(kata_types::HOST_RUN_DIR).join(POOLS));
        let mut pools: Vec<Pool> = entries.into_iter().flatten().flatten().map(|e| Pool { dir: e.path() }).collect();
        pools.sort_by(|a, b| a.dir.cmp(&b.dir));
        pools
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its key.
    pub fn key(&self) -> String {
        self.dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Where its keeper logs.
    pub fn log(&self) -> PathBuf {
        self.dir.join(LOG)
    }

    /// Makes the directory; those above it may be passed through, by name, by anyone.
    ///
    /// # Errors
    /// [`PoolError::Io`].
    pub fn make(&self) -> Result<(), PoolError> {
        let run = Path::new(kata_types::HOST_RUN_DIR);
        DirBuilder::new().recursive(true).mode(0o711).create(run).map_err(failed("make", run))?;
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        made.map_err(failed("make", &self.dir))
    }

    /// The sandboxes that can be taken now.
    pub fn waiting(&self) -> Vec<PathBuf> {
        self.members().into_iter().filter(|path| !is_hidden(path)).collect()
    }

    /// Every member, also those that are being made or removed.
    pub fn members(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.dir);
        let dirs = entries.into_iter().flatten().flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
        let mut members: Vec<PathBuf> = dirs.map(|e| e.path()).collect();
        members.sort();
        members
    }

    /// Takes a sandbox: its directory gets the name `to`. `Ok(None)`: none waits.
    ///
    /// # Errors
    /// `AlreadyExists` when `to` is there; else rename(2)'s.
    pub fn take(&self, to: &Path) -> io::Result<Option<PathBuf>> {
        for member in self.waiting() {
            match rename_new(&member, to) {
                Ok(()) => return Ok(Some(member)),
                // Somebody was faster.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }

    /// The keeper's lock; `None` while another one has it. The lock goes with the process, however it ends.
    ///
    /// # Errors
    /// [`PoolError::Io`].
    pub fn lock(&self) -> Result<Option<KeeperLock>, PoolError> {
        let path = self.dir.join(LOCK);
        let opened = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = opened.map_err(failed("open", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(e) => return Err(failed("lock", &path)(e.into())),
        }
        let pid = std::process::id().cast_signed();
        let written = start_time(pid).and_then(|started| {
            file.set_len(0)?;
            write!(file, "{pid} {started}")
        });
        written.map_err(failed("write", &path))?;
        Ok(Some(KeeperLock { _file: file }))
    }

    /// The keeper, while there is one. Told by what it wrote, not by trying its lock: another keeper that
    /// starts just then would find it taken.
    pub fn keeper(&self) -> Option<ProcessRecord> {
        let text = fs::read_to_string(self.dir.join(LOCK)).ok()?;
        let (pid, started) = text.split_once(' ')?;
        let (pid, start_time) = (pid.parse().ok()?, started.parse().ok()?);
        Some(ProcessRecord { pid, start_time }).filter(ProcessRecord::alive)
    }

    /// Removes a member that nobody has taken, with its processes.
    pub fn discard(&self, member: &Path) {
        let Some(name) = member.file_name() else { return };
        // Out of the way first: from here on nobody can take it.
        let doomed = self.dir.join(format!(".ended-{}", name.to_string_lossy().trim_start_matches('.')));
        match rename_new(member, &doomed) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return,
            Err(e) => return tracing::warn!("cannot remove {}: {e}", member.display()),
        }
        if let Err(err) = kata_sandbox::cleanup(&doomed, None) {
            tracing::warn!("{err}");
        }
    }

    /// Removes the directory; every member must be gone.
    ///
    /// # Errors
    /// [`PoolError::Io`].
    pub fn remove(&self) -> Result<(), PoolError> {
        match fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", &self.dir)(e)),
            _ => Ok(()),
        }
    }
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// rename(2) that replaces nothing.
pub(crate) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
}

/// A waiting sandbox can be taken: its directory loses the dot. Returns the new path.
///
/// # Errors
/// rename(2)'s.
pub fn announce(member: &Path) -> io::Result<PathBuf> {
    let name = member.file_name().unwrap_or_default().to_string_lossy().trim_start_matches('.').to_owned();
    let to = member.with_file_name(name);
    rename_new(member, &to)?;
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_two_takers_gets_a_sandbox() {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool { dir: dir.path().join("pool") };
        assert_eq!(pool.take(&dir.path().join("x")).unwrap(), None, "no pool at all");
        fs::create_dir_all(pool.dir.join(".making")).unwrap();
        fs::create_dir_all(pool.dir.join("b")).unwrap();
        assert_eq!((pool.members().len(), pool.waiting().len()), (2, 1));
        assert!(pool.take(&dir.path().join("first")).unwrap().is_some());
        assert!(pool.take(&dir.path().join("second")).unwrap().is_none());
        assert!(dir.path().join("first").is_dir() && !dir.path().join("second").exists());
        let ready = announce(&pool.dir.join(".making")).unwrap();
        assert_eq!(pool.waiting(), [ready]);
        // An id that is in use is in use, and takes nothing.
        assert_eq!(pool.take(&dir.path().join("first")).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(pool.waiting().len(), 1);
    }

    #[test]
    fn there_is_one_keeper() {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool { dir: dir.path().to_owned() };
        assert_eq!(pool.keeper(), None);
        let lock = pool.lock().unwrap().unwrap();
        assert!(pool.lock().unwrap().is_none());
        assert_eq!(pool.keeper().map(|keeper| keeper.pid), Some(std::process::id().cast_signed()));
        drop(lock);
        assert!(pool.lock().unwrap().is_some());
        // A process that has the pid of a keeper that was.
        fs::write(dir.path().join(LOCK), format!("{} 1", std::process::id())).unwrap();
        assert_eq!(pool.keeper(), None);
    }
}
