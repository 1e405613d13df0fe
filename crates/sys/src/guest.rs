//! What only the guest's PID 1 does: entropy, the clock, the loopback interface, signals by number.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Puts `data` into the kernel's entropy pool and credits eight bits a byte (random(4), RNDADDENTROPY).
/// `random` is an open `/dev/random` or `/dev/urandom`.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN; EINVAL when there is more data than the kernel's structure can name.
pub fn add_entropy(random: impl AsFd, data: &[u8]) -> io::Result<()> {
    let (Ok(len), Some(bits)) =
        (i32::try_from(data.len()), i32::try_from(data.len()).ok().and_then(|l| l.checked_mul(8)))
    else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    // struct rand_pool_info { int entropy_count; int buf_size; __u32 buf[]; }
    let mut info = Vec::with_capacity(8 + data.len());
    info.extend(bits.to_ne_bytes());
    info.extend(len.to_ne_bytes());
    info.extend(data);
    const RNDADDENTROPY: u32 = 0x4008_5203;
    // SAFETY: `info` is a whole rand_pool_info with as many bytes as its buf_size says, and lives through the call.
    let r = unsafe { libc::ioctl(random.as_fd().as_raw_fd(), RNDADDENTROPY as _, info.as_ptr()) };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes the kernel's generator take a new key from the pool at once (random(4), RNDRESEEDCRNG).
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN; ENODATA before the generator is initialised.
pub fn reseed_crng(random: impl AsFd) -> io::Result<()> {
    const RNDRESEEDCRNG: u32 = 0x5207;
    // SAFETY: the request takes no argument.
    let r = unsafe { libc::ioctl(random.as_fd().as_raw_fd(), RNDRESEEDCRNG as _) };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets the wall clock.
///
/// # Errors
/// EPERM without CAP_SYS_TIME; EINVAL for a time before 1970 or with a million microseconds or more.
pub fn set_realtime(secs: i64, micros: i64) -> io::Result<()> {
    let nanos = micros.checked_mul(1000).filter(|n| (0..1_000_000_000).contains(n));
    let Some(nanos) = nanos else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    // SAFETY: an all-zero timespec is a valid value; some targets have padding fields beside the two set here.
    let mut ts: libc::timespec = unsafe { std::mem::zeroed() };
    ts.tv_sec = secs as _;
    ts.tv_nsec = nanos as _;
    // SAFETY: `ts` is a valid timespec that lives through the call.
    let r = unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &ts) };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets an interface's IFF_UP flag (netdevice(7)).
///
/// # Errors
/// ENODEV when there is no such interface, EPERM without CAP_NET_ADMIN, EINVAL for a name that is too long.
pub fn link_up(name: &str) -> io::Result<()> {
    use std::os::fd::{FromRawFd, OwnedFd};
    // SAFETY: an all-zero ifreq is a valid value.
    let mut req: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= req.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    for (to, from) in req.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just opened and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: `req` is a valid ifreq with a terminated name; the kernel writes its flags.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &mut req) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: SIOCGIFFLAGS filled the union's flags.
    unsafe { req.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short };
    // SAFETY: as above; the kernel reads name and flags.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &req) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sends signal `number` to the process that `pidfd` names (pidfd_send_signal(2)); 0 only asks whether it is there.
/// By number, because the safe wrappers know no real-time signals.
///
/// # Errors
/// ESRCH when the process has ended, EINVAL for a number that is no signal.
pub fn signal_pidfd(pidfd: impl AsFd, number: i32) -> io::Result<()> {
    // SAFETY: a null siginfo asks for what kill(2) would send; the other arguments are plain numbers.
    let r = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_fd().as_raw_fd(), number, std::ptr::null::<u8>(), 0u32)
    };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_times_and_names_are_refused_before_the_kernel_sees_them() {
        assert!(set_realtime(0, 1_000_000).is_err());
        assert!(set_realtime(0, -1).is_err());
        assert!(link_up("a-name-that-is-longer-than-an-interface-has").is_err());
        assert_eq!(link_up("nosuchif0").unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }
}
