//! Starting and watching processes.

pub mod kvm;
pub mod mount;
pub mod seccomp;

use std::ffi::CString;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};

/// Descriptors from here on are out of the way of the numbers given to programs.
pub const HIGH_FD: RawFd = 512;

/// Which side of [`clone_sibling`] one is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clone {
    /// The new process.
    Child,
    /// The caller; the new process has this pid, as the caller's pid namespace sees it.
    Parent(i32),
}

/// Clones the calling process into a *sibling* (`CLONE_PARENT`): the caller's parent becomes the new process's parent
/// and waits for it. `new_pid_namespace` makes the sibling the first process of a new pid namespace.
///
/// # Errors
/// `clone(2)`'s; also `EBUSY` if the caller has more than one thread, because the copy of a multi-threaded process may
/// hang at the first lock that another thread held.
pub fn clone_sibling(new_pid_namespace: bool) -> io::Result<Clone> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    let mut flags = libc::CLONE_PARENT as libc::c_ulong | libc::SIGCHLD as libc::c_ulong;
    if new_pid_namespace {
        flags |= libc::CLONE_NEWPID as libc::c_ulong;
    }
    // The one order of arguments that differs (s390x swaps the first two) does not matter with a null stack and
    // these flags only on the architectures this project builds for: x86_64 and aarch64.
    // SAFETY: like fork(2): no new stack, no shared memory, no TLS or tid pointers; the process is single-threaded
    // (checked above), so all of the child's memory is consistent.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0usize, 0usize, 0usize, 0usize) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Clone::Child),
        pid => Ok(Clone::Parent(pid as i32)),
    }
}

/// Has what `command` starts be in the network namespace behind `netns`, whichever one the caller is in.
pub fn start_in_network(command: &mut std::process::Command, netns: OwnedFd) {
    use std::os::unix::process::CommandExt;
    let enter = move || nix::sched::setns(&netns, nix::sched::CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
    // SAFETY: between fork and exec it makes one system call, and no more: no memory is allocated, no lock taken.
    unsafe { command.pre_exec(enter) };
}

/// Puts `fd` at `number`, where it stays open across `execve`; whatever was open there is closed.
///
/// # Errors
/// `dup2(2)`'s.
pub fn place_fd(fd: OwnedFd, number: RawFd) -> io::Result<()> {
    let raw = fd.into_raw_fd();
    if raw == number {
        // SAFETY: plain fcntl on a descriptor that we own.
        let r = unsafe { libc::fcntl(raw, libc::F_SETFD, 0) };
        return if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    }
    // SAFETY: `raw` is a descriptor that we own; `number` is given to the program about to be executed, and the caller
    // (a helper between fork and exec) uses nothing that lives there.
    let r = unsafe { libc::dup2(raw, number) };
    let result = if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: taken out of the OwnedFd above, not used afterwards.
    unsafe { libc::close(raw) };
    result
}

/// Takes a descriptor that this process inherited under a fixed number, and makes it close on exec.
///
/// # Errors
/// `EBADF` if nothing is open there, `EINVAL` for the standard streams.
pub fn take_inherited_fd(number: RawFd) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: plain fcntl; fails with EBADF if nothing is open there.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: open (checked above). It is the caller's by the contract of a fixed number between a program and
    // whoever executed it; called once per number, at the start of main.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A copy of descriptor 0 that closes on exec.
///
/// # Errors
/// `fcntl(2)`'s.
pub fn dup_stdin() -> io::Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), HIGH_FD).map_err(Into::into)
}

/// Marks every descriptor from `first` on as close-on-exec.
///
/// # Errors
/// `close_range(2)`'s; Linux 5.11 is needed.
pub fn cloexec_from(first: RawFd) -> io::Result<()> {
    // SAFETY: changes descriptor flags only; closes nothing.
    let r = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_int::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Gives every signal its default action and unblocks all: what a freshly executed program expects, while Rust's
/// runtime ignores SIGPIPE.
///
/// # Errors
/// `sigprocmask(2)`'s.
pub fn default_signals() -> io::Result<()> {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL installs no handler. Errors (KILL, STOP, the two that libc keeps) are of no interest.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    nix::sys::signal::SigSet::empty().thread_set_mask()?;
    Ok(())
}

/// `execve(2)`; returns only if it failed.
pub fn exec(program: &CString, args: &[CString], env: &[CString]) -> io::Error {
    match nix::unistd::execve(program, args, env) {
        Ok(never) => match never {},
        Err(e) => e.into(),
    }
}
