//! Terminals, from the side of whoever sits at them.

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::termios::Winsize;

use crate::wait;

/// The listening end of a `--console-socket`.
pub struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Listens at this path.
    ///
    /// # Panics
    /// When it cannot.
    pub fn bind(path: &Path) -> ConsoleSocket {
        let listener = UnixListener::bind(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        listener.set_nonblocking(true).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        ConsoleSocket { listener, path: path.to_owned() }
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The terminal's master, which the runtime has sent.
    ///
    /// # Panics
    /// When nothing came in time, or something else did.
    pub fn master(self, within: Duration) -> Terminal {
        let stream = wait::until("connection to the console socket", within, || self.listener.accept().ok()).0;
        stream.set_nonblocking(false).expect("a fresh socket");
        stream.set_read_timeout(Some(within)).expect("a fresh socket");
        Terminal::new(receive(&stream))
    }
}

fn receive(stream: &UnixStream) -> OwnedFd {
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(stream, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)
        .unwrap_or_else(|e| panic!("the console socket: {e}"));
    let fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    fds.flatten().next().expect("a descriptor over the console socket")
}

/// The master of a pseudo-terminal, and what has been read from it.
pub struct Terminal {
    master: File,
    seen: Vec<u8>,
}

impl Terminal {
    fn new(master: OwnedFd) -> Terminal {
        Terminal { master: master.into(), seen: Vec::new() }
    }

    /// A new one of this size, and its other end, for a command's stdio.
    ///
    /// # Panics
    /// When the host has none.
    pub fn open(rows: u16, columns: u16) -> (Terminal, OwnedFd) {
        let pty = nix::pty::openpty(None, None).unwrap_or_else(|e| panic!("no pseudo-terminal: {e}"));
        let terminal = Terminal::new(pty.master);
        terminal.resize(rows, columns);
        (terminal, pty.slave)
    }

    /// Changes its size; the foreground process group gets SIGWINCH.
    ///
    /// # Panics
    /// When it cannot.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&self.master, size).unwrap_or_else(|e| panic!("the terminal's size: {e}"));
    }

    /// Types this.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap_or_else(|e| panic!("typing {text:?}: {e}"));
    }

    /// Waits until this was shown, after whatever the last call of this waited for.
    ///
    /// # Panics
    /// When it was not in time; tells what was.
    pub fn shows(&mut self, text: &str, within: Duration) {
        let end = Instant::now() + within;
        loop {
            if let Some(at) = self.seen.windows(text.len()).position(|w| w == text.as_bytes()) {
                self.seen.drain(..at + text.len());
                return;
            }
            assert!(
                self.read(end),
                "the terminal does not show {text:?}; it shows {:?}",
                String::from_utf8_lossy(&self.seen)
            );
        }
    }

    /// Waits until the other end is closed, and returns what was shown until then.
    ///
    /// # Panics
    /// When it stays open.
    pub fn closes(&mut self, within: Duration) -> String {
        let end = Instant::now() + within;
        while self.read(end) {}
        assert!(Instant::now() < end, "the terminal stays open; it shows {:?}", String::from_utf8_lossy(&self.seen));
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    /// Reads what there is. `false`: its other end is closed, or it is too late.
    fn read(&mut self, end: Instant) -> bool {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
        if !matches!(poll(&mut fds, timeout), Ok(n) if n > 0) {
            return false;
        }
        let mut buffer = [0; 4096];
        // EIO is how a master learns that its other end is closed.
        match self.master.read(&mut buffer) {
            Ok(n) if n > 0 => {
                self.seen.extend_from_slice(&buffer[..n]);
                true
            }
            _ => false,
        }
    }
}
