//! The only way this project starts another program on the host.
//!
//! [`Spawn::start`] re-executes our own binary as `spawn` (a process with one thread and nothing inherited), hands it a
//! description and the descriptors over a socket, and that helper builds the jail (cgroups, limits, namespaces, root,
//! user, capabilities) and executes the program. An error on the way comes back with the name of the step. The program
//! is killed when [`Spawned`] is dropped and when the thread that started it ends (`PR_SET_PDEATHSIG`): start children
//! from a thread that lives as long as the process, such as the one of a current-thread runtime.

mod helper;
mod jail_root;
mod process;
mod wire;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

use thiserror::Error;

pub use process::{Spawned, kill_recorded, start_time};
pub use wire::{Bind, RLimit, Root};

use process::Child;
use wire::{FromHelper, Plan};

/// The word by which our binary becomes the helper.
pub const HELPER_MODE: &str = "spawn";

static SELF_EXE: OnceLock<PathBuf> = OnceLock::new();

/// Names the program that understands [`HELPER_MODE`] and the other modes; for tests, whose own executable is not the
/// host binary. The first call counts. Without one it is `$KATA_SELF_EXE`, else this very executable.
pub fn set_self_exe(path: PathBuf) {
    // A second call is ignored: the first may be in use already.
    let _ = SELF_EXE.set(path);
}

/// The program that understands our modes.
pub fn self_exe() -> &'static Path {
    SELF_EXE.get_or_init(|| match std::env::var_os("KATA_SELF_EXE") {
        Some(path) if !path.is_empty() => path.into(),
        _ => PathBuf::from("/proc/self/exe"),
    })
}

/// The entry of the helper. `args` (without program name and mode): none for a helper that waits for its plan, or
/// `probe-kvm` for the accelerator probe.
pub fn helper_main(args: Vec<OsString>) -> ExitCode {
    if args.first().is_some_and(|a| a == crate::probe::PROBE_WORD) {
        return crate::probe::probe_main();
    }
    helper::main()
}

/// Why a program did not start.
#[derive(Debug, Error)]
#[error("cannot {step} {what}")]
pub struct SpawnError {
    /// What was being done: "join cgroup", "execute".
    pub step: String,
    /// With what: a path, a number.
    pub what: String,
    /// Why not.
    #[source]
    pub source: io::Error,
}

impl SpawnError {
    fn new(step: &str, what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        SpawnError { step: step.to_owned(), what: what.into(), source: source.into() }
    }
}

/// A program to start, and its jail. Without further calls: our namespaces, our user, all capabilities; always its own
/// session, no_new_privs, stdin and stdout /dev/null, stderr kept for diagnosis, no descriptor of ours.
#[derive(Debug)]
pub struct Spawn {
    plan: Plan,
    fds: Vec<(RawFd, OwnedFd)>,
}

impl Spawn {
    /// The program; an absolute path, seen from inside the new root if there is one.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        let mut plan = Plan { program: program.into(), no_new_privs: true, ..Plan::default() };
        plan.args.push(plan.program.to_string_lossy().into_owned());
        Spawn { plan, fds: Vec::new() }
    }

    /// The name it is called by, if not its path.
    #[must_use]
    pub fn arg0(mut self, name: &str) -> Self {
        self.plan.args[0] = name.to_owned();
        self
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.plan.args.push(arg.into());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.plan.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// A variable of the environment, which is otherwise empty.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.plan.env.push(format!("{key}={value}"));
        self
    }

    /// Hands over a descriptor under `number` (3 or more, each once; 250 descriptors at most).
    #[must_use]
    pub fn fd(mut self, number: RawFd, fd: OwnedFd) -> Self {
        self.fds.push((number, fd));
        self
    }

    /// A mount namespace of its own, a slave of ours: what we mount later on shared mounts appears in it too.
    #[must_use]
    pub fn mount_ns(mut self) -> Self {
        self.plan.mount_ns = true;
        self
    }

    /// A pid namespace of its own, in which it is the first process.
    #[must_use]
    pub fn pid_ns(mut self) -> Self {
        self.plan.pid_ns = true;
        self
    }

    /// An empty network namespace of its own.
    #[must_use]
    pub fn net_ns(mut self) -> Self {
        self.plan.net_ns = true;
        self
    }

    /// IPC and UTS namespaces of its own.
    #[must_use]
    pub fn ipc_ns(mut self) -> Self {
        self.plan.ipc_ns = true;
        self
    }

    /// A root directory with nothing but this. Implies a mount namespace.
    #[must_use]
    pub fn root(mut self, root: Root) -> Self {
        self.plan.mount_ns = true;
        self.plan.root = Some(root);
        self
    }

    /// Directories of cgroups to join before anything else, so that all its memory counts there.
    #[must_use]
    pub fn cgroups(mut self, dirs: &[PathBuf]) -> Self {
        self.plan.cgroups.extend(dirs.iter().cloned());
        self
    }

    /// User and group, without supplementary groups. Capabilities are lost unless [`Spawn::capabilities`] keeps some.
    #[must_use]
    pub fn user(mut self, uid: u32, gid: u32) -> Self {
        self.plan.user = Some((uid, gid));
        self
    }

    /// The capabilities it may ever have (names as in "CHOWN"); those that we do not have ourselves are left out.
    #[must_use]
    pub fn capabilities(mut self, keep: &[&str]) -> Self {
        self.plan.capabilities = Some(keep.iter().map(|&s| s.to_owned()).collect());
        self
    }

    /// Sets a limit; one that may not be raised as far is raised as far as it may be.
    #[must_use]
    pub fn rlimit(mut self, limit: RLimit) -> Self {
        self.plan.rlimits.push(limit);
        self
    }

    /// Starts it. Must be called within a tokio runtime with IO; see the module's text about the calling thread.
    ///
    /// # Errors
    /// [`SpawnError`] with the step that failed; nothing is left then.
    pub async fn start(mut self, deadline: Instant) -> Result<Spawned, SpawnError> {
        let late = |_| SpawnError::new("start", self.plan.program.display().to_string(), io::ErrorKind::TimedOut);
        let program = self.plan.program.clone();
        self.plan.parent = std::process::id();
        let fds = std::mem::take(&mut self.fds);
        self.plan.fds = fds.iter().map(|(number, _)| *number).collect();
        match tokio::time::timeout_at(deadline.into(), hand_over(&self.plan, fds)).await {
            Ok(result) => result,
            Err(elapsed) => {
                tracing::warn!(program = %program.display(), "the spawn helper did not finish in time");
                Err(late(elapsed))
            }
        }
    }
}

/// Starts the helper and sees the plan through.
async fn hand_over(plan: &Plan, fds: Vec<(RawFd, OwnedFd)>) -> Result<Spawned, SpawnError> {
    let (ours, theirs) = wire::pair().map_err(|e| SpawnError::new("create", "the helper's socket", e))?;
    let (stderr, stderr_writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|e| SpawnError::new("create", "the pipe for stderr", e))?;
    let exe = self_exe();
    let child = Command::new(exe)
        .arg0("kata")
        .arg(HELPER_MODE)
        .env_clear()
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::from(stderr_writer))
        .spawn()
        .map_err(|e| SpawnError::new("execute the helper", exe.display().to_string(), e))?;
    // From here on the helper dies with this value.
    let helper = Child::adopt(child.id() as i32).map_err(|e| SpawnError::new("watch", "the helper", e))?;
    let socket = process::watched(ours).map_err(|e| SpawnError::new("watch", "the helper's socket", e))?;
    wire::send_plan(socket.get_ref().as_fd(), plan, &fds)
        .map_err(|e| SpawnError::new("describe to the helper", plan.program.display().to_string(), e))?;
    drop(fds);

    let mut program = None;
    let mut ready = false;
    loop {
        match wire::receive(&socket).await {
            Ok(FromHelper::Sibling { pid }) => {
                // Our child; it waits for our word, and gives up if our end of the socket closes.
                program = Some(Child::adopt(pid).map_err(|e| SpawnError::new("watch", "the program", e))?);
            }
            Ok(FromHelper::Ready) => {
                ready = true;
                wire::go(socket.get_ref().as_fd()).map_err(|e| SpawnError::new("start", "the program", e))?;
            }
            Ok(FromHelper::Failed { step, what, errno }) => {
                return Err(SpawnError { step, what, source: io::Error::from_raw_os_error(errno) });
            }
            Ok(FromHelper::Closed) => break,
            Err(e) => return Err(SpawnError::new("hear from", "the helper", e)),
        }
    }
    // The socket closes when the program is executed, or when the helper dies.
    if !ready {
        return Err(SpawnError::new("set up", last_words(&stderr), io::ErrorKind::UnexpectedEof));
    }
    // With a sibling the helper has nothing left to do; dropping reaps it.
    Spawned::new(program.unwrap_or(helper), stderr).map_err(|e| SpawnError::new("watch", "the program", e))
}

/// What a helper that died wrote, for the message about it.
fn last_words(stderr: &OwnedFd) -> String {
    let mut bytes = [0; 2048];
    let read = rustix::io::ioctl_fionbio(stderr, true).and_then(|()| rustix::io::read(stderr, &mut bytes));
    match read {
        Ok(n) if n > 0 => format!("the jail: {}", String::from_utf8_lossy(&bytes[..n]).trim()),
        _ => "the jail".to_owned(),
    }
}
