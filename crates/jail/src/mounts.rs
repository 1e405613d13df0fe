//! A container's mounts, kept for as long as something may be under way to their files.
//!
//! In Linux (6.1 and 6.12 at least) a submount of a virtio-fs may go while a file of it is being read: its pages are read ahead
//! (`fuse_send_readpages`), the process that has mapped or opened it ends, and the file's RELEASE, which holds the inode, waits
//! for that read (`fuse_file_release` and `fuse_file_put` in fs/fuse/file.c). If that process was also the last of its mount
//! namespace, the superblock goes at once, with a complaint about busy inodes, and the end of the read stumbles over what has been
//! freed: in the one thread that serves all answers of the host's files, and so all processes of the guest wait for ever. The
//! main mount is safe, because its end waits for the connection's requests; only a submount's does not.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, open, statx};

use crate::error::{JailError, Step};

/// One answer comes after those of the reads that were asked for before. With a read's end the file's RELEASE is sent, whose answer
/// comes before a second one. The third is for what ends otherwise than it does today.
const ROUNDS: usize = 3;

/// The mount namespace of a process, and the root directory in there.
#[derive(Debug)]
pub(crate) struct Mounts {
    namespace: File,
    root: OwnedFd,
}

impl Mounts {
    /// Those of a process that lives.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) fn of(pid: i32) -> Result<Self, JailError> {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let namespace = File::open(proc.join("ns/mnt")).step(|| format!("keeping the mounts of process {pid}"))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open(proc.join("root"), flags, Mode::empty())
            .step(|| format!("keeping the root directory of process {pid}"))?;
        Ok(Mounts { namespace, root })
    }

    /// Lets them go, when their processes have ended and nothing is under way any more. Blocking.
    pub(crate) fn leave(self) {
        let Mounts { namespace, root } = self;
        // The host answers in the order in which it was asked. A root directory of another file system answers by itself, and
        // then does no harm.
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
        for _ in 0..ROUNDS {
            if let Err(e) = statx(&root, "", flags, StatxFlags::BASIC_STATS) {
                log::debug!("the root directory of a container that has ended: {e}");
                break;
            }
        }
        drop(root);
        drop(namespace);
    }
}
