//! Taps: Ethernet interfaces whose other end is a file (Documentation/networking/tuntap.rst).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// The length of an interface's name with the zero after it (`IFNAMSIZ`).
const NAME: usize = 16;

/// Opens a queue of the tap called `name` in this thread's network namespace, which comes to be with its first queue and
/// goes with its last. Frames have a `virtio_net_hdr` before them (`IFF_VNET_HDR`), and nothing else (`IFF_NO_PI`).
/// `many`: it may have more queues than one; all of a tap's queues must agree.
///
/// # Errors
/// `EINVAL` for a name of no or more than 15 bytes; open(2)'s of /dev/net/tun; `TUNSETIFF`'s: `EBUSY` when all its queues
/// are taken, `EPERM` without CAP_NET_ADMIN in the namespace.
pub fn open_queue(name: &str, many: bool) -> io::Result<OwnedFd> {
    if name.is_empty() || name.len() >= NAME || name.contains('\0') {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let tun = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: ifreq is plain data, for which zeros are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed() as libc::c_char;
    }
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if many {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    // All of them are in the lower 16 bits.
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the request is a live ifreq, which is what TUNSETIFF reads and writes.
    let done = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(tun.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_cannot_be_are_refused() {
        for name in ["", "sixteen-letters-", "a\0b"] {
            assert_eq!(open_queue(name, false).unwrap_err().raw_os_error(), Some(libc::EINVAL), "{name:?}");
        }
    }
}
