//! Namespaces' files (ioctl_nsfs(2)).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `NS_GET_NSTYPE` of linux/nsfs.h, `_IO(0xb7, 0x3)`.
const NS_GET_NSTYPE: u32 = 0xb703;

/// The kind of namespace that an open file stands for: one of the `CLONE_NEW*` flags.
///
/// # Errors
/// `ENOTTY` for a file that stands for none.
pub fn kind(file: impl AsFd) -> io::Result<i32> {
    // SAFETY: the request takes no argument and writes nothing.
    let kind = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), NS_GET_NSTYPE as _) };
    if kind < 0 { Err(io::Error::last_os_error()) } else { Ok(kind) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn each_kind_says_what_it_is() {
        assert_eq!(kind(File::open("/proc/self/ns/net").unwrap()).unwrap(), libc::CLONE_NEWNET);
        assert_eq!(kind(File::open("/proc/self/ns/mnt").unwrap()).unwrap(), libc::CLONE_NEWNS);
        let other = kind(File::open("/proc/self/exe").unwrap()).unwrap_err();
        assert_eq!(other.raw_os_error(), Some(libc::ENOTTY));
    }
}
