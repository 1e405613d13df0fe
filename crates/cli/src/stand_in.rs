//! Starting the process that stands for a container process, and waiting for it in the foreground.

use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

use crate::error::{CliError, io};
use crate::kata_shim::{ENV, ShimArgs};

/// A started shim, attached to its daemon. Killed on drop unless it is let go.
pub struct StandIn {
    pid: Option<Pid>,
}

/// What to start.
pub struct StandInSpec<'a> {
    /// The sandbox's directory.
    pub run_dir: &'a Path,
    /// The container.
    pub container: &'a str,
    /// The exec; empty for the first process.
    pub exec: &'a str,
    /// The guest gives the process a terminal.
    pub terminal: bool,
    /// Where the terminal's master goes; without one, a terminal process uses ours.
    pub console_socket: Option<PathBuf>,
    /// The terminal's first size: rows, columns.
    pub size: Option<[u32; 2]>,
    /// The pid that stands for the container's first process, when this is an exec.
    pub first: Option<i32>,
    /// The pid of a process in the sandbox's network namespace.
    pub network_of: i32,
    /// What `ps` on the host shows.
    pub argv: &'a [String],
}

impl StandIn {
    /// Starts it with our stdio and waits until it has attached.
    ///
    /// # Errors
    /// Its words.
    pub fn start(spec: &StandInSpec<'_>) -> Result<StandIn, CliError> {
        let exe = Path::new("/proc/self/exe");
        let (mut ready, tell) = pipe().map_err(io("make a pipe for", exe))?;
        let args = ShimArgs {
            run_dir: spec.run_dir.to_owned(),
            container: spec.container.to_owned(),
            exec: spec.exec.to_owned(),
            terminal: spec.terminal,
            console_socket: spec.console_socket.clone(),
            size: spec.size,
            ready_fd: tell.as_raw_fd(),
            first: spec.first,
            network_of: spec.network_of,
        };
        let args = serde_json::to_string(&args).map_err(|e| io("encode the arguments of", exe)(e.into()))?;
        let mut command = Command::new(exe);
        match spec.argv.split_first() {
            Some((name, rest)) => command.arg0(name).args(rest),
            None => command.arg0("kata-shim"),
        };
        command.env_clear().env(ENV, args);
        let mut helper = command.spawn().map_err(io("start", exe))?;
        drop(tell);
        let mut said = String::new();
        let read = ready.read_to_string(&mut said).map_err(io("read the answer of", exe));
        helper.wait().map_err(io("wait for", exe))?;
        read?;
        // "pid\n" by the helper, then "ok" or an error by the shim itself, our child as well.
        let (pid, answer) = said.split_once('\n').unwrap_or(("", &said));
        let this = StandIn { pid: pid.parse().ok().map(Pid::from_raw) };
        match answer {
            "ok" if this.pid.is_some() => Ok(this),
            "" => Err(CliError::Daemon("the process that stands for the container's ended at once".into())),
            error => Err(CliError::Daemon(error.to_owned())),
        }
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.pid.map_or(0, Pid::as_raw)
    }

    /// Leaves it running.
    pub fn let_go(mut self) {
        self.pid = None;
    }

    /// Waits for its end, passing on every signal that we get. Returns its exit code.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub async fn wait(mut self) -> Result<u8, CliError> {
        let Some(pid) = self.pid.take() else { return Ok(0) };
        let forwarder = forward_signals(pid)?;
        let ended = tokio::task::spawn_blocking(move || reap(pid)).await;
        forwarder.abort();
        let code = match ended {
            Ok(Ok(code)) => code,
            Ok(Err(e)) => return Err(io("wait for", format!("process {pid}"))(e.into())),
            Err(e) => return Err(CliError::Daemon(e.to_string())),
        };
        Ok(u8::try_from(code & 0xff).unwrap_or(u8::MAX))
    }
}

/// Waits for our child's end; its status as a shell says it.
fn reap(pid: Pid) -> nix::Result<i32> {
    loop {
        match waitpid(pid, None) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(err) => return Err(err),
        }
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        if let Some(pid) = self.pid.take() {
            let _ = kill(pid, Signal::SIGKILL);
            let _ = reap(pid);
        }
    }
}

fn forward_signals(to: Pid) -> Result<tokio::task::AbortHandle, CliError> {
    const FORWARDED: [Signal; 9] = [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGALRM,
        Signal::SIGTERM,
        Signal::SIGCONT,
        Signal::SIGWINCH,
    ];
    let mut tasks = Vec::new();
    for s in FORWARDED {
        let mut received =
            signal(SignalKind::from_raw(s as i32)).map_err(io("handle signals for", "/proc/self/exe"))?;
        tasks.push(async move {
            while received.recv().await.is_some() {
                // It may be gone already; then its wait ends.
                let _ = kill(to, s);
            }
        });
    }
    Ok(tokio::spawn(futures::future::join_all(tasks)).abort_handle())
}

/// A pipe whose writing end a child inherits.
fn pipe() -> std::io::Result<(std::fs::File, OwnedFd)> {
    let (r, w) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&w, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok((r.into(), w))
}
