//! `kata-shim`: the process of the host that stands for a container process. Its pid goes into `--pid-file`, it lends
//! its stdio (or a new terminal, whose master it sends to `--console-socket`), forwards signals and the terminal's
//! size, sits in the container's host cgroup, shows the guest's command as its own, and exits with its status.
//!
//! No threads, no event loop library: it waits in poll(2), one a container process, so its size counts.

use std::ffi::OsString;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use kata_sandbox::{HostCgroup, StateFile, attach_socket};
use kata_shim::{AttachHello, AttachReply, FromDaemon, ToDaemon};
use kata_sys::process::{Clone, clone_sibling};
use kata_types::EXIT_LOST;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::termios::Winsize;
use serde::{Deserialize, Serialize};

/// How long the shims of execs may take to tell their exit, once the first process has ended.
const OTHERS_FINISH_WITHIN: Duration = Duration::from_millis(300);

/// The environment variable that makes the program this one; its argv is the guest's.
pub const ENV: &str = "KATA_SHIM_ARGS";

/// What it is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ShimArgs {
    /// The sandbox's directory.
    pub run_dir: PathBuf,
    /// The container.
    pub container: String,
    /// The exec; empty for the first process.
    pub exec: String,
    /// The guest gives the process a terminal.
    pub terminal: bool,
    /// Where a new terminal's master goes; without one, a terminal process uses our own.
    pub console_socket: Option<PathBuf>,
    /// The terminal's first size: rows, columns.
    pub size: Option<[u32; 2]>,
    /// Where the helper writes our pid, and we "ok" or an error once attached.
    pub ready_fd: RawFd,
    /// The pid of the container's first shim, whose namespaces an exec's shim joins.
    pub first: Option<i32>,
    /// The pid of a process in the sandbox's network namespace.
    pub network_of: i32,
}

/// Runs it: reads [`ENV`]. `args` is what `ps` shows and means nothing.
pub fn main(_args: Vec<OsString>) -> ExitCode {
    let args: ShimArgs = match std::env::var(ENV).ok().and_then(|text| serde_json::from_str(&text).ok()) {
        Some(args) => args,
        None => {
            eprintln!("kata-shim: is started by kata-runtime, not by hand");
            return ExitCode::FAILURE;
        }
    };
    let mut ready = match inherit(args.ready_fd) {
        Ok(ready) => std::fs::File::from(ready),
        Err(err) => {
            eprintln!("kata-shim: {err}");
            return ExitCode::FAILURE;
        }
    };
    match enter_namespaces(&args, &mut ready) {
        Ok(Clone::Child) => {}
        Ok(Clone::Parent(_)) => return ExitCode::SUCCESS,
        Err(text) => {
            drop(write!(ready, "\n{text}"));
            return ExitCode::FAILURE;
        }
    }
    let (daemon, terminal, signals) = match attach(&args) {
        Ok(attached) => attached,
        Err(text) => {
            // The starter reads it; without one there is nobody to tell.
            drop(ready.write_all(text.as_bytes()));
            return ExitCode::FAILURE;
        }
    };
    drop(ready.write_all(b"ok"));
    drop(ready);
    let status = stand(daemon, terminal.as_ref(), &signals);
    drop(terminal);
    if args.first.is_none() {
        let_others_finish();
    }
    ExitCode::from(u8::try_from(status & 0xff).unwrap_or(u8::MAX))
}

/// Moves the descriptor that we were told of to 3 and closes all others beyond stdio: whatever our starter's starter
/// left open must not be held open by us for the container's life.
fn inherit(fd: RawFd) -> std::io::Result<OwnedFd> {
    let three = if fd == 3 { kata_sys::fds::adopt(3)? } else { kata_sys::fds::move_to(fd, 3)? };
    kata_sys::fds::close_from(4)?;
    Ok(three)
}

/// A container's shims have a pid namespace of their own, with a /proc that shows only them: whoever looks at a
/// container through its pid's namespaces (`podman top`) sees its processes, and not the host's. Returns twice, in the
/// helper and in the shim, which is its sibling and so the child of whoever started it.
fn enter_namespaces(args: &ShimArgs, ready: &mut std::fs::File) -> Result<Clone, String> {
    let fail = |what: &str, e: &dyn std::fmt::Display| format!("the shim's namespaces: {what}: {e}");
    // Engines look for the container's network at our pid, from the moment they know it.
    let path = format!("/proc/{}/ns/net", args.network_of);
    let network = std::fs::File::open(&path).map_err(|e| fail(&path, &e))?;
    setns(&network, CloneFlags::CLONE_NEWNET).map_err(|e| fail("join net", &e))?;
    let joined = match args.first {
        Some(pid) => {
            // Both are opened through the host's /proc, before its place is taken.
            let open = |name: &str| {
                let path = format!("/proc/{pid}/ns/{name}");
                std::fs::File::open(&path).map_err(|e| fail(&path, &e))
            };
            let (pid_ns, mount_ns) = (open("pid")?, open("mnt")?);
            setns(&pid_ns, CloneFlags::CLONE_NEWPID).map_err(|e| fail("join pid", &e))?;
            Some(mount_ns)
        }
        None => {
            unshare(CloneFlags::CLONE_NEWNS).map_err(|e| fail("unshare", &e))?;
            let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
            mount(None::<&str>, "/", None::<&str>, slave, None::<&str>).map_err(|e| fail("make a slave of /", &e))?;
            None
        }
    };
    let (go, told) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|e| fail("pipe", &e))?;
    match clone_sibling(args.first.is_none()).map_err(|e| fail("clone", &e))? {
        Clone::Parent(pid) => {
            writeln!(ready, "{pid}").map_err(|e| fail("tell the pid", &e))?;
            drop(told);
            Ok(Clone::Parent(pid))
        }
        Clone::Child => {
            drop(told);
            // Ends when the helper has told our pid: only then may anything else be said.
            drop(std::fs::File::from(go).read(&mut [0]));
            if let Some(mount_ns) = joined {
                setns(&mount_ns, CloneFlags::CLONE_NEWNS).map_err(|e| fail("join mnt", &e))?;
            } else {
                let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
                mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>).map_err(|e| fail("mount /proc", &e))?;
            }
            Ok(Clone::Child)
        }
    }
}

/// The shims of execs have ended with us, or are about to: the first process of a pid namespace takes all others along,
/// also before they have told their exit.
fn let_others_finish() {
    let deadline = Instant::now() + OTHERS_FINISH_WITHIN;
    let me = std::process::id();
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|pid| *pid != me);
    for pid in pids.filter_map(|pid: u32| rustix::process::Pid::from_raw(pid.cast_signed())) {
        let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else { continue };
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        // One that does not end in time is killed with our end, as it was before.
        let _ = poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO));
    }
}

/// A terminal that is raw while we live.
struct Terminal {
    fd: OwnedFd,
    /// What it was before, if it is not ours alone.
    before: Option<Termios>,
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // The terminal may be gone.
            let _ = tcsetattr(&self.fd, SetArg::TCSADRAIN, before);
        }
    }
}

fn attach(args: &ShimArgs) -> Result<(UnixStream, Option<Terminal>, SignalFd), String> {
    let say = |what: &'static str| move |e: std::io::Error| format!("{what}: {e}");
    let mut all = SigSet::all();
    for fatal in [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGABRT] {
        all.remove(fatal);
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all), None).map_err(|e| format!("sigprocmask: {e}"))?;
    let signals = SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(|e| format!("signalfd: {e}"))?;
    // A session of our own: a terminal's signals reach our starter, who passes them on once; its hangup is not the
    // container's.
    let _ = nix::unistd::setsid();
    name_ourselves();
    join_cgroup(&args.run_dir)?;

    let terminal = match (&args.console_socket, args.terminal) {
        (Some(socket), true) => Some(new_terminal(socket, args.size)?),
        (None, true) => Some(own_terminal()?),
        (Some(_), false) => {
            return Err("--console-socket is only for a process with a terminal (process.terminal)".into());
        }
        (None, false) => None,
    };
    let mut hello = AttachHello {
        container: args.container.clone(),
        exec: args.exec.clone(),
        terminal: args.terminal,
        fds: Vec::new(),
    };
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let fds: Vec<BorrowedFd<'_>> = match &terminal {
        Some(t) => {
            hello.fds = vec!["tty".into()];
            vec![t.fd.as_fd()]
        }
        None => {
            hello.fds = ["in", "out", "err"].map(str::to_owned).to_vec();
            vec![stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]
        }
    };
    let mut daemon =
        UnixStream::connect(attach_socket(&args.run_dir)).map_err(say("the sandbox's daemon cannot be reached"))?;
    let mut line = serde_json::to_vec(&hello).map_err(|e| e.to_string())?;
    line.push(b'\n');
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err("too many descriptors".into());
    }
    let sent = sendmsg(&daemon, &[IoSlice::new(&line)], &mut control, SendFlags::empty())
        .map_err(|e| say("the sandbox's daemon cannot be told")(e.into()))?;
    if sent < line.len() {
        daemon.write_all(&line[sent..]).map_err(say("the sandbox's daemon cannot be told"))?;
    }
    let reply: AttachReply =
        serde_json::from_str(&read_line(&mut daemon).map_err(say("the sandbox's daemon does not answer"))?)
            .map_err(|e| format!("the sandbox's daemon does not answer: {e}"))?;
    match reply.error {
        Some(error) => Err(error),
        None => {
            if terminal.is_none() {
                drop_stdio();
            }
            Ok((daemon, terminal, signals))
        }
    }
}

/// The daemon has the container's stdio now. Our copies would keep pipes open whose end somebody waits for; stderr
/// stays, for what must be said when the sandbox is lost.
fn drop_stdio() {
    if let Ok(null) = std::fs::File::options().read(true).write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdin(&null);
        let _ = nix::unistd::dup2_stdout(&null);
    }
}

/// What /proc/self/comm shows: the guest's program.
fn name_ourselves() {
    let name = std::env::args().next().unwrap_or_default();
    let name = name.rsplit('/').next().unwrap_or_default();
    if let Ok(name) = std::ffi::CString::new(name) {
        let _ = nix::sys::prctl::set_name(&name);
    }
}

fn join_cgroup(run_dir: &Path) -> Result<(), String> {
    let state = StateFile::load(run_dir).map_err(|e| e.to_string())?;
    let dirs = state.map(|s| s.cgroups).unwrap_or_default();
    // 0: the writer itself (cgroup-v2.rst), whatever its pid is outside.
    HostCgroup { dirs, ..HostCgroup::default() }.join(0).map_err(|e| e.to_string())
}

/// A new terminal in a session of our own; its master goes to the console socket (as in runc's terminals.md).
fn new_terminal(socket: &Path, size: Option<[u32; 2]>) -> Result<Terminal, String> {
    let fail = |what: &str, e: &dyn std::fmt::Display| format!("{what}: {e}");
    let pty = nix::pty::openpty(None, None).map_err(|e| fail("a terminal cannot be made", &e))?;
    if let Some([rows, columns]) = size {
        let size = Winsize {
            ws_row: u16::try_from(rows).unwrap_or(u16::MAX),
            ws_col: u16::try_from(columns).unwrap_or(u16::MAX),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&pty.master, size).map_err(|e| fail("the terminal's size", &e))?;
    }
    make_raw(&pty.slave)?;
    let console =
        UnixStream::connect(socket).map_err(|e| fail(&format!("the console socket {}", socket.display()), &e))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [pty.master.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(&console, &[IoSlice::new(b"/dev/ptmx")], &mut control, SendFlags::empty())
        .map_err(|e| fail(&format!("the console socket {}", socket.display()), &e))?;
    // The kernel tells a change of size to the session whose controlling terminal it is.
    rustix::process::ioctl_tiocsctty(&pty.slave).map_err(|e| fail("the terminal cannot be ours", &e))?;
    drop_stdio();
    // Whoever started us may wait for the end of its pipes; what must be said is for the one who reads the terminal.
    nix::unistd::dup2_stderr(&pty.slave).map_err(|e| fail("the terminal cannot be our stderr", &e))?;
    Ok(Terminal { fd: pty.slave, before: None })
}

/// The terminal that is our stdin.
fn own_terminal() -> Result<Terminal, String> {
    let fd = std::io::stdin().as_fd().try_clone_to_owned().map_err(|e| e.to_string())?;
    let before = make_raw(&fd).map_err(|e| {
        format!("process.terminal is set, but stdin is no terminal ({e}); give --console-socket, or run in a terminal")
    })?;
    Ok(Terminal { fd, before: Some(before) })
}

/// Raw: the guest's terminal does the line discipline. Returns what it was.
fn make_raw(fd: impl AsFd) -> Result<Termios, String> {
    let before = tcgetattr(&fd).map_err(|e| e.to_string())?;
    let mut raw = before.clone();
    cfmakeraw(&mut raw);
    tcsetattr(&fd, SetArg::TCSANOW, &raw).map_err(|e| e.to_string())?;
    Ok(before)
}

fn read_line(from: &mut UnixStream) -> std::io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while from.read(&mut byte)? == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

/// Until the process ends. Returns the status.
fn stand(mut daemon: UnixStream, terminal: Option<&Terminal>, signals: &SignalFd) -> i32 {
    if let Some(t) = terminal {
        tell_size(&mut daemon, t);
    }
    loop {
        let mut fds = [PollFd::new(daemon.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(err) => {
                eprintln!("kata-shim: {err}");
                return EXIT_LOST;
            }
        }
        let (from_daemon, from_signals) = (fds[0].any().unwrap_or(false), fds[1].any().unwrap_or(false));
        if from_signals {
            while let Ok(Some(info)) = signals.read_signal() {
                pass_on(&mut daemon, info.ssi_signo, terminal);
            }
        }
        if from_daemon {
            let line = read_line(&mut daemon).unwrap_or_default();
            return match serde_json::from_str(&line) {
                Ok(FromDaemon::Exit { status, reason }) => {
                    if let Some(reason) = reason {
                        eprintln!("kata: the container process was lost: {reason}");
                    }
                    status
                }
                Err(_) => {
                    eprintln!("kata: the container process was lost: the sandbox's daemon is gone");
                    EXIT_LOST
                }
            };
        }
    }
}

fn pass_on(daemon: &mut UnixStream, signal: u32, terminal: Option<&Terminal>) {
    match Signal::try_from(signal.cast_signed()) {
        Ok(Signal::SIGCHLD | Signal::SIGPIPE | Signal::SIGTTIN | Signal::SIGTTOU) => {}
        Ok(Signal::SIGWINCH) => {
            if let Some(t) = terminal {
                tell_size(daemon, t);
            }
        }
        _ => tell(daemon, &ToDaemon::Signal(signal)),
    }
}

fn tell_size(daemon: &mut UnixStream, t: &Terminal) {
    if let Ok(size) = rustix::termios::tcgetwinsize(&t.fd)
        && (size.ws_row, size.ws_col) != (0, 0)
    {
        tell(daemon, &ToDaemon::Resize([size.ws_row.into(), size.ws_col.into()]));
    }
}

/// A daemon that does not listen is seen by its closed connection.
fn tell(daemon: &mut UnixStream, message: &ToDaemon) {
    if let Ok(mut line) = serde_json::to_vec(message) {
        line.push(b'\n');
        drop(daemon.write_all(&line));
    }
}
