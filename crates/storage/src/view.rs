//! The host as somebody else sees it. A daemon has a mount namespace of its own; what is mounted on the host later reaches it only
//! where the host's mounts are shared, and engines keep their images' mounts private. So what is to be shown to a guest is looked
//! for in the mount namespace that the daemon came from.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::sched::{CloneFlags, setns, unshare};

/// A mount namespace to look into; without one, the caller's own.
#[derive(Debug, Clone, Default)]
pub struct View(Option<Arc<OwnedFd>>);

impl View {
    /// Of a mount namespace's file.
    pub fn of(namespace: OwnedFd) -> View {
        View(Some(Arc::new(namespace)))
    }

    /// Of the namespace in which the caller is now.
    ///
    /// # Errors
    /// open(2)'s.
    pub fn current() -> io::Result<View> {
        Ok(View::of(File::open("/proc/thread-self/ns/mnt")?.into()))
    }

    /// The inode of the namespace's file, which no other mount namespace has while this one is there.
    ///
    /// # Errors
    /// fstat(2)'s.
    pub fn inode(&self) -> io::Result<u64> {
        match &self.0 {
            Some(namespace) => Ok(rustix::fs::fstat(namespace)?.st_ino),
            None => View::current()?.inode(),
        }
    }

    /// Calls `look` where paths mean what they mean in that namespace. Descriptors that it opens can be used anywhere.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn look<T: Send>(&self, look: impl FnOnce() -> T + Send) -> io::Result<T> {
        let Some(namespace) = &self.0 else { return Ok(look()) };
        let there = || {
            // setns(2) wants root and working directory to be the thread's own.
            unshare(CloneFlags::CLONE_FS)?;
            setns(namespace, CloneFlags::CLONE_NEWNS)?;
            Ok(look())
        };
        // The thread ends in there.
        std::thread::scope(|scope| scope.spawn(there).join())
            .unwrap_or_else(|_| Err(io::Error::other("the thread that looked has panicked")))
    }
}
