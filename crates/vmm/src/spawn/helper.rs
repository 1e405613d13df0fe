//! The helper: one thread, nothing inherited but a socket. Builds the jail and executes the program.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use capctl::caps::{Cap, CapSet, CapState, ambient, bounding};
use kata_sys::process::{Clone, HIGH_FD, cloexec_from, clone_sibling, default_signals, dup_stdin, exec, place_fd};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::process::Signal;

use super::wire::{self, FromHelper, Plan, RLimit};
use super::{SpawnError, jail_root};

/// Exit code of a helper that failed; the reason went over the socket.
const FAILED: u8 = 125;

/// Names the step of an error.
trait Step<T> {
    fn step(self, step: &str, what: &str) -> Result<T, SpawnError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &str, what: &str) -> Result<T, SpawnError> {
        self.map_err(|e| SpawnError::new(step, what, e))
    }
}

/// `kata spawn`: standard input is the socket of the starting process.
pub(super) fn main() -> ExitCode {
    let socket = match dup_stdin() {
        Ok(socket) => socket,
        Err(e) => {
            eprintln!("spawn: no socket on standard input: {e}");
            return ExitCode::from(FAILED);
        }
    };
    match run(socket.as_fd()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let errno = e.source.raw_os_error().unwrap_or(nix::libc::EINVAL);
            let failed = FromHelper::Failed { step: e.step, what: e.what, errno };
            if let Err(e) = wire::say(socket.as_fd(), &failed) {
                eprintln!("spawn: cannot tell that {failed:?}: {e}");
            }
            ExitCode::from(FAILED)
        }
    }
}

/// Returns only in the helper whose sibling becomes the program, or with an error.
fn run(socket: BorrowedFd<'_>) -> Result<(), SpawnError> {
    let (plan, fds) = wire::receive_plan(socket).step("receive", "the plan")?;
    die_with_parent()?;
    if nix::unistd::getppid().as_raw() as u32 != plan.parent {
        return Err(SpawnError::new("find", "the starting process", io::ErrorKind::NotFound));
    }
    let mut numbered = Vec::with_capacity(fds.len());
    for (number, fd) in fds {
        if !(3..HIGH_FD).contains(&number) {
            return Err(SpawnError::new("place descriptor", number.to_string(), nix::Error::EINVAL));
        }
        let high = rustix::io::fcntl_dupfd_cloexec(&fd, HIGH_FD).step("move descriptor", &number.to_string())?;
        numbered.push((number, high));
    }
    for dir in &plan.cgroups {
        let procs = dir.join("cgroup.procs");
        // "0" is the writer itself, in both versions of cgroups.
        fs::write(&procs, "0").step("join cgroup", &dir.to_string_lossy())?;
    }
    for &limit in &plan.rlimits {
        set_limit(limit)?;
    }
    let mut namespaces = CloneFlags::empty();
    for (wanted, flag) in [
        (plan.mount_ns, CloneFlags::CLONE_NEWNS),
        (plan.net_ns, CloneFlags::CLONE_NEWNET),
        (plan.ipc_ns, CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS),
    ] {
        if wanted {
            namespaces |= flag;
        }
    }
    if !namespaces.is_empty() {
        unshare(namespaces).step("make namespaces", &format!("{namespaces:?}"))?;
    }
    if plan.pid_ns {
        match clone_sibling(true).step("clone into", "a pid namespace")? {
            Clone::Parent(pid) => {
                return wire::say(socket, &FromHelper::Sibling { pid }).step("name", "the program's process");
            }
            Clone::Child => {}
        }
    }
    match become_program(&plan, numbered, socket) {
        Ok(never) => match never {},
        Err(e) => Err(e),
    }
}

/// SIGKILL when the starting thread ends. Lost by fork and by a change of user: set again after those.
fn die_with_parent() -> Result<(), SpawnError> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).step("ask for", "a signal at the parent's end")
}

fn become_program(
    plan: &Plan,
    fds: Vec<(RawFd, OwnedFd)>,
    socket: BorrowedFd<'_>,
) -> Result<std::convert::Infallible, SpawnError> {
    die_with_parent()?;
    nix::unistd::setsid().step("start", "a session")?;
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null").step("open", "/dev/null")?;
    if plan.mount_ns {
        jail_root::make_slave().step("make a slave of", "the mount namespace")?;
    }
    if let Some(root) = &plan.root {
        jail_root::enter(root, plan.user)?;
    }
    std::env::set_current_dir("/").step("change to", "/")?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    drop_privileges(plan)?;
    // The change of user made us undumpable and took the signal away.
    die_with_parent()?;
    if plan.no_new_privs {
        rustix::thread::set_no_new_privs(true).step("set", "no_new_privs")?;
    }

    let program = c_string(plan.program.as_os_str().as_bytes())?;
    let args = plan.args.iter().map(|a| c_string(a.as_bytes())).collect::<Result<Vec<_>, _>>()?;
    let env = plan.env.iter().map(|e| c_string(e.as_bytes())).collect::<Result<Vec<_>, _>>()?;
    default_signals().step("reset", "signals")?;

    // The word comes only when the starting process has the program's pidfd: from then on it is killed with its owner.
    wire::say(socket, &FromHelper::Ready).step("announce", "readiness")?;
    wire::wait_go(socket).step("wait for", "the starting process")?;

    cloexec_from(3).step("mark", "descriptors")?;
    place_fd(null.into(), 0).step("place descriptor", "0")?;
    for (number, fd) in fds {
        place_fd(fd, number).step("place descriptor", &number.to_string())?;
    }
    Err(SpawnError::new("execute", plan.program.to_string_lossy(), exec(&program, &args, &env)))
}

fn c_string(bytes: &[u8]) -> Result<CString, SpawnError> {
    CString::new(bytes).map_err(|_| {
        SpawnError::new(
            "pass",
            format!("an argument with a NUL: {}", String::from_utf8_lossy(bytes)),
            nix::Error::EINVAL,
        )
    })
}

/// Sets soft and hard limit; if the hard limit may not be raised, as far as it goes.
fn set_limit(limit: RLimit) -> Result<(), SpawnError> {
    let (resource, value) = match limit {
        RLimit::NoFile(n) => (Resource::RLIMIT_NOFILE, n),
        RLimit::Core(n) => (Resource::RLIMIT_CORE, n),
        RLimit::MemLock(n) => (Resource::RLIMIT_MEMLOCK, n),
    };
    let what = format!("{limit:?}");
    match setrlimit(resource, value, value) {
        Err(nix::Error::EPERM) => {
            let (_, hard) = getrlimit(resource).step("read limit", &what)?;
            setrlimit(resource, hard.min(value), hard.min(value)).step("set limit", &what)
        }
        other => other.step("set limit", &what),
    }
}

/// Changes user and leaves no more than the capabilities to keep.
fn drop_privileges(plan: &Plan) -> Result<(), SpawnError> {
    let keep: &[String] = match (&plan.capabilities, plan.user) {
        (Some(keep), _) => keep,
        (None, Some(_)) => &[],
        (None, None) => return Ok(()),
    };
    let have = CapState::get_current().step("read", "capabilities")?.permitted;
    let mut wanted = CapSet::empty();
    for name in keep {
        let cap: Cap = format!("CAP_{name}")
            .parse()
            .map_err(|_| SpawnError::new("keep capability", name.as_str(), nix::Error::EINVAL))?;
        wanted.add(cap);
    }
    let wanted = wanted & have;
    for cap in bounding::probe() - wanted {
        bounding::drop(cap).step("drop capability", &cap.to_string())?;
    }
    if let Some((uid, gid)) = plan.user {
        // Until they are set for good below; without it the change of user clears them.
        capctl::prctl::set_keepcaps(true).step("hold on to", "capabilities")?;
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        setgroups(&[]).step("drop", "supplementary groups")?;
        setresgid(gid, gid, gid).step("change to group", &gid.to_string())?;
        setresuid(uid, uid, uid).step("change to user", &uid.to_string())?;
    }
    CapState { effective: wanted, permitted: wanted, inheritable: wanted }.set_current().step("set", "capabilities")?;
    if !nix::unistd::geteuid().is_root() {
        // For another user than root, only ambient capabilities outlive execve.
        for cap in wanted {
            ambient::raise(cap).step("raise capability", &cap.to_string())?;
        }
    }
    Ok(())
}
