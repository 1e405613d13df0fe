//! What is mounted where: /proc/thread-self/mountinfo (proc(5)).

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The mount points at and below `dir`, in the order in which they were mounted.
pub(crate) fn mounts_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    // Of this thread: it may have a mount namespace of its own.
    Ok(parse(&std::fs::read("/proc/thread-self/mountinfo")?, dir))
}

/// Which directory of its file system is shown at a mount point; of several mounts there, the last.
pub fn root_of_mount(point: &Path) -> Option<PathBuf> {
    root_in(&std::fs::read("/proc/thread-self/mountinfo").ok()?, point)
}

fn root_in(mountinfo: &[u8], point: &Path) -> Option<PathBuf> {
    let lines = mountinfo.split(|&b| b == b'\n').rev();
    let mut fields = lines.map(|line| line.split(|&b| b == b' ').skip(3));
    fields.find_map(|mut fields| {
        let (root, at) = (fields.next()?, fields.next()?);
        (Path::new(&unescape(at)) == point).then(|| PathBuf::from(unescape(root)))
    })
}

fn parse(mountinfo: &[u8], dir: &Path) -> Vec<PathBuf> {
    mountinfo
        .split(|&b| b == b'\n')
        .filter_map(|line| line.split(|&b| b == b' ').nth(4))
        .map(|field| PathBuf::from(unescape(field)))
        .filter(|path| path.starts_with(dir))
        .collect()
}

/// Space, tab, newline and backslash are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = (byte == b'\\')
            .then(|| after.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok().and_then(|digits| u8::from_str_radix(digits, 8).ok()));
        match octal {
            Some(value) => {
                plain.push(value);
                rest = &after[3..];
            }
            None => {
                plain.push(byte);
                rest = after;
            }
        }
    }
    OsString::from_vec(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_at_or_below_in_order() {
        let text = b"22 1 0:5 / /proc rw - proc proc rw\n\
            30 1 0:9 / /run/kata/a/share rw shared:1 - ext4 /dev/vda rw\n\
            31 30 0:9 /x /run/kata/a/share/c/with\\040space rw - ext4 /dev/vda rw\n\
            32 1 0:9 / /run/kata/a/shared rw - ext4 /dev/vda rw\n\nbroken\n";
        let found = parse(text, Path::new("/run/kata/a/share"));
        assert_eq!(found, [Path::new("/run/kata/a/share"), Path::new("/run/kata/a/share/c/with space")]);
    }

    #[test]
    fn the_last_mount_at_a_point_is_what_is_seen_there() {
        let text = b"22 1 0:5 / /a rw - tmpfs a rw\n23 1 0:6 /sub\\040dir /a rw - tmpfs b rw\n";
        assert_eq!(root_in(text, Path::new("/a")), Some(PathBuf::from("/sub dir")));
        assert_eq!(root_in(text, Path::new("/b")), None);
    }

    #[test]
    fn escapes() {
        assert_eq!(unescape(b"a\\134b\\011c"), OsString::from("a\\b\tc"));
        assert_eq!(unescape(b"odd\\9"), OsString::from("odd\\9"));
    }
}
