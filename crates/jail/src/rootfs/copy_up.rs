//! `tmpcopyup`: a tmpfs that begins with what it hides.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Uid, chmodat, chownat, mkdirat, mknodat, openat, readlinkat, statat,
    symlinkat,
};
use rustix::io::Errno;

/// Deeper trees are refused rather than risking the stack.
const MAX_DEPTH: usize = 64;

/// Copies the content of directory `from` (opened with `O_PATH`) into `to`.
pub(crate) fn copy(from: &OwnedFd, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let from = openat(from, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    copy_dir(from, to, MAX_DEPTH)
}

fn copy_dir(from: OwnedFd, to: BorrowedFd<'_>, depth: usize) -> Result<(), Errno> {
    if depth == 0 {
        return Err(Errno::NAMETOOLONG);
    }
    for entry in Dir::read_from(&from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let st = statat(&from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let mode = Mode::from_raw_mode(st.st_mode & 0o7777);
        let kind = FileType::from_raw_mode(st.st_mode);
        match kind {
            FileType::Directory => {
                mkdirat(to, name, mode)?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let (from, to) = (openat(&from, name, flags, Mode::empty())?, openat(to, name, flags, Mode::empty())?);
                copy_dir(from, std::os::fd::AsFd::as_fd(&to), depth - 1)?;
            }
            FileType::Symlink => symlinkat(readlinkat(&from, name, Vec::new())?.as_c_str(), to, name)?,
            FileType::RegularFile => {
                let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let source = openat(&from, name, flags | OFlags::RDONLY, Mode::empty())?;
                let target = openat(to, name, flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL, mode)?;
                let copied = std::io::copy(&mut std::fs::File::from(source), &mut std::fs::File::from(target));
                copied.map_err(|e| e.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))?;
            }
            other => mknodat(to, name, other, mode, st.st_rdev)?,
        }
        chownat(to, name, Some(Uid::from_raw(st.st_uid)), Some(Gid::from_raw(st.st_gid)), AtFlags::SYMLINK_NOFOLLOW)?;
        if kind != FileType::Symlink {
            // After the change of owner, which clears the set-id bits.
            chmodat(to, name, mode, AtFlags::empty())?;
        }
    }
    Ok(())
}
