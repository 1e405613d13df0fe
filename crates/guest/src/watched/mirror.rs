//! A volume of the host's as a copy in the guest's memory, brought up to date so that whoever watches the copy with
//! inotify(7) sees what somebody beside the original would see.
//!
//! Kubernetes' updates are a directory with the new files, then one renaming of the link `..data`, then the removal of
//! the old directory. The copy goes through the same steps in the same order: first what is new, then the links, each by
//! a renaming, then what is gone.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use thiserror::Error;

use super::scan::{Content, Entry, ScanError, Tree, open_below, read, scan, target_of};

/// What a name is called until it gets its own. The container sees it come and go, as it would see Kubernetes' `..data_tmp`.
const TEMPORARY: &str = "..kata_tmp";

/// Why a copy was not brought up to date.
#[derive(Debug, Error)]
pub enum MirrorError {
    /// The original.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// The copy.
    #[error("cannot {step} {path} in the copy")]
    Write {
        /// What was tried.
        step: &'static str,
        /// Below the volume.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl MirrorError {
    /// Whether the original was changed while it was read, so that another look will do.
    pub(super) fn is_passing(&self) -> bool {
        let gone = |e: &std::io::Error| {
            matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESTALE | libc::ENOTDIR | libc::ELOOP))
        };
        matches!(self, MirrorError::Scan(ScanError::Read { source, .. }) if gone(source))
    }
}

/// An original and its copy.
#[derive(Debug)]
pub(super) struct Mirror {
    source: OwnedFd,
    copy: OwnedFd,
    /// What the copy is of.
    seen: Tree,
}

impl Mirror {
    /// `source` and `copy` are directories; the copy is empty.
    pub(super) fn new(source: OwnedFd, copy: OwnedFd) -> Mirror {
        Mirror { source, copy, seen: Tree::new() }
    }

    /// Makes the copy like the original; returns whether anything was to do.
    ///
    /// # Errors
    /// [`MirrorError`]; the next call goes on from there.
    pub(super) fn sync(&mut self) -> Result<bool, MirrorError> {
        let now = scan(&self.source)?;
        if now == self.seen {
            return Ok(false);
        }
        // What stands in the way of something of another kind.
        let other_kind = |path: &PathBuf, old: &Entry| {
            now.get(path)
                .is_some_and(|new| std::mem::discriminant(&new.content) != std::mem::discriminant(&old.content))
        };
        let in_the_way: Vec<PathBuf> =
            self.seen.iter().filter(|(path, old)| other_kind(path, old)).map(|(path, _)| path.clone()).collect();
        for path in in_the_way {
            self.remove_with_all_below(&path)?;
        }
        for is_link in [false, true] {
            for (path, new) in now.iter().filter(|(_, e)| matches!(e.content, Content::Link(_)) == is_link) {
                if self.seen.get(path) != Some(new) {
                    self.put(path, new)?;
                    self.seen.insert(path.clone(), new.clone());
                }
            }
        }
        let gone: Vec<PathBuf> = self.seen.keys().filter(|path| !now.contains_key(*path)).cloned().collect();
        for path in gone.iter().rev() {
            self.remove(path)?;
        }
        Ok(true)
    }

    fn put(&self, path: &Path, new: &Entry) -> Result<(), MirrorError> {
        let fail = |step| move |e: Errno| MirrorError::Write { step, path: path.to_owned(), source: e.into() };
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return own(&self.copy, new).map_err(fail("set the owner and mode of"));
        };
        let dir =
            open_below(&self.copy, parent, OFlags::RDONLY | OFlags::DIRECTORY).map_err(fail("open the parent of"))?;
        match &new.content {
            Content::Directory => {
                match rustix::fs::mkdirat(&dir, name, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(e) => return Err(fail("make")(e)),
                }
                let made = open_below(&self.copy, path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(fail("open"))?;
                own(&made, new).map_err(fail("set the owner and mode of"))
            }
            Content::Link(target) => {
                clear(&dir).map_err(fail("make room for"))?;
                rustix::fs::symlinkat(target_of(target), &dir, TEMPORARY).map_err(fail("make"))?;
                let (uid, gid) = (Uid::from_raw(new.uid), Gid::from_raw(new.gid));
                rustix::fs::chownat(&dir, TEMPORARY, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(fail("set the owner of"))?;
                rustix::fs::renameat(&dir, TEMPORARY, &dir, name).map_err(fail("put in place"))
            }
            Content::File => {
                let old = self.seen.get(path);
                if old.is_some_and(|old| old.inode == new.inode && old.size == new.size && old.modified == new.modified)
                {
                    let file = open_below(&self.copy, path, OFlags::RDONLY).map_err(fail("open"))?;
                    return own(&file, new).map_err(fail("set the owner and mode of"));
                }
                let content = read(&self.source, path)?;
                // What was written in place is written in place; what was replaced is replaced.
                let in_place = old.is_some_and(|old| old.inode == new.inode);
                let file = if in_place {
                    open_below(&self.copy, path, OFlags::WRONLY | OFlags::TRUNC).map_err(fail("open"))?
                } else {
                    clear(&dir).map_err(fail("make room for"))?;
                    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    rustix::fs::openat(&dir, TEMPORARY, flags, Mode::RUSR | Mode::WUSR).map_err(fail("make"))?
                };
                let mut file = File::from(file);
                file.write_all(&content).map_err(|source| MirrorError::Write {
                    step: "write",
                    path: path.to_owned(),
                    source,
                })?;
                own(&file, new).map_err(fail("set the owner and mode of"))?;
                let time = Timespec { tv_sec: new.modified.0, tv_nsec: new.modified.1.into() };
                rustix::fs::futimens(&file, &Timestamps { last_access: time, last_modification: time })
                    .map_err(fail("set the time of"))?;
                if in_place {
                    Ok(())
                } else {
                    rustix::fs::renameat(&dir, TEMPORARY, &dir, name).map_err(fail("put in place"))
                }
            }
        }
    }

    fn remove_with_all_below(&mut self, path: &Path) -> Result<(), MirrorError> {
        let all: Vec<PathBuf> = self.seen.keys().filter(|p| p.starts_with(path)).cloned().collect();
        all.iter().rev().try_for_each(|path| self.remove(path))
    }

    fn remove(&mut self, path: &Path) -> Result<(), MirrorError> {
        let fail = |e: Errno| MirrorError::Write { step: "remove", path: path.to_owned(), source: e.into() };
        let (Some(parent), Some(name), Some(old)) = (path.parent(), path.file_name(), self.seen.get(path)) else {
            return Ok(());
        };
        let flags = if old.content == Content::Directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        let dir = open_below(&self.copy, parent, OFlags::RDONLY | OFlags::DIRECTORY).map_err(fail)?;
        match rustix::fs::unlinkat(&dir, name, flags) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(fail(e)),
        }
        self.seen.remove(path);
        Ok(())
    }
}

/// The owner first: changing it drops the set-id bits.
fn own(file: &impl AsFd, new: &Entry) -> Result<(), Errno> {
    rustix::fs::fchown(file, Some(Uid::from_raw(new.uid)), Some(Gid::from_raw(new.gid)))?;
    rustix::fs::fchmod(file, Mode::from_raw_mode(new.mode))
}

/// Removes what a sync that failed has left.
fn clear(dir: &OwnedFd) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, OsString::from(TEMPORARY).as_bytes(), AtFlags::empty()) {
        Err(Errno::NOENT) | Ok(()) => Ok(()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::mem::MaybeUninit;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use rustix::fs::inotify;

    fn dir(path: &Path) -> OwnedFd {
        File::open(path).unwrap().into()
    }

    /// As the kubelet writes a volume (pkg/volume/util/atomic_writer.go): returns the name of the directory.
    fn publish(volume: &Path, version: &str, files: &[(&str, &str)]) {
        let data = volume.join(format!("..{version}"));
        fs::create_dir(&data).unwrap();
        for (name, content) in files {
            fs::write(data.join(name), content).unwrap();
            fs::set_permissions(data.join(name), fs::Permissions::from_mode(0o640)).unwrap();
        }
        let old = fs::read_link(volume.join("..data")).ok();
        symlink(format!("..{version}"), volume.join("..data_tmp")).unwrap();
        fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
        for (name, _) in files {
            drop(symlink(format!("..data/{name}"), volume.join(name)));
        }
        if let Some(old) = old {
            fs::remove_dir_all(volume.join(old)).unwrap();
        }
    }

    fn events(fd: &OwnedFd) -> Vec<String> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(fd, &mut buffer);
        let mut all = Vec::new();
        while let Ok(event) = reader.next() {
            let name = event.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            all.push(format!("{:?} {name}", event.events()));
        }
        all
    }

    #[test]
    fn an_update_is_one_renaming_that_a_watch_sees() {
        let (source, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        publish(source.path(), "v1", &[("a", "one"), ("b", "both")]);
        fs::set_permissions(source.path(), fs::Permissions::from_mode(0o2775)).unwrap();
        let mut mirror = Mirror::new(dir(source.path()), dir(copy.path()));
        assert!(mirror.sync().unwrap());
        assert!(!mirror.sync().unwrap());
        assert_eq!(fs::read_to_string(copy.path().join("a")).unwrap(), "one");
        assert_eq!(fs::metadata(copy.path().join("a")).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(fs::metadata(copy.path()).unwrap().mode() & 0o7777, 0o2775);

        let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
        inotify::add_watch(&watch, copy.path(), inotify::WatchFlags::ALL_EVENTS).unwrap();
        inotify::add_watch(&watch, copy.path().join("a"), inotify::WatchFlags::DELETE_SELF).unwrap();
        publish(source.path(), "v2", &[("a", "two"), ("c", "new")]);
        fs::remove_file(source.path().join("b")).unwrap();
        assert!(mirror.sync().unwrap());
        assert_eq!(fs::read_to_string(copy.path().join("a")).unwrap(), "two");
        assert_eq!(fs::read_to_string(copy.path().join("c")).unwrap(), "new");
        assert!(!copy.path().join("b").exists() && !copy.path().join("..v1").exists());
        let seen = events(&watch);
        let at =
            |text: &str| seen.iter().position(|e| e.contains(text)).unwrap_or_else(|| panic!("{text} in {seen:?}"));
        assert!(at("(CREATE | ISDIR) ..v2") < at("(MOVED_TO) ..data"), "{seen:?}");
        assert!(at("(MOVED_TO) ..data") < at("(DELETE | ISDIR) ..v1"), "{seen:?}");
        assert!(at("DELETE_SELF") > at("(MOVED_TO) ..data"), "the old file goes after the new one is there: {seen:?}");
    }

    #[test]
    fn files_are_written_in_place_or_replaced_as_they_were() {
        let (source, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (from, to) = (source.path().join("f"), copy.path().join("f"));
        fs::write(&from, "1").unwrap();
        let mut mirror = Mirror::new(dir(source.path()), dir(copy.path()));
        mirror.sync().unwrap();
        let inode = fs::metadata(&to).unwrap().ino();
        fs::write(&from, "longer").unwrap();
        mirror.sync().unwrap();
        assert_eq!((fs::read_to_string(&to).unwrap().as_str(), fs::metadata(&to).unwrap().ino()), ("longer", inode));
        fs::write(source.path().join("g"), "other").unwrap();
        fs::rename(source.path().join("g"), &from).unwrap();
        fs::set_permissions(&from, fs::Permissions::from_mode(0o400)).unwrap();
        mirror.sync().unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "other");
        assert_ne!(fs::metadata(&to).unwrap().ino(), inode);
        let inode = fs::metadata(&to).unwrap().ino();
        fs::set_permissions(&from, fs::Permissions::from_mode(0o444)).unwrap();
        mirror.sync().unwrap();
        assert_eq!((fs::metadata(&to).unwrap().mode() & 0o777, fs::metadata(&to).unwrap().ino()), (0o444, inode));
        // A file becomes a directory, and that a link.
        fs::remove_file(&from).unwrap();
        fs::create_dir(&from).unwrap();
        fs::write(from.join("x"), "").unwrap();
        mirror.sync().unwrap();
        assert!(to.join("x").exists());
        fs::remove_dir_all(&from).unwrap();
        symlink("elsewhere", &from).unwrap();
        mirror.sync().unwrap();
        assert_eq!(fs::read_link(&to).unwrap(), Path::new("elsewhere"));
        assert_eq!(fs::read_dir(copy.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_too_much_or_of_another_kind_is_refused_and_nothing_leaves_the_copy() {
        let (source, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut mirror = Mirror::new(dir(source.path()), dir(copy.path()));
        let big = File::create(source.path().join("big")).unwrap();
        big.set_len(super::super::scan::MAX_BYTES + 1).unwrap();
        assert!(matches!(mirror.sync(), Err(MirrorError::Scan(ScanError::TooMuch))));
        fs::remove_file(source.path().join("big")).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(source.path().join("s")).unwrap();
        assert!(matches!(mirror.sync(), Err(MirrorError::Scan(ScanError::Kind(_)))));
        drop(socket);
        fs::remove_file(source.path().join("s")).unwrap();
        // Whoever can write to the copy gains nothing by putting a link in the way.
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir(source.path().join("d")).unwrap();
        mirror.sync().unwrap();
        fs::remove_dir(copy.path().join("d")).unwrap();
        symlink(outside.path(), copy.path().join("d")).unwrap();
        fs::write(source.path().join("d/x"), "").unwrap();
        assert!(mirror.sync().is_err());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
