//! A uid of its own for each VMM: a file per uid in a directory, locked while the uid is in use.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// A uid that nobody else has as long as this lives. The lock goes with the process, the file with a drop.
#[derive(Debug)]
pub(crate) struct UidLock {
    uid: u32,
    path: PathBuf,
    _file: File,
}

impl UidLock {
    /// The first free uid of `first..=last`.
    ///
    /// # Errors
    /// `QuotaExceeded` if all are in use; else a system call's.
    pub(crate) fn take(dir: &Path, first: u32, last: u32) -> io::Result<UidLock> {
        fs::create_dir_all(dir)?;
        for uid in first..=last {
            if let Some(lock) = UidLock::try_take(dir, uid)? {
                return Ok(lock);
            }
        }
        Err(io::ErrorKind::QuotaExceeded.into())
    }

    /// This uid, if it is free.
    fn try_take(dir: &Path, uid: u32) -> io::Result<Option<UidLock>> {
        let path = dir.join(uid.to_string());
        loop {
            let file = File::options().write(true).create(true).truncate(false).open(&path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(e) => return Err(e.into()),
            }
            // Its owner may have removed it between our open and our lock: then the lock is on a file that no longer
            // has the name, and counts for nothing.
            match fs::metadata(&path) {
                Ok(named) if named.ino() == file.metadata()?.ino() => {
                    return Ok(Some(UidLock { uid, path, _file: file }));
                }
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// The uid; also the gid to use.
    pub(crate) fn uid(&self) -> u32 {
        self.uid
    }
}

impl Drop for UidLock {
    fn drop(&mut self) {
        // Still locked, so it is ours to remove.
        if let Err(e) = fs::remove_file(&self.path) {
            tracing::warn!("cannot remove {}: {e}", self.path.display());
        }
    }
}

/// Removes what a crashed process left of its uid; one that is in use is left alone.
pub(crate) fn release(dir: &Path, uid: u32) -> io::Result<()> {
    if dir.join(uid.to_string()).exists() {
        drop(UidLock::try_take(dir, uid)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_uid_is_given_once_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let a = UidLock::take(dir.path(), 10, 11).unwrap();
        let b = UidLock::take(dir.path(), 10, 11).unwrap();
        assert_eq!((a.uid(), b.uid()), (10, 11));
        assert_eq!(UidLock::take(dir.path(), 10, 11).unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
        release(dir.path(), 10).unwrap();
        assert!(dir.path().join("10").exists(), "in use");
        drop(a);
        assert!(!dir.path().join("10").exists());
        assert_eq!(UidLock::take(dir.path(), 10, 11).unwrap().uid(), 10);
    }

    #[test]
    fn what_a_crash_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("12"), "").unwrap();
        release(dir.path(), 12).unwrap();
        release(dir.path(), 12).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
