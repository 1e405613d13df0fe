//! One command, timed; and the daemons that must be gone afterwards.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::run;

/// Seconds after which a command counts as hanging.
const DEADLINE: &str = "180";
/// A daemon answers within this.
const READY: Duration = Duration::from_secs(30);
/// A daemon that does not end within this after SIGTERM is killed.
const END: Duration = Duration::from_secs(20);

/// A command that is killed when it hangs.
pub fn bounded(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = run::cmd("timeout", ["--kill-after=5", DEADLINE]);
    command.arg(program);
    command
}

/// Runs it; returns how long it took. Its output is not waited for: what it leaves running may hold it.
///
/// # Errors
/// It did not exit with 0; shows what it said.
pub fn timed(command: &mut Command) -> Result<Duration> {
    let mut said = Scratch::new()?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said.file.try_clone()?);
    let start = Instant::now();
    let status = command.status().with_context(|| format!("cannot start `{}`", run::show(command)))?;
    let took = start.elapsed();
    if !status.success() {
        bail!("`{}` failed: {status}: {}", run::show(command), said.read().trim());
    }
    Ok(took)
}

/// Whether an engine answers its client: `client` is what its commands begin with.
pub fn answers(mut client: Command) -> bool {
    client.arg("version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    client.status().is_ok_and(|status| status.success())
}

/// A file without a name, for what a command says.
struct Scratch {
    file: File,
}

impl Scratch {
    fn new() -> Result<Self> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("kata-bench-{}-said-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        fs::remove_file(&path)?;
        Ok(Scratch { file })
    }

    fn read(&mut self) -> String {
        use std::io::{Read, Seek};
        let mut bytes = Vec::new();
        let read = self.file.rewind().and_then(|()| self.file.read_to_end(&mut bytes));
        read.map(|_| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }
}

/// A daemon of ours; ended on drop.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts it, with its output in `log`, and waits until `answers`.
    ///
    /// # Errors
    /// It ends or does not answer in time; shows the end of its log.
    pub fn start(mut command: Command, log: PathBuf, answers: impl Fn() -> bool) -> Result<Self> {
        let out = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(out);
        let child = command.spawn().with_context(|| format!("cannot start `{}`", run::show(&command)))?;
        let mut this = Daemon { child, log };
        let start = Instant::now();
        while !answers() {
            ensure!(this.child.try_wait()?.is_none(), "`{}` ended: {}", run::show(&command), this.log_tail());
            ensure!(start.elapsed() < READY, "`{}` does not answer: {}", run::show(&command), this.log_tail());
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(this)
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        run::succeeds("kill", &["-TERM", &self.child.id().to_string()]);
        let start = Instant::now();
        while start.elapsed() < END {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A directory that is gone afterwards, whatever happens.
pub struct Work(PathBuf);

impl Work {
    /// Makes it, of a short name: a socket's path may have 107 bytes only.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("kata-bench-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Work(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Err(err) = crate::kernel::remove_tree(&self.0) {
            eprintln!("    {err:#}");
        }
    }
}

/// Removes the cgroup that an engine made for all its containers, in every hierarchy; those in it must have ended.
pub fn remove_cgroup(name: &str) {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([root.to_owned()]) {
        let dir = hierarchy.join(name);
        let inner = fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path());
        // rmdir(2) of a cgroup takes its files along, and refuses where there are processes.
        inner.filter(|path| path.is_dir()).for_each(|path| drop(fs::remove_dir(path)));
        drop(fs::remove_dir(dir));
    }
}
