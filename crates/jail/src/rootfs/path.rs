//! Finding and making paths inside a container's root, while something in it may try to lead us out.
//!
//! Every component is opened by itself, from the descriptor of the directory before it, never following a link; links
//! are read and walked by hand, with the container's root as `/` and `..` going back along the walk. So neither a link
//! in an image nor a directory renamed at the wrong moment by another container leads out of the root. (openat2(2) with
//! `RESOLVE_IN_ROOT` protects as well, but cannot make what is missing behind a dangling link, such as the
//! `/etc/resolv.conf` of many images.)

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, mkdirat, openat, readlinkat, statat};
use rustix::io::Errno;

/// As the kernel has it (MAXSYMLINKS).
const MAX_LINKS: usize = 40;
/// Somebody who removes what we make must not keep us for ever.
const MAX_STEPS: usize = 10_000;

/// What to do about a path that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// ENOENT.
    Fail,
    /// Make directories.
    MakeDir,
    /// Make directories, and an empty file at the end.
    MakeFile,
}

/// Opens `path` below `root` as an `O_PATH` descriptor, the last component's links followed too.
pub(crate) fn resolve(root: impl AsFd, path: &str, missing: Missing) -> Result<OwnedFd, Errno> {
    let root = root.as_fd();
    let mut todo: VecDeque<Vec<u8>> = components(path.as_bytes()).collect();
    let mut walked: Vec<OwnedFd> = Vec::new();
    let mut links = 0;
    for _ in 0..MAX_STEPS {
        let Some(name) = todo.pop_front() else {
            return match walked.pop() {
                Some(fd) => Ok(fd),
                None => rustix::io::fcntl_dupfd_cloexec(root, 3),
            };
        };
        if name == b".." {
            walked.pop();
            continue;
        }
        let here = walked.last().map_or(root, AsFd::as_fd);
        let found = openat(here, &name[..], OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
        match found {
            Ok(fd) => {
                let kind = FileType::from_raw_mode(statat(&fd, "", AtFlags::EMPTY_PATH)?.st_mode);
                if kind != FileType::Symlink {
                    walked.push(fd);
                    continue;
                }
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP);
                }
                let target = readlinkat(&fd, "", Vec::new())?.into_bytes();
                if target.starts_with(b"/") {
                    walked.clear();
                }
                for part in components(&target).collect::<Vec<_>>().into_iter().rev() {
                    todo.push_front(part);
                }
            }
            Err(Errno::NOENT) if missing != Missing::Fail => {
                make(here, &name, todo.is_empty() && missing == Missing::MakeFile)?;
                todo.push_front(name);
            }
            Err(e) => return Err(e),
        }
    }
    Err(Errno::LOOP)
}

/// Splits `path` into its parent and its last component.
pub(crate) fn split_last(path: &str) -> Option<(&str, &str)> {
    let path = path.trim_end_matches('/');
    let (parent, name) = path.rsplit_once('/')?;
    (!matches!(name, "" | "." | "..")).then_some((parent, name))
}

fn make(dir: BorrowedFd<'_>, name: &[u8], file: bool) -> Result<(), Errno> {
    let made = if file {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
        openat(dir, name, flags, Mode::from_raw_mode(0o755)).map(|_| ())
    } else {
        mkdirat(dir, name, Mode::from_raw_mode(0o755))
    };
    match made {
        // Somebody else made it; the next look decides what it is.
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}

fn components(path: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    path.split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".").map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::path::PathBuf;

    use super::*;

    /// A directory that goes away with the test.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("jail-path-{}-{name}", std::process::id()));
            fs::create_dir_all(dir.join("root/etc")).unwrap();
            Dir(dir)
        }

        fn root(&self) -> OwnedFd {
            fs::File::open(self.0.join("root")).unwrap().into()
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn ino(fd: &OwnedFd) -> u64 {
        statat(fd, "", AtFlags::EMPTY_PATH).unwrap().st_ino
    }

    #[test]
    fn links_and_dots_stay_inside() {
        let d = Dir::new("inside");
        fs::write(d.0.join("secret"), "").unwrap();
        symlink("../../../secret", d.0.join("root/etc/up")).unwrap();
        symlink(d.0.join("secret"), d.0.join("root/etc/abs")).unwrap();
        symlink("loop", d.0.join("root/etc/loop")).unwrap();
        for path in ["etc/up", "etc/abs", "../secret", "etc/../../secret"] {
            assert_eq!(resolve(d.root(), path, Missing::Fail).unwrap_err(), Errno::NOENT, "{path}");
        }
        assert_eq!(resolve(d.root(), "/etc/loop", Missing::Fail).unwrap_err(), Errno::LOOP);
        let root = resolve(d.root(), "/../..", Missing::Fail).unwrap();
        assert_eq!(ino(&root), fs::metadata(d.0.join("root")).unwrap().ino());
    }

    #[test]
    fn what_is_missing_is_made_where_a_dangling_link_points_inside_the_root() {
        let d = Dir::new("make");
        symlink("/run/resolve/conf", d.0.join("root/etc/resolv.conf")).unwrap();
        let fd = resolve(d.root(), "/etc/resolv.conf", Missing::MakeFile).unwrap();
        let made = fs::metadata(d.0.join("root/run/resolve/conf")).unwrap();
        assert!(made.is_file());
        assert_eq!(ino(&fd), made.ino());
        resolve(d.root(), "a/b/c", Missing::MakeDir).unwrap();
        assert!(d.0.join("root/a/b/c").is_dir());
        assert_eq!(resolve(d.root(), "run/resolve/conf/x", Missing::MakeDir).unwrap_err(), Errno::NOTDIR);
    }

    #[test]
    fn the_last_component_is_split_off() {
        assert_eq!(split_last("/dev/fuse"), Some(("/dev", "fuse")));
        assert_eq!(split_last("/x/"), Some(("", "x")));
        assert_eq!(split_last("/dev/.."), None);
        assert_eq!(split_last("/"), None);
    }
}
