//! Commands that never hang: each has a deadline, at which its whole process group is killed.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// Enough for a VM to start on a slow machine without hardware virtualisation.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// How long the ends of a command's output may stay open after its exit. A process that it left behind holds them.
const END_OF_OUTPUT: Duration = Duration::from_secs(5);
/// How much of an output a failure shows.
const SHOWN: usize = 4000;

/// A command with a deadline.
pub struct Cmd {
    command: Command,
    stdin: Input,
    output: Sink,
    deadline: Duration,
}

enum Input {
    Null,
    Bytes(Vec<u8>),
    /// A pipe whose end the test holds.
    Held,
    Given(Stdio),
}

enum Sink {
    Pipes,
    /// What it leaves behind in the background keeps its output: nobody may wait for the end of a pipe.
    File(File),
    Given(Stdio, Stdio),
}

impl Cmd {
    /// A command without input, with the usual [`DEADLINE`].
    pub fn new(program: impl AsRef<OsStr>) -> Cmd {
        Cmd { command: Command::new(program), stdin: Input::Null, output: Sink::Pipes, deadline: DEADLINE }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Cmd {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Cmd {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Cmd {
        self.command.env(name, value);
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn dir(mut self, dir: &Path) -> Cmd {
        self.command.current_dir(dir);
        self
    }

    /// Feeds this through a pipe, and closes it.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Cmd {
        self.stdin = Input::Bytes(bytes.into());
        self
    }

    /// Opens a pipe to it, which [`Running::stdin`] hands out.
    #[must_use]
    pub fn held_input(mut self) -> Cmd {
        self.stdin = Input::Held;
        self
    }

    /// Reads from this.
    #[must_use]
    pub fn stdin(mut self, from: impl Into<Stdio>) -> Cmd {
        self.stdin = Input::Given(from.into());
        self
    }

    /// Writes both outputs to the end of this file: for a command that leaves something running with them.
    ///
    /// # Panics
    /// When it cannot be opened.
    #[must_use]
    pub fn output_to(mut self, path: &Path) -> Cmd {
        let file = File::options().create(true).append(true).open(path);
        self.output = Sink::File(file.unwrap_or_else(|e| panic!("{}: {e}", path.display())));
        self
    }

    /// Gives it these outputs.
    #[must_use]
    pub fn outputs(mut self, stdout: impl Into<Stdio>, stderr: impl Into<Stdio>) -> Cmd {
        self.output = Sink::Given(stdout.into(), stderr.into());
        self
    }

    /// Gives it this terminal's other end as its stdin and both outputs.
    ///
    /// # Panics
    /// Without descriptors.
    #[must_use]
    pub fn in_terminal(self, slave: &OwnedFd) -> Cmd {
        let copy = || slave.try_clone().unwrap_or_else(|e| panic!("a terminal: {e}"));
        self.stdin(copy()).outputs(copy(), copy())
    }

    /// Another deadline.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Cmd {
        self.deadline = deadline;
        self
    }

    /// Runs it to its end, or to its deadline.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn run(self) -> Output {
        self.start().wait()
    }

    /// Runs it, and fails the test unless it exits with 0.
    ///
    /// # Panics
    /// With everything about it.
    pub fn ok(self) -> Output {
        self.run().expect(0)
    }

    /// Starts it.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(mut self) -> Running {
        let shown = show(&self.command);
        self.command.process_group(0);
        let mut feed = None;
        match self.stdin {
            Input::Null => drop(self.command.stdin(Stdio::null())),
            Input::Held => drop(self.command.stdin(Stdio::piped())),
            Input::Given(stdio) => drop(self.command.stdin(stdio)),
            Input::Bytes(bytes) => {
                feed = Some(bytes);
                self.command.stdin(Stdio::piped());
            }
        }
        match self.output {
            Sink::Pipes => drop(self.command.stdout(Stdio::piped()).stderr(Stdio::piped())),
            Sink::File(file) => {
                let twin = file.try_clone().unwrap_or_else(|e| panic!("{shown}: {e}"));
                self.command.stdout(file).stderr(twin);
            }
            Sink::Given(out, err) => drop(self.command.stdout(out).stderr(err)),
        }
        let begun = Instant::now();
        let mut child = self.command.spawn().unwrap_or_else(|e| panic!("cannot start {shown}: {e}"));
        // Ours would keep the ends open that were given away.
        drop(self.command);
        if let Some(bytes) = feed
            && let Some(mut stdin) = child.stdin.take()
        {
            // A reader that goes away early is the command's business, and seen in its exit.
            std::thread::spawn(move || drop(stdin.write_all(&bytes)));
        }
        let stdout = Collector::of(child.stdout.take());
        let stderr = Collector::of(child.stderr.take());
        // Taken out, because waiting for a child closes the input that is still in it.
        let stdin = child.stdin.take();
        Running { shown, begun, deadline: self.deadline, stdin, child: Some(child), stdout, stderr }
    }
}

/// One output of a running command.
struct Collector {
    shared: Arc<(Mutex<Collected>, Condvar)>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Collected {
    bytes: Vec<u8>,
    ended: bool,
}

impl Collector {
    fn of<R: Read + Send + 'static>(source: Option<R>) -> Collector {
        let shared =
            Arc::new((Mutex::new(Collected { ended: source.is_none(), ..Collected::default() }), Condvar::new()));
        let reader = source.map(|mut source| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                let mut buffer = vec![0; 64 << 10];
                loop {
                    let n = source.read(&mut buffer).unwrap_or(0);
                    let mut collected = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
                    collected.bytes.extend_from_slice(&buffer[..n]);
                    collected.ended = n == 0;
                    shared.1.notify_all();
                    if n == 0 {
                        return;
                    }
                }
            })
        });
        Collector { shared, reader }
    }

    fn so_far(&self) -> Vec<u8> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).bytes.clone()
    }

    /// Everything, and whether it came to its end in time.
    fn all(mut self, until: Instant) -> (Vec<u8>, bool) {
        let mut collected = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        while !collected.ended && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            collected = self.shared.1.wait_timeout(collected, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let all = (std::mem::take(&mut collected.bytes), collected.ended);
        drop(collected);
        if all.1
            && let Some(reader) = self.reader.take()
        {
            drop(reader.join());
        }
        all
    }
}

/// A started command. Killed with its process group on drop.
pub struct Running {
    shown: String,
    begun: Instant,
    deadline: Duration,
    stdin: Option<ChildStdin>,
    child: Option<Child>,
    stdout: Collector,
    stderr: Collector,
}

impl Running {
    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.child.as_ref().map_or(0, |c| c.id().cast_signed())
    }

    /// Its input, of a command with [`Cmd::held_input`]; once.
    ///
    /// # Panics
    /// The second time.
    pub fn stdin(&mut self) -> ChildStdin {
        self.stdin.take().expect("the command's input has been taken")
    }

    /// What it has written to stdout so far.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout.so_far()).into_owned()
    }

    /// What it has written to stderr so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.so_far()).into_owned()
    }

    /// Waits until its stdout contains this.
    ///
    /// # Panics
    /// When it does not in time, or the command ends before.
    pub fn says(&mut self, text: &str) {
        loop {
            if self.stdout().contains(text) {
                return;
            }
            let ended = self.child.as_mut().and_then(|c| c.try_wait().ok().flatten());
            // What it said last may still be on its way.
            std::thread::sleep(Duration::from_millis(20));
            assert!(
                self.begun.elapsed() < self.deadline && (ended.is_none() || self.stdout().contains(text)),
                "{} did not say {text:?} ({}); stdout: {}\nstderr: {}",
                self.shown,
                ended.map_or("it runs".into(), |s| s.to_string()),
                self.stdout(),
                self.stderr(),
            );
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            // It may be gone, which the test sees.
            let _ = nix::sys::signal::kill(Pid::from_raw(child.id().cast_signed()), signal);
        }
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|c| matches!(c.try_wait(), Ok(Some(_))))
    }

    /// Waits for its end, or for its deadline, at which its process group is killed.
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub fn wait(mut self) -> Output {
        drop(self.stdin.take());
        let mut child = self.child.take().expect("a command that was started");
        let status = loop {
            match child.try_wait() {
                Ok(Some(status)) => break Some(status),
                Ok(None) if self.begun.elapsed() >= self.deadline => break None,
                Ok(None) => std::thread::sleep(Duration::from_millis(2)),
                Err(e) => panic!("cannot wait for {}: {e}", self.shown),
            }
        };
        let took = self.begun.elapsed();
        if status.is_none() {
            kill_group(&mut child);
        }
        let ends = Instant::now() + END_OF_OUTPUT;
        let none = || Collector::of(None::<File>);
        let (stdout, out_ended) = std::mem::replace(&mut self.stdout, none()).all(ends);
        let (stderr, err_ended) = std::mem::replace(&mut self.stderr, none()).all(ends);
        let output = Output {
            command: std::mem::take(&mut self.shown),
            status,
            stdout,
            stderr,
            took,
            ended: out_ended && err_ended,
        };
        println!("+ {} -> {} in {:.1} s", output.command, output.outcome(), took.as_secs_f32());
        output
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            kill_group(&mut child);
        }
    }
}

fn kill_group(child: &mut Child) {
    // Gone already is as good.
    let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
    drop(child.kill());
    drop(child.wait());
}

/// How a command ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// As one would type it.
    pub command: String,
    /// `None`: it was killed at its deadline.
    pub status: Option<ExitStatus>,
    /// All of it.
    pub stdout: Vec<u8>,
    /// All of it.
    pub stderr: Vec<u8>,
    /// From its start to its exit.
    pub took: Duration,
    /// Both outputs came to their ends: nothing that it left running holds them.
    pub ended: bool,
}

impl Output {
    fn outcome(&self) -> String {
        match self.status {
            None => "killed at its deadline".into(),
            Some(status) => status.code().map_or_else(|| status.to_string(), |code| code.to_string()),
        }
    }

    /// Its exit code, or 128 and the signal that ended it, as a shell says it.
    ///
    /// # Panics
    /// When it was killed at its deadline.
    pub fn code(&self) -> i32 {
        let status = self.status.unwrap_or_else(|| panic!("{}", self.report()));
        status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(-1)
    }

    /// Its stdout without the white space around it.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }

    /// Its stderr without the white space around it.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim().to_owned()
    }

    /// Fails the test unless it ended with this code.
    ///
    /// # Panics
    /// With everything about it.
    pub fn expect(self, code: i32) -> Output {
        assert!(self.status.is_some() && self.code() == code, "{code} was expected: {}", self.report());
        self
    }

    /// Fails the test if it succeeded.
    ///
    /// # Panics
    /// With everything about it.
    pub fn fails(self) -> Output {
        assert!(self.code() != 0, "a failure was expected: {}", self.report());
        self
    }

    /// Fails the test unless it said this on stdout.
    ///
    /// # Panics
    /// With everything about it.
    pub fn said(self, text: &str) -> Output {
        assert!(self.out().contains(text), "{text:?} was expected on stdout: {}", self.report());
        self
    }

    /// Fails the test unless it complained of this on stderr.
    ///
    /// # Panics
    /// With everything about it.
    pub fn complained(self, text: &str) -> Output {
        assert!(self.err().contains(text), "{text:?} was expected on stderr: {}", self.report());
        self
    }

    /// Everything about it, for a failure's message.
    pub fn report(&self) -> String {
        let mut text =
            format!("{}\nended with {} after {:.1} s", self.command, self.outcome(), self.took.as_secs_f32());
        if !self.ended {
            text.push_str(" (its output is still open)");
        }
        for (name, bytes) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            let start = bytes.len().saturating_sub(SHOWN);
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "\n{name} ({} bytes): {}",
                bytes.len(),
                String::from_utf8_lossy(&bytes[start..]).trim_end()
            );
        }
        text
    }
}

fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<String> = words
        .map(|word| {
            let word = word.to_string_lossy();
            let plain = !word.is_empty() && !word.contains(|c: char| c.is_whitespace() || "'\"$;|&<>()".contains(c));
            if plain { word.into_owned() } else { format!("{word:?}") }
        })
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Cmd {
        Cmd::new("/bin/sh").args(["-c", script])
    }

    #[test]
    fn codes_signals_and_outputs_are_told() {
        let out = sh("echo a; echo b >&2; exit 7").run();
        assert_eq!((out.code(), out.out().as_str(), out.err().as_str()), (7, "a", "b"));
        assert_eq!(sh("kill -TERM $$").run().code(), 143);
        let big = vec![b'x'; 3 << 20];
        assert_eq!(Cmd::new("cat").input(big.clone()).ok().stdout, big);
    }

    #[test]
    fn a_command_ends_at_its_deadline_and_its_children_with_it() {
        let start = Instant::now();
        let out = sh("sleep 1000 & sleep 1000").deadline(Duration::from_millis(200)).run();
        assert!(out.status.is_none() && out.ended, "{}", out.report());
        assert!(start.elapsed() < Duration::from_secs(4));
    }

    #[test]
    fn what_stays_behind_does_not_hold_up_the_test() {
        let out = sh("setsid sleep 20 & echo started").run();
        assert!(!out.ended && out.out() == "started");
    }
}
