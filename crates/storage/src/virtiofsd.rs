//! The file daemon: the mode of the host binary that serves a directory to a guest over vhost-user. The file system is
//! the virtiofsd library's; the jail is ours. The spawner has given it namespaces, a short list of capabilities and
//! its limits; here it makes the share its root directory and gives up the capability for that.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use capctl::caps::{Cap, CapState, ambient};
use kata_sys::process::mount::{MountAttrs, set_mount_attrs};
use kata_sys::process::seccomp::deny_syscalls;
use kata_sys::process::take_inherited_fd;
use nix::mount::{MntFlags, umount2};
use nix::sys::resource::{Resource, getrlimit};
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use vhost::vhost_user::{Error as VhostUserError, Listener};
use vhost_user_backend::{Error as BackendError, VhostUserDaemon};
use virtiofsd::passthrough::{CachePolicy, Config, InodeFileHandlesMode, PassthroughFs};
use virtiofsd::vhost_user::VhostUserFsBackendBuilder;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

/// What it may do while it serves: change owners, make nodes, act as the users of the guest. (No DAC_READ_SEARCH: with
/// it, file handles would open any file of the host's file systems.)
pub(crate) const CAPABILITIES: &[&str] =
    &["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "MKNOD", "SETFCAP", "SETGID", "SETUID"];
/// What it may do besides until its root directory is changed.
pub(crate) const SETUP_CAPABILITY: &str = "SYS_ADMIN";
/// What it never does. A process that was taken over by its guest must not find a way out in them.
const DENIED: &[libc::c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kcmp,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_setns,
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_personality,
];
/// How long the guest may believe what it knows of a name or attribute: others change files too.
const CACHE: Duration = Duration::from_secs(1);
/// Descriptors that are not the guest's: one per region of its memory (509 at most, in the backend library) and ours.
pub(crate) const OWN_FILES: u64 = 509 + 101;

/// `kata virtiofsd --fd N --root DIR [--log LEVEL]`, started by [`crate::FsDaemon`] only. Ends when the VM disconnects.
pub fn main(args: Vec<OsString>) -> ExitCode {
    // Executed through /proc/self/exe it would be listed as "exe".
    if let Err(e) = rustix::thread::set_name(c"virtiofsd") {
        eprintln!("virtiofsd: cannot set the name: {e}");
    }
    let result = Arguments::parse(args).and_then(|arguments| {
        start_log(arguments.log);
        run(arguments)
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("virtiofsd: {e}");
            ExitCode::FAILURE
        }
    }
}

/// The step that failed, and why.
#[derive(Debug)]
struct Failure(String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn cannot<E: fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Failure {
    move |e| Failure(format!("cannot {what}: {e}"))
}

struct Arguments {
    fd: RawFd,
    root: PathBuf,
    log: log::LevelFilter,
}

impl Arguments {
    fn parse(args: Vec<OsString>) -> Result<Arguments, Failure> {
        let (mut fd, mut root, mut log) = (None, None, log::LevelFilter::Warn);
        let mut args = args.into_iter();
        while let Some(name) = args.next() {
            let value = args.next().ok_or_else(|| Failure(format!("{} needs a value", name.to_string_lossy())))?;
            let wrong = || Failure(format!("{} {} is not understood", name.to_string_lossy(), value.to_string_lossy()));
            match name.to_str() {
                Some("--fd") => fd = Some(value.to_str().and_then(|v| v.parse().ok()).ok_or_else(wrong)?),
                Some("--root") => root = Some(PathBuf::from(&value)),
                Some("--log") => log = value.to_str().and_then(|v| v.parse().ok()).ok_or_else(wrong)?,
                _ => return Err(wrong()),
            }
        }
        match (fd, root) {
            (Some(fd), Some(root)) => Ok(Arguments { fd, root, log }),
            _ => Err(Failure("--fd and --root must be given; this mode is for the sandbox's daemon only".to_owned())),
        }
    }
}

/// The library's messages, to stderr, which the sandbox's daemon reads.
struct StderrLog;

impl log::Log for StderrLog {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        eprintln!("{}: {}", record.level(), record.args());
    }

    fn flush(&self) {}
}

fn start_log(level: log::LevelFilter) {
    // Only fails if there is a logger already; then that one will do.
    if log::set_logger(&StderrLog).is_ok() {
        log::set_max_level(level);
    }
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let listener: UnixListener = take_inherited_fd(arguments.fd).map_err(cannot("take the listening socket"))?.into();
    let proc_self_fd = change_root(&arguments.root)
        .map_err(|e| Failure(format!("cannot make {} the root directory: {e}", arguments.root.display())))?;
    drop_setup_capability().map_err(cannot("give up the capability for the setup"))?;
    // Before any thread exists, so that all have it.
    deny_syscalls(DENIED).map_err(cannot("filter the system calls"))?;
    let (open_files, _) = getrlimit(Resource::RLIMIT_NOFILE).map_err(cannot("read the limit of open files"))?;
    let guest_fd_limit = open_files.checked_sub(OWN_FILES).filter(|left| *left > 0).ok_or_else(|| {
        Failure(format!("the limit of {open_files} open files is too low; {OWN_FILES} and more are needed"))
    })?;

    let config = Config {
        entry_timeout: CACHE,
        attr_timeout: CACHE,
        cache_policy: CachePolicy::Auto,
        root_dir: "/".to_owned(),
        xattr: true,
        proc_sfd_rawfd: Some(File::from(proc_self_fd)),
        // Each container's root and each volume is a mount of its own: without this their inode numbers would mix.
        announce_submounts: true,
        inode_file_handles: InodeFileHandlesMode::Never,
        readdirplus: true,
        guest_fd_limit,
        ..Config::default()
    };
    let fs = PassthroughFs::new(config).map_err(cannot("open the share"))?;
    let backend = VhostUserFsBackendBuilder::default().build(fs).map_err(cannot("make the device"))?;
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let mut daemon = VhostUserDaemon::new("virtiofsd".to_owned(), Arc::new(backend), memory)
        .map_err(|e| Failure(format!("cannot make the daemon: {e:?}")))?;
    let mut listener = Listener::from(listener);
    daemon.start(&mut listener).map_err(|e| Failure(format!("no VM connected: {e:?}")))?;
    drop(listener);
    match daemon.wait() {
        Ok(()) | Err(BackendError::HandleRequest(VhostUserError::Disconnected)) => Ok(()),
        // A VMM that is killed may leave half a message.
        Err(BackendError::HandleRequest(VhostUserError::PartialMessage)) => Ok(()),
        Err(e) => Err(Failure(format!("the connection to the VM failed: {e:?}"))),
    }
}

/// Makes `root`, a mount point, the root of our mount namespace; nothing else of the host is left in it. Returns this
/// process's directory of descriptors, by which the library reopens files.
fn change_root(root: &Path) -> io::Result<OwnedFd> {
    // A mount of its own that is attached nowhere: from it, ".." leads nowhere.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let proc_self_fd = open_tree(CWD, "/proc/self/fd", flags)?;
    std::env::set_current_dir(root)?;
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    std::env::set_current_dir("/")?;
    // The guest is to write to what is mounted in the share, not to the share, which is the host's memory.
    let own =
        rustix::fs::open("/", rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty())?;
    set_mount_attrs(
        own.as_fd(),
        MountAttrs { read_only: true, nosuid: true, nodev: true, noexec: true, ..MountAttrs::default() },
        false,
    )?;
    Ok(proc_self_fd)
}

/// Keeps [`CAPABILITIES`] at most.
fn drop_setup_capability() -> capctl::Result<()> {
    ambient::clear()?;
    let mut state = CapState::get_current()?;
    let setup: Cap = Cap::SYS_ADMIN;
    state.permitted.drop(setup);
    state.effective.drop(setup);
    state.inheritable = capctl::caps::CapSet::empty();
    state.set_current()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Arguments, Failure> {
        Arguments::parse(args.iter().map(OsString::from).collect())
    }

    #[test]
    fn arguments() {
        let a = parse(&["--fd", "3", "--root", "/x", "--log", "debug"]).unwrap();
        assert_eq!((a.fd, a.root.as_path(), a.log), (3, Path::new("/x"), log::LevelFilter::Debug));
        for bad in [&[][..], &["--fd", "3"], &["--fd", "x", "--root", "/"], &["--what", "x"], &["--root"]] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_setup_capability_is_the_one_that_is_dropped() {
        assert_eq!(format!("CAP_{SETUP_CAPABILITY}").parse(), Ok(Cap::SYS_ADMIN));
        assert!(!CAPABILITIES.contains(&SETUP_CAPABILITY));
    }
}
