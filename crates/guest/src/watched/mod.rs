//! Volumes whose changes on the host must wake whoever watches them in the guest: upstream's storage driver
//! "watchable-bind". The share shows new content, but no inotify event comes through virtio-fs; so a container is given
//! a copy in the guest's memory ([`mirror`]).
//!
//! A host of ours tells with UpdateEphemeralMounts when to look again, and says so with the driver option [`TOLD`]. For
//! any other, the agent looks every second as long as there is such a volume.

mod mirror;
mod scan;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use mirror::Mirror;
pub use mirror::MirrorError;
pub use scan::ScanError;

/// The driver option of a host that tells of changes.
pub const TOLD: &str = "kata-rs.told";
/// How often a volume is looked at whose host does not tell.
pub const POLL: Duration = Duration::from_secs(1);
/// The most that a copy takes of the guest's memory: that much, twice while it is replaced.
pub const COPY_BYTES: u64 = 2 * scan::MAX_BYTES + (1 << 20);
/// How many names it holds at most, old and new.
pub const COPY_INODES: usize = 2 * scan::MAX_ENTRIES + 16;
/// How long what the guest knows of the share may be out of date.
const REMEMBERED: Duration = Duration::from_millis(1100);
/// A volume that changes while it is read is read again, after this, and this often.
const PASSING: Duration = Duration::from_millis(50);
const ATTEMPTS: u32 = 20;

struct Watched {
    mirror: Mutex<Mirror>,
    polled: bool,
}

/// All such volumes, by where their copies are.
#[derive(Default)]
pub struct Volumes(Mutex<HashMap<PathBuf, Arc<Watched>>>);

fn open_dir(path: &Path) -> Result<OwnedFd, rustix::io::Errno> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

impl Volumes {
    fn all(&self) -> MutexGuard<'_, HashMap<PathBuf, Arc<Watched>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies `source` into the empty directory `copy` and keeps it in mind. Blocks.
    ///
    /// # Errors
    /// [`MirrorError`]; then it is not kept in mind.
    pub fn add(&self, source: &Path, copy: &Path, polled: bool) -> Result<(), MirrorError> {
        let read = |e: rustix::io::Errno| ScanError::Read { path: source.to_owned(), source: e.into() };
        let write = |e: rustix::io::Errno| MirrorError::Write { step: "open", path: copy.to_owned(), source: e.into() };
        let mut mirror = Mirror::new(open_dir(source).map_err(read)?, open_dir(copy).map_err(write)?);
        settled(&mut mirror)?;
        self.all().insert(copy.to_owned(), Arc::new(Watched { mirror: Mutex::new(mirror), polled }));
        Ok(())
    }

    /// Forgets it: its copy is about to be unmounted.
    pub fn forget(&self, copy: &Path) {
        self.all().remove(copy);
    }

    /// Looks at one now, for its host says that it has changed. Blocks. False if there is none.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub fn changed(&self, copy: &Path) -> Result<bool, MirrorError> {
        let Some(watched) = self.all().get(copy).cloned() else { return Ok(false) };
        if !sync(&watched)? {
            // The share's answers may be a moment old.
            std::thread::sleep(REMEMBERED);
            sync(&watched)?;
        }
        Ok(true)
    }

    /// Whether there is any whose host does not tell.
    pub fn has_polled(&self) -> bool {
        self.all().values().any(|w| w.polled)
    }

    /// Looks at those whose host does not tell. Blocks.
    pub fn poll(&self) {
        let polled: Vec<_> = self.all().iter().filter(|(_, w)| w.polled).map(|(p, w)| (p.clone(), w.clone())).collect();
        for (path, watched) in &polled {
            if let Err(e) = sync(watched) {
                log::warn!("the volume at {} is not up to date: {}", path.display(), crate::failure::chain(&e));
            }
        }
    }
}

fn sync(watched: &Watched) -> Result<bool, MirrorError> {
    settled(&mut watched.mirror.lock().unwrap_or_else(PoisonError::into_inner))
}

fn settled(mirror: &mut Mirror) -> Result<bool, MirrorError> {
    let mut left = ATTEMPTS;
    loop {
        match mirror.sync() {
            Err(e) if e.is_passing() && left > 0 => {
                left -= 1;
                std::thread::sleep(PASSING);
            }
            other => return other,
        }
    }
}
