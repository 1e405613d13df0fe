//! Memory of guests, in files: copied without its holes, and sealed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use kata_types::Mib;
use rustix::fs::{MemfdFlags, SealFlags, SeekFrom, fcntl_add_seals, memfd_create, seek};
use rustix::io::Errno;

/// A page of the smallest kind: what is zero by whole pages stays a hole.
const PAGE: usize = 4096;
/// Small enough to stay in a CPU's cache between being read and written.
const CHUNK: usize = 128 * 1024;

/// Memory for a guest: `size`, nothing of it there yet.
///
/// # Errors
/// A system call's.
pub fn memory(size: Mib) -> io::Result<File> {
    let file = File::from(memfd_create("kata-ram", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.set_len(size.bytes())?;
    Ok(file)
}

/// Forbids every change of a [`memory`], for good.
///
/// # Errors
/// `ResourceBusy` while somebody has it mapped for writing.
pub fn seal(memory: &File) -> io::Result<()> {
    Ok(fcntl_add_seals(memory, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?)
}

/// Copies what is not zero, and makes `to` as long as `from`; `to` is empty, or as long and all holes. Returns how many
/// bytes were copied.
///
/// # Errors
/// A system call's; `StorageFull` where there is no room.
pub fn copy_sparse(from: &File, to: &File) -> io::Result<u64> {
    let end = from.metadata()?.len();
    if to.metadata()?.len() != end {
        to.set_len(end)?;
    }
    let mut buffer = vec![0; CHUNK];
    let (mut at, mut copied) = (0, 0);
    while at < end {
        let data = match seek(from, SeekFrom::Data(at)) {
            Ok(data) => data,
            // No more data: the rest is a hole.
            Err(Errno::NXIO) => break,
            Err(e) => return Err(e.into()),
        };
        let hole = seek(from, SeekFrom::Hole(data))?;
        at = data;
        while at < hole {
            let want = usize::try_from(hole - at).unwrap_or(CHUNK).min(CHUNK);
            from.read_exact_at(&mut buffer[..want], at)?;
            copied += write_pages(to, &buffer[..want], at)?;
            at += want as u64;
        }
    }
    Ok(copied)
}

/// Writes runs of pages that are not zero.
fn write_pages(to: &File, bytes: &[u8], at: u64) -> io::Result<u64> {
    let mut written = 0;
    let mut run = 0..0;
    let mut flush = |run: &std::ops::Range<usize>| {
        written += run.len() as u64;
        if run.is_empty() { Ok(()) } else { to.write_all_at(&bytes[run.clone()], at + run.start as u64) }
    };
    for (n, page) in bytes.chunks(PAGE).enumerate() {
        let start = n * PAGE;
        if is_zero(page) {
            flush(&run)?;
            run = start..start;
        } else if run.end == start && !run.is_empty() {
            run.end = start + page.len();
        } else {
            flush(&run)?;
            run = start..start + page.len();
        }
    }
    flush(&run)?;
    Ok(written)
}

fn is_zero(page: &[u8]) -> bool {
    // By words, which the compiler makes wide compares of.
    let (words, rest) = page.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|b| *b == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_equal_and_has_only_pages_that_hold_something() {
        let from = memory(Mib(8)).unwrap();
        let page = |n: u8| vec![n; PAGE];
        for (n, byte) in [(0, 1), (1, 2), (5, 0), (70, 3), (2047, 4)] {
            from.write_all_at(&page(byte), n * PAGE as u64).unwrap();
        }
        let to = memory(Mib(8)).unwrap();
        assert_eq!(copy_sparse(&from, &to).unwrap(), 4 * PAGE as u64);
        let read = |file: &File| {
            let mut all = vec![0; 8 << 20];
            file.read_exact_at(&mut all, 0).unwrap();
            all
        };
        assert!(read(&from) == read(&to));
        use std::os::unix::fs::MetadataExt;
        assert_eq!(to.metadata().unwrap().blocks() * 512, 4 * PAGE as u64);
        // To a file on a disk, and of no memory at all.
        let file = tempfile::tempfile().unwrap();
        copy_sparse(&to, &file).unwrap();
        assert!(read(&file) == read(&from));
        assert_eq!(copy_sparse(&memory(Mib(1)).unwrap(), &memory(Mib(1)).unwrap()).unwrap(), 0);
    }

    #[test]
    fn a_seal_is_for_good() {
        let sealed = memory(Mib(1)).unwrap();
        sealed.write_all_at(b"x", 0).unwrap();
        seal(&sealed).unwrap();
        assert_eq!(sealed.write_all_at(b"y", 0).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert!(sealed.set_len(0).is_err());
        // Also through a descriptor of its own.
        use std::os::fd::AsRawFd;
        let path = format!("/proc/self/fd/{}", sealed.as_raw_fd());
        let again = File::options().read(true).write(true).open(path).unwrap();
        assert!(again.write_all_at(b"y", 0).is_err());
    }
}
