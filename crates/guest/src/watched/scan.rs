//! What a volume of the host's holds right now.
//!
//! It is read through virtio-fs, which may answer from what it remembers for as long as a second. Listing a directory
//! brings its names up to date (fs/fuse/readdir.c, `fuse_direntplus_link`), and attributes are asked for anew.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;
use thiserror::Error;

/// More than Kubernetes puts into any volume of these kinds (1 MiB in each object of its; a projected volume joins a few).
pub(super) const MAX_BYTES: u64 = 16 << 20;
/// The most names, directories included.
pub(super) const MAX_ENTRIES: usize = 4096;
const MAX_DEPTH: usize = 16;

/// Why a volume cannot be read.
#[derive(Debug, Error)]
pub enum ScanError {
    /// It is larger than what is copied.
    #[error("it holds more than {} MiB or {MAX_ENTRIES} names", MAX_BYTES >> 20)]
    TooMuch,
    /// Something in it that is no file, directory or link.
    #[error("{0} is no file, directory or symbolic link")]
    Kind(PathBuf),
    /// A system call; or it changed while it was read.
    #[error("cannot read {path}")]
    Read {
        /// Below the volume.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    Directory,
    File,
    Link(Vec<u8>),
}

/// A name with what tells whether it is still the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub content: Content,
    pub inode: u64,
    pub size: u64,
    /// Seconds and nanoseconds of the last change of the content, and of the inode.
    pub modified: (i64, u32),
    pub changed: (i64, u32),
    /// Permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

impl Entry {
    fn of(s: &rustix::fs::Statx, content: Content) -> Entry {
        // What is in a directory tells of its changes.
        let is_dir = content == Content::Directory;
        let time = |t: rustix::fs::StatxTimestamp| if is_dir { (0, 0) } else { (t.tv_sec, t.tv_nsec) };
        Entry {
            content,
            inode: if is_dir { 0 } else { s.stx_ino },
            size: if is_dir { 0 } else { s.stx_size },
            modified: time(s.stx_mtime),
            changed: time(s.stx_ctime),
            mode: u32::from(s.stx_mode) & 0o7777,
            uid: s.stx_uid,
            gid: s.stx_gid,
        }
    }
}

/// All below a directory by relative path, parents before what is in them; the directory itself is the empty path.
pub(super) type Tree = BTreeMap<PathBuf, Entry>;

fn stat(dir: &OwnedFd, name: &OsStr) -> Result<rustix::fs::Statx, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
    rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS)
}

/// Opens `path` below `root` without leaving it.
pub(super) fn open_below(root: &OwnedFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty(), resolve)
}

/// Reads what is below `root`.
///
/// # Errors
/// [`ScanError`].
pub(super) fn scan(root: &OwnedFd) -> Result<Tree, ScanError> {
    let mut tree = Tree::new();
    let mut bytes = 0;
    let top = stat(root, OsStr::new("")).map_err(|e| failed(Path::new(""))(e))?;
    tree.insert(PathBuf::new(), Entry::of(&top, Content::Directory));
    below(root, Path::new(""), 0, &mut tree, &mut bytes)?;
    Ok(tree)
}

fn failed(path: &Path) -> impl Fn(Errno) -> ScanError + '_ {
    |e| ScanError::Read { path: path.to_owned(), source: e.into() }
}

fn below(root: &OwnedFd, at: &Path, depth: usize, tree: &mut Tree, bytes: &mut u64) -> Result<(), ScanError> {
    if depth > MAX_DEPTH {
        return Err(ScanError::TooMuch);
    }
    let dir = open_below(root, at, OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed(at))?;
    for item in Dir::read_from(&dir).map_err(failed(at))? {
        let item = item.map_err(failed(at))?;
        let name = OsStr::from_bytes(item.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        let path = at.join(name);
        let s = stat(&dir, name).map_err(failed(&path))?;
        let content = match FileType::from_raw_mode(s.stx_mode.into()) {
            FileType::Directory => Content::Directory,
            FileType::RegularFile => {
                *bytes = bytes.saturating_add(s.stx_size);
                Content::File
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&dir, name, Vec::new()).map_err(failed(&path))?;
                Content::Link(target.into_bytes())
            }
            _ => return Err(ScanError::Kind(path)),
        };
        let is_dir = content == Content::Directory;
        tree.insert(path.clone(), Entry::of(&s, content));
        if tree.len() > MAX_ENTRIES || *bytes > MAX_BYTES {
            return Err(ScanError::TooMuch);
        }
        if is_dir {
            below(root, &path, depth + 1, tree, bytes)?;
        }
    }
    Ok(())
}

/// A file's content.
///
/// # Errors
/// [`ScanError`].
pub(super) fn read(root: &OwnedFd, path: &Path) -> Result<Vec<u8>, ScanError> {
    let file = open_below(root, path, OFlags::RDONLY | OFlags::NONBLOCK).map_err(failed(path))?;
    let mut content = Vec::new();
    let read = File::from(file).take(MAX_BYTES + 1).read_to_end(&mut content);
    read.map_err(|source| ScanError::Read { path: path.to_owned(), source })?;
    if content.len() as u64 > MAX_BYTES { Err(ScanError::TooMuch) } else { Ok(content) }
}

/// The bytes of a link's target as a path.
pub(super) fn target_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(std::ffi::OsString::from_vec(bytes.to_vec()))
}
