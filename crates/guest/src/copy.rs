//! CopyFile: puts a file, a directory or a link of the host's into the guest, in pieces.
//!
//! The target lies in directories that containers may write to, so no symbolic link is followed on the way
//! (openat2(2), RESOLVE_NO_SYMLINKS), and a file appears under its name only when it is whole.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path};

use kata_proto::agent::CopyFileRequest;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use thiserror::Error;

/// Below this directory files may be put, and nowhere else.
pub const BASE: &str = "/run/kata-containers";

/// Why a file was not copied.
#[derive(Debug, Error)]
pub enum CopyError {
    /// The request makes no sense.
    #[error("cannot copy to {path}: {what}")]
    Invalid {
        /// As requested.
        path: String,
        /// What is wrong.
        what: String,
    },
    /// A step failed.
    #[error("cannot copy to {path}: {step}")]
    Step {
        /// As requested.
        path: String,
        /// Which.
        step: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

/// Does one request. Blocks.
///
/// # Errors
/// [`CopyError`].
pub fn copy(request: &CopyFileRequest) -> Result<(), CopyError> {
    copy_below(Path::new(BASE), request)
}

fn copy_below(base: &Path, request: &CopyFileRequest) -> Result<(), CopyError> {
    let invalid = |what: &str| CopyError::Invalid { path: request.path.clone(), what: what.to_owned() };
    let step = |step| move |e: Errno| CopyError::Step { path: request.path.clone(), step, source: e.into() };
    let relative = Path::new(&request.path)
        .strip_prefix(base)
        .map_err(|_| invalid(&format!("only paths below {} are allowed", base.display())))?;
    let names: Option<Vec<&OsStr>> = relative
        .components()
        .map(|c| match c {
            Component::Normal(name) => Some(name),
            _ => None,
        })
        .collect();
    let names = names.ok_or_else(|| invalid("the path must not contain .."))?;
    let Some((name, parents)) = names.split_last() else {
        return Err(invalid("the path names no file"));
    };
    std::fs::create_dir_all(base).map_err(|source| CopyError::Step {
        path: request.path.clone(),
        step: "making the base directory",
        source,
    })?;
    let mut dir = rustix::fs::open(base, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(step("opening the base directory"))?;
    let dir_mode = if request.dir_mode & 0o7777 == 0 { 0o755 } else { request.dir_mode & 0o7777 };
    for parent in parents {
        dir = enter(&dir, parent, dir_mode).map_err(step("making a directory on the way"))?;
    }
    let mode = Mode::from_bits_truncate(request.file_mode & 0o7777);
    let owner = owner(request).ok_or_else(|| invalid("the owner is negative"))?;
    match request.file_mode & libc::S_IFMT {
        libc::S_IFDIR => directory(&dir, name, mode, owner).map_err(step("making the directory")),
        libc::S_IFLNK => link(&dir, name, &request.data, owner).map_err(step("making the link")),
        0 | libc::S_IFREG => regular(&dir, name, mode, owner, request),
        other => Err(invalid(&format!("files of type {other:#o} are not copied"))),
    }
}

fn owner(request: &CopyFileRequest) -> Option<(Uid, Gid)> {
    let (uid, gid) = (u32::try_from(request.uid).ok()?, u32::try_from(request.gid).ok()?);
    Some((Uid::from_raw(uid), Gid::from_raw(gid)))
}

fn open_dir(dir: &OwnedFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve)
}

fn enter(dir: &OwnedFd, name: &OsStr, mode: u32) -> Result<OwnedFd, Errno> {
    match open_dir(dir, name) {
        Err(Errno::NOENT) => {
            rustix::fs::mkdirat(dir, name, Mode::from_bits_truncate(mode))?;
            open_dir(dir, name)
        }
        other => other,
    }
}

fn directory(dir: &OwnedFd, name: &OsStr, mode: Mode, (uid, gid): (Uid, Gid)) -> Result<(), Errno> {
    match rustix::fs::mkdirat(dir, name, mode) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e),
    }
    // Opened, so that what is changed is a directory and no link that took its place.
    let made = rustix::fs::openat(
        dir,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    rustix::fs::fchown(&made, Some(uid), Some(gid))?;
    rustix::fs::fchmod(&made, mode)
}

fn link(dir: &OwnedFd, name: &OsStr, target: &[u8], (uid, gid): (Uid, Gid)) -> Result<(), Errno> {
    let part = part_name(name);
    match rustix::fs::unlinkat(dir, &part[..], AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => return Err(e),
    }
    rustix::fs::symlinkat(target, dir, &part[..])?;
    rustix::fs::chownat(dir, &part[..], Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    rustix::fs::renameat(dir, &part[..], dir, name)
}

fn part_name(name: &OsStr) -> Vec<u8> {
    [b".", name.as_bytes(), b".kata-part"].concat()
}

fn regular(
    dir: &OwnedFd,
    name: &OsStr,
    mode: Mode,
    (uid, gid): (Uid, Gid),
    request: &CopyFileRequest,
) -> Result<(), CopyError> {
    let invalid = |what: &str| CopyError::Invalid { path: request.path.clone(), what: what.to_owned() };
    let step = |step| move |e: Errno| CopyError::Step { path: request.path.clone(), step, source: e.into() };
    let offset = u64::try_from(request.offset).map_err(|_| invalid("the offset is negative"))?;
    let size = u64::try_from(request.file_size).map_err(|_| invalid("the size is negative"))?;
    let end = offset.checked_add(request.data.len() as u64).filter(|end| *end <= size);
    let end = end.ok_or_else(|| invalid("the piece reaches beyond the file's size"))?;
    let part = part_name(name);
    let mut flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if offset == 0 {
        flags |= OFlags::TRUNC;
    }
    let fd = rustix::fs::openat(dir, &part[..], flags, Mode::RUSR | Mode::WUSR).map_err(step("opening it"))?;
    let file = File::from(fd);
    file.write_all_at(&request.data, offset).map_err(|source| CopyError::Step {
        path: request.path.clone(),
        step: "writing it",
        source,
    })?;
    if end == size {
        // The owner first: changing it drops the set-id bits.
        rustix::fs::fchown(file.as_fd(), Some(uid), Some(gid)).map_err(step("setting its owner"))?;
        rustix::fs::fchmod(file.as_fd(), mode).map_err(step("setting its mode"))?;
        rustix::fs::renameat(dir, &part[..], dir, name).map_err(step("giving it its name"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn request(path: &Path, data: &[u8], offset: i64, size: i64) -> CopyFileRequest {
        let (uid, gid) = (rustix::process::getuid().as_raw() as i32, rustix::process::getgid().as_raw() as i32);
        CopyFileRequest {
            path: path.to_str().unwrap().into(),
            file_size: size,
            file_mode: libc::S_IFREG | 0o640,
            dir_mode: 0o750,
            uid,
            gid,
            offset,
            data: data.to_vec(),
            ..Default::default()
        }
    }

    #[test]
    fn a_file_appears_when_it_is_whole() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("a/b");
        copy_below(base.path(), &request(&path, b"hello ", 0, 11)).unwrap();
        assert!(!path.exists());
        copy_below(base.path(), &request(&path, b"world", 6, 11)).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"hello world");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(std::fs::read_dir(base.path().join("a")).unwrap().count(), 1);
    }

    #[test]
    fn nothing_leaves_the_base() {
        let base = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), base.path().join("link")).unwrap();
        for bad in ["../x", "a/../../x", "link/x", ""] {
            let path = base.path().join(bad);
            assert!(copy_below(base.path(), &request(&path, b"", 0, 0)).is_err(), "{bad}");
        }
        assert!(copy_below(base.path(), &request(Path::new("/etc/passwd"), b"", 0, 0)).is_err());
        assert!(copy_below(base.path(), &request(&base.path().join("x"), b"123", 0, 2)).is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn links_are_made_and_replaced_not_followed() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("l");
        let mut r = request(&path, b"/target", 0, 0);
        r.file_mode = libc::S_IFLNK | 0o777;
        copy_below(base.path(), &r).unwrap();
        copy_below(base.path(), &r).unwrap();
        assert_eq!(std::fs::read_link(&path).unwrap(), Path::new("/target"));
        copy_below(base.path(), &request(&path, b"x", 0, 1)).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"x");
    }
}
