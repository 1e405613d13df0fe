//! What turning a process into a container needs beyond nix and rustix.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// The two sides of [`fork_sibling`].
pub enum Forked {
    /// In the caller: the new process's pid in the caller's pid namespace, and a pidfd of it.
    Parent {
        /// Pid in the caller's (active) pid namespace.
        pid: i32,
        /// Refers to exactly this process, whatever becomes of the pid. Close-on-exec.
        pidfd: OwnedFd,
    },
    /// In the new process.
    Child,
}

/// Makes a copy of the calling process whose parent is the caller's parent (clone(2), `CLONE_PARENT`), in the pid
/// and time namespace that the caller has prepared for its children.
///
/// # Errors
/// EINVAL when the caller has more than one thread: only the calling thread would live on in the copy, and what the
/// others had locked would stay locked. Else what clone(2) says.
pub fn fork_sibling() -> io::Result<Forked> {
    // unshare(2): "If the caller is multithreaded, CLONE_THREAD fails with EINVAL", and otherwise does nothing.
    // SAFETY: no pointers; the flag changes nothing in a process of one thread.
    if unsafe { libc::unshare(libc::CLONE_THREAD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut pidfd: libc::c_int = -1;
    let flags = (libc::CLONE_PARENT | libc::CLONE_PIDFD | libc::SIGCHLD) as libc::c_ulong;
    // SAFETY: without CLONE_VM and with a null stack this is fork(2) with another parent: the child continues on its
    // own copy of this stack. The process has one thread (checked above), so the copy's locks are in order. `pidfd`
    // outlives the call; with CLONE_PIDFD the kernel writes an int there. The arguments that are zero are unused.
    let r = unsafe { libc::syscall(libc::SYS_clone, flags, 0usize, &raw mut pidfd, 0usize, 0usize) };
    match r {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => {
            // SAFETY: the kernel has just opened this descriptor for us and nobody else has it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Forked::Parent { pid: pid as i32, pidfd })
        }
    }
}

/// Changes a mount's attributes (mount_setattr(2)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct MountAttr {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear; the access-time bits are cleared as one field.
    pub clear: u64,
    /// One of `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE`, or 0 to leave the propagation alone.
    pub propagation: u64,
    /// A user namespace for an id-mapped mount; unused, 0.
    pub userns_fd: u64,
}

/// Applies `attr` to the mount that `mount` is the root of, and with `recursive` to all mounts below it.
///
/// # Errors
/// ENOSYS before Linux 5.12, EINVAL when `mount` is not the root of a mount, EPERM without CAP_SYS_ADMIN or for a locked attribute.
pub fn mount_setattr(mount: impl AsFd, attr: &MountAttr, recursive: bool) -> io::Result<()> {
    const AT_RECURSIVE: libc::c_int = 0x8000;
    let flags = libc::AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty terminated string, `attr` has the layout of struct mount_attr (four __u64) and the
    // size given; the kernel only reads both.
    let r = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const *attr,
            size_of::<MountAttr>(),
        )
    };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Marks every descriptor from `first` on close-on-exec (close_range(2)).
///
/// # Errors
/// ENOSYS before Linux 5.11.
pub fn cloexec_from(first: u32) -> io::Result<()> {
    // SAFETY: no pointers; the flag only marks descriptors, none is closed under its owner.
    let r = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Gives every signal its default action and unblocks all, so that a program started next inherits neither an
/// ignored SIGPIPE (Rust's runtime ignores it) nor a mask.
///
/// # Errors
/// None are expected; what rt_sigaction(2) and sigprocmask(2) say.
pub fn reset_signals() -> io::Result<()> {
    // By system call: the C library refuses the two numbers that it keeps for itself, but an ignored one of these is
    // inherited like any other. An all-zero struct sigaction is SIG_DFL without flags on every architecture; the array
    // is larger than any architecture's.
    let default = [0u64; 8];
    for signal in (1..=64).filter(|s| !matches!(*s, libc::SIGKILL | libc::SIGSTOP)) {
        // SAFETY: the kernel reads a struct sigaction from `default`, whose mask has the size given, and writes nothing.
        // No handler of anybody's is made or kept.
        let r = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null_mut::<u64>(),
                size_of::<u64>(),
            )
        };
        if r < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: an all-zero set is a valid value, and sigemptyset makes it the empty one.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is valid for both calls; the old mask is not asked for.
    let r = unsafe {
        libc::sigemptyset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut())
    };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends any signal, a realtime one too, to exactly the process that `pidfd` refers to (pidfd_send_signal(2)).
///
/// # Errors
/// ESRCH when it is gone, EINVAL for a number that is no signal, EPERM when it is not the caller's to signal.
pub fn send_signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: the null pointer asks for the siginfo that kill(2) would send; nothing is written.
    let r = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, std::ptr::null::<libc::siginfo_t>(), 0) };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Gives the caller a session keyring of its own (keyctl(2), `KEYCTL_JOIN_SESSION_KEYRING` without a name).
///
/// # Errors
/// ENOSYS without CONFIG_KEYS, EDQUOT when the user's quota of keys is used up.
pub fn new_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: a null name asks for an anonymous keyring; nothing is written.
    let r = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0usize, 0usize, 0usize, 0usize) };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 1 << 1;
const BPF_F_REPLACE: u32 = 1 << 2;

/// The head of `union bpf_attr` for BPF_PROG_LOAD (linux/bpf.h); the kernel takes what is beyond it as zero.
#[repr(C)]
struct BpfLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// The same for BPF_PROG_ATTACH.
#[repr(C)]
struct BpfAttach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

fn bpf<T>(command: libc::c_int, attr: &T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is a repr(C) head of union bpf_attr without padding, of the size given; the pointers in it are
    // kept alive by our callers below through this call.
    let r = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attr, size_of::<T>()) };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(r) }
}

/// Loads a device access program (BPF_PROG_TYPE_CGROUP_DEVICE); each element of `instructions` is one eBPF
/// instruction as the kernel reads it. The descriptor is close-on-exec.
///
/// # Errors
/// EPERM without CAP_BPF, EINVAL without CONFIG_CGROUP_BPF, EINVAL or EACCES when the verifier refuses the program.
pub fn load_device_program(instructions: &[u64]) -> io::Result<OwnedFd> {
    let count = u32::try_from(instructions.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let attr = BpfLoad {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: count,
        insns: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
    };
    let fd = bpf(BPF_PROG_LOAD, &attr)?;
    // SAFETY: a successful BPF_PROG_LOAD returns a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

/// Makes `program` decide on device access in the cgroup whose directory is open at `cgroup`, in place of `replace`
/// if that is given, else beside what is attached.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN or CAP_NET_ADMIN, ENOENT when `replace` is not attached, EBADF when `cgroup` is none.
pub fn attach_device_program(cgroup: impl AsFd, program: impl AsFd, replace: Option<&OwnedFd>) -> io::Result<()> {
    let attr = BpfAttach {
        target_fd: cgroup.as_fd().as_raw_fd() as u32,
        attach_bpf_fd: program.as_fd().as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI | if replace.is_some() { BPF_F_REPLACE } else { 0 },
        replace_bpf_fd: replace.map_or(0, |fd| fd.as_raw_fd() as u32),
    };
    bpf(BPF_PROG_ATTACH, &attr).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_not_copied() {
        // The test harness has at least two: its own and this test's.
        let waiting = std::thread::spawn(std::thread::park);
        let Err(e) = fork_sibling() else { panic!("forked with threads") };
        assert_eq!(e.raw_os_error(), Some(libc::EINVAL));
        waiting.thread().unpark();
        waiting.join().unwrap();
    }

    #[test]
    fn structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<MountAttr>(), 32);
        assert_eq!(size_of::<BpfLoad>(), 48);
        assert_eq!(size_of::<BpfAttach>(), 20);
    }
}
