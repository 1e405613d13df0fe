//! A system call filter of a deny-list: for our own code in a jail, which must not get further than it has to even if
//! it is taken over. Programs that bring a filter of their own (QEMU) do not need it.

use std::io;

/// The audit architecture of this build (linux/audit.h): a call made as another architecture has other numbers.
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

/// On x86_64, numbers from here on are x32's.
const X32: u32 = 0x4000_0000;
/// All flags by which clone and unshare make namespaces.
const NEW_NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

/// Offsets in `struct seccomp_data`: the number, the architecture, the low half of the first argument (both
/// architectures are little-endian).
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn load(offset: u32) -> libc::sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

fn answer(k: u32) -> libc::sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, k)
}

/// Jumps forward over `yes` or `no` instructions.
fn jump(test: u32, k: u32, yes: usize, no: usize) -> io::Result<libc::sock_filter> {
    let short = |n: usize| u8::try_from(n).map_err(|_| io::Error::from(io::ErrorKind::ArgumentListTooLong));
    let code = (libc::BPF_JMP | test | libc::BPF_K) as u16;
    Ok(libc::sock_filter { code, jt: short(yes)?, jf: short(no)?, k })
}

/// The filter: `denied` and new namespaces answer EPERM, clone3 (whose flags cannot be looked at) ENOSYS, so that the
/// C library takes clone.
fn filter(denied: &[libc::c_long]) -> io::Result<Vec<libc::sock_filter>> {
    let errno = |e: i32| answer(libc::SECCOMP_RET_ERRNO | e as u32);
    let mut program = vec![
        load(ARCHITECTURE),
        jump(libc::BPF_JEQ, ARCH, 1, 0)?,
        answer(libc::SECCOMP_RET_KILL_PROCESS),
        load(NUMBER),
    ];
    // What follows the list, in this order; the list jumps into it.
    let tail = [
        jump(libc::BPF_JEQ, libc::SYS_clone as u32, 2, 0)?,
        jump(libc::BPF_JEQ, libc::SYS_unshare as u32, 1, 0)?,
        answer(libc::SECCOMP_RET_ALLOW),
        load(FIRST_ARGUMENT),
        jump(libc::BPF_JSET, NEW_NAMESPACES, 1, 0)?,
        answer(libc::SECCOMP_RET_ALLOW),
        errno(libc::EPERM),
        errno(libc::ENOSYS),
    ];
    const DENY: usize = 6;
    const NO_SUCH_CALL: usize = 7;
    // x32 first, then the list, then clone3.
    let list = denied.len() + 2;
    program.push(jump(libc::BPF_JGE, X32, list - 1 + DENY, 0)?);
    for (at, number) in denied.iter().enumerate() {
        program.push(jump(libc::BPF_JEQ, *number as u32, list - 2 - at + DENY, 0)?);
    }
    program.push(jump(libc::BPF_JEQ, libc::SYS_clone3 as u32, NO_SUCH_CALL, 0)?);
    program.extend(tail);
    Ok(program)
}

/// From now on this thread, and those that it starts, cannot make the system calls `denied` (EPERM), nor namespaces.
/// `no_new_privs` must be set.
///
/// # Errors
/// `EACCES` without `no_new_privs`; `ArgumentListTooLong` for more than about 240 numbers.
pub fn deny_syscalls(denied: &[libc::c_long]) -> io::Result<()> {
    let mut program = filter(denied)?;
    let len = u16::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::ArgumentListTooLong))?;
    let program = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    // SAFETY: a program of the given length that lives across the call; the kernel copies and checks it.
    let r = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errno_of(number: libc::c_long, first: libc::c_long) -> i32 {
        // SAFETY: calls that fail at once or change nothing: mount of null pointers, unshare, getpid.
        let r = unsafe { libc::syscall(number, first, 0, 0, 0, 0, 0) };
        if r < 0 { io::Error::last_os_error().raw_os_error().unwrap() } else { 0 }
    }

    #[test]
    fn what_is_denied_and_what_is_not() {
        std::thread::spawn(|| {
            // SAFETY: changes a flag of this thread.
            assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
            deny_syscalls(&[libc::SYS_mount, libc::SYS_acct, libc::SYS_umount2]).unwrap();
            assert_eq!(errno_of(libc::SYS_mount, 0), libc::EPERM);
            assert_eq!(errno_of(libc::SYS_umount2, 0), libc::EPERM);
            assert_eq!(errno_of(libc::SYS_clone3, 0), libc::ENOSYS);
            assert_eq!(errno_of(libc::SYS_unshare, libc::CLONE_NEWUSER.into()), libc::EPERM);
            assert_eq!(errno_of(libc::SYS_unshare, libc::CLONE_FS.into()), 0);
            assert_eq!(errno_of(libc::SYS_getpid, 0), 0);
            std::thread::spawn(|| assert_eq!(errno_of(libc::SYS_acct, 0), libc::EPERM)).join().unwrap();
        })
        .join()
        .unwrap();
    }

    #[test]
    fn jumps_of_the_longest_list_fit() {
        assert!(filter(&vec![1; 240]).is_ok());
        assert!(filter(&vec![1; 300]).is_err());
    }
}
