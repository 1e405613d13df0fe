//! One process of a container that the host asked for: its stdio, its end.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kata_proto::channel::{STDIO_STREAMS, Stdio};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use crate::attach::Ends;
use crate::engine::{self, Child, ProcessIo};
use crate::failure::Failure;
use crate::fdio::{FdIo, Kind};
use crate::pump;
use crate::reaper::{self, Exit};

/// Longest answer to ReadStdout and ReadStderr, well below ttrpc's limit of 4 MiB for a message.
const MAX_READ: usize = 1 << 20;

/// What the host wants to do with a process's stdio: the `stdio_streams` field of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Polling by ReadStdout, ReadStderr and WriteStdin, as upstream's runtimes do.
    Calls,
    /// Streams of their own for the ends whose bits are set; the others are /dev/null.
    Streams(u32),
}

impl Wanted {
    /// Reads the field.
    ///
    /// # Errors
    /// [`Failure::Invalid`] for bits that mean nothing.
    pub fn parse(field: u32) -> Result<Self, Failure> {
        let bits = Stdio::In.bit() | Stdio::Out.bit() | Stdio::Err.bit();
        match field {
            0 => Ok(Wanted::Calls),
            f if f & STDIO_STREAMS != 0 && f & !(STDIO_STREAMS | bits) == 0 => Ok(Wanted::Streams(f & bits)),
            f => Err(Failure::Invalid(format!("stdio_streams {f:#x} has bits that are not known"))),
        }
    }

    /// Whether a stream will come for this end.
    pub fn stream(self, which: Stdio) -> bool {
        matches!(self, Wanted::Streams(bits) if bits & which.bit() != 0)
    }
}

/// The agent's side of the pipes that a new process gets.
#[derive(Default)]
pub struct Pipes {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

/// Makes a process's stdio without a terminal: both sides. `pipe_size` in bytes, if not the kernel's 64 KiB.
///
/// # Errors
/// [`Failure::Internal`] when descriptors run out.
pub fn pipes(wanted: Wanted, pipe_size: Option<usize>) -> Result<(ProcessIo, Pipes), Failure> {
    let mut mine = Pipes::default();
    let mut end = |which: Stdio| -> std::io::Result<OwnedFd> {
        if wanted != Wanted::Calls && !wanted.stream(which) {
            use rustix::fs::{Mode, OFlags, open};
            return Ok(open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?);
        }
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        if let Some(size) = pipe_size
            && let Err(e) = rustix::pipe::fcntl_setpipe_size(&write, size)
        {
            log::warn!("a pipe keeps its size, {size} bytes were refused: {e}");
        }
        let (theirs, ours, slot) = match which {
            Stdio::In => (read, write, &mut mine.stdin),
            Stdio::Out => (write, read, &mut mine.stdout),
            Stdio::Err => (write, read, &mut mine.stderr),
        };
        *slot = Some(ours);
        Ok(theirs)
    };
    let mut all = || Ok((end(Stdio::In)?, end(Stdio::Out)?, end(Stdio::Err)?));
    let (stdin, stdout, stderr) = all().map_err(|e| Failure::io("cannot make a process's stdio", &e))?;
    Ok((engine::fds(stdin, stdout, stderr), mine))
}

/// A process that was started, and perhaps has ended.
pub struct Process {
    /// Its pid in the agent's namespace; another process may have it once this one has ended.
    pub pid: i32,
    pidfd: OwnedFd,
    exit: Exit,
    terminal: Option<Arc<FdIo>>,
    /// For calls: the end that WriteStdin writes to.
    stdin: Mutex<Option<Arc<FdIo>>>,
    stdout: Option<Arc<FdIo>>,
    stderr: Option<Arc<FdIo>>,
    close_stdin: Arc<Notify>,
    /// One for each output that is carried by a stream.
    drained: Vec<watch::Receiver<bool>>,
    pumps: Vec<AbortHandle>,
}

impl Drop for Process {
    fn drop(&mut self) {
        for pump in &self.pumps {
            pump.abort();
        }
    }
}

impl Process {
    /// Takes up a process that the engine has started. Call within the runtime.
    ///
    /// # Errors
    /// [`Failure::Internal`] when its descriptors cannot be watched.
    pub fn new(child: Child, exit: Exit, wanted: Wanted, mine: Pipes, ends: Ends) -> Result<Self, Failure> {
        let io = |e: std::io::Error| Failure::io("cannot watch a process's stdio", &e);
        let watched =
            |fd: Option<OwnedFd>, kind| fd.map(|fd| FdIo::new(fd, kind).map(Arc::new)).transpose().map_err(io);
        let terminal = watched(child.terminal, Kind::Terminal)?;
        let (stdin, stdout, stderr) = match &terminal {
            Some(t) => (Some(t.clone()), Some(t.clone()), None),
            None => (
                watched(mine.stdin, Kind::Plain)?,
                watched(mine.stdout, Kind::Plain)?,
                watched(mine.stderr, Kind::Plain)?,
            ),
        };
        let mut process = Process {
            pid: child.pid,
            pidfd: child.pidfd,
            exit,
            terminal,
            stdin: Mutex::new(None),
            stdout: None,
            stderr: None,
            close_stdin: Arc::default(),
            drained: Vec::new(),
            pumps: Vec::new(),
        };
        if wanted == Wanted::Calls {
            process.stdin = Mutex::new(stdin);
            process.stdout = stdout;
            process.stderr = stderr;
            return Ok(process);
        }
        if let (Some(fd), Some(arrivals)) = (stdin, ends.stdin) {
            let pump = pump::input(fd, arrivals, process.close_stdin.clone());
            process.pumps.push(tokio::spawn(pump).abort_handle());
        }
        for (fd, arrivals) in [(stdout, ends.stdout), (stderr, ends.stderr)] {
            if let (Some(fd), Some(arrivals)) = (fd, arrivals) {
                let (tx, rx) = watch::channel(false);
                process.drained.push(rx);
                process.pumps.push(tokio::spawn(pump::output(fd, arrivals, tx)).abort_handle());
            }
        }
        Ok(process)
    }

    /// Its exit status, or 128 plus the signal that killed it; waits for it.
    pub async fn ended(&self) -> i32 {
        reaper::ended(&self.exit).await
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Waits until the host has been given all of its output.
    pub async fn drained(&self) {
        for drained in &self.drained {
            // A pump that is gone will hand over nothing more.
            let _ = drained.clone().wait_for(|d| *d).await;
        }
    }

    /// Sends a signal; 0 only asks whether the process is there.
    ///
    /// # Errors
    /// [`std::io::Error`] with ESRCH when it has ended, EINVAL when there is no such signal.
    pub fn signal(&self, number: i32) -> std::io::Result<()> {
        if self.has_ended() {
            return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
        }
        kata_sys::guest::signal_pidfd(&self.pidfd, number)
    }

    /// Tells the terminal's size, in characters.
    ///
    /// # Errors
    /// [`Failure::State`] when the process has no terminal.
    pub fn resize(&self, rows: u32, columns: u32) -> Result<(), Failure> {
        let Some(terminal) = &self.terminal else {
            return Err(Failure::State("the process has no terminal".into()));
        };
        let clamp = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        let size = rustix::termios::Winsize { ws_row: clamp(rows), ws_col: clamp(columns), ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(terminal.as_fd(), size)
            .map_err(|e| Failure::io("cannot set the terminal's size", &e.into()))
    }

    fn stdin(&self) -> MutexGuard<'_, Option<Arc<FdIo>>> {
        self.stdin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes all of `data` to its stdin; for a host without streams.
    ///
    /// # Errors
    /// [`Failure::State`] when it is closed or carried by a stream.
    pub async fn write_stdin(&self, data: &[u8]) -> Result<(), Failure> {
        let Some(fd) = self.stdin().clone() else {
            return Err(Failure::State("the process's stdin is closed, or carried by a stream".into()));
        };
        fd.write_all(data).await.map_err(|e| Failure::io("cannot write to the process's stdin", &e))
    }

    /// Closes its stdin. A terminal has no end of input to send and stays as it is.
    pub fn close_stdin(&self) {
        if self.terminal.is_none() {
            self.stdin().take();
            self.close_stdin.notify_one();
        }
    }

    /// Reads from its stdout or stderr, at most `len` bytes; for a host without streams.
    ///
    /// # Errors
    /// [`Failure::Eof`] at the end, [`Failure::State`] when a stream carries it.
    pub async fn read_output(&self, which: Stdio, len: u32) -> Result<Vec<u8>, Failure> {
        let fd = if which == Stdio::Err { &self.stderr } else { &self.stdout };
        let Some(fd) = fd else {
            // A terminal has one output only; upstream's runtimes ask for both.
            return Err(if self.terminal.is_some() {
                Failure::Eof
            } else {
                Failure::State("the process's output is carried by a stream".into())
            });
        };
        let mut data = vec![0; (len as usize).clamp(1, MAX_READ)];
        match fd.read(&mut data).await {
            Ok(0) => Err(Failure::Eof),
            Ok(n) => {
                data.truncate(n);
                Ok(data)
            }
            Err(e) => Err(Failure::io("cannot read the process's output", &e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_is_understood_or_refused() {
        assert_eq!(Wanted::parse(0).unwrap(), Wanted::Calls);
        let some = Wanted::parse(0x80 | 0b101).unwrap();
        assert!(some.stream(Stdio::In) && !some.stream(Stdio::Out) && some.stream(Stdio::Err));
        assert_eq!(Wanted::parse(0x80).unwrap(), Wanted::Streams(0));
        assert!(Wanted::parse(1).is_err() && Wanted::parse(0x88).is_err());
    }

    #[test]
    fn ends_that_nobody_wants_are_dev_null() {
        let (_, mine) = pipes(Wanted::Streams(Stdio::Out.bit()), Some(4096)).unwrap();
        assert!(mine.stdin.is_none() && mine.stdout.is_some() && mine.stderr.is_none());
        let (_, mine) = pipes(Wanted::Calls, None).unwrap();
        assert!(mine.stdin.is_some() && mine.stdout.is_some() && mine.stderr.is_some());
    }
}
