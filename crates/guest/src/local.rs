//! The agent as an ordinary process, for tests and fake VMMs: the same program without a machine of its own.
//!
//! It gets a mount, a UTS and a network namespace, so that what it mounts, its host name and its network are its own, a
//! tmpfs on /run, and cgroup v2 where it looks for it. It needs root.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use thiserror::Error;

/// How the program was called, when it was not called as PID 1 of a machine.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// `--serial-unix PATH`: listen there, as QEMU would for the guest's port.
    pub socket: Option<PathBuf>,
    /// `--share DIR`: what stands for each virtio-fs share.
    pub share: Option<PathBuf>,
}

/// Why such an agent cannot run.
#[derive(Debug, Error)]
pub enum LocalError {
    /// The command line.
    #[error("{0:?} is not understood; as an ordinary process: kata-agent --serial-unix PATH [--share DIR]")]
    Usage(OsString),
    /// A step.
    #[error("cannot {what} {path}")]
    Step {
        /// What was done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn step(what: &'static str, path: &Path) -> impl Fn(io::Error) -> LocalError {
    let path = path.to_owned();
    move |source| LocalError::Step { what, path: path.clone(), source }
}

impl Args {
    /// Reads the words after the program's name.
    ///
    /// # Errors
    /// [`LocalError::Usage`].
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, LocalError> {
        let mut out = Args::default();
        let mut args = args.into_iter();
        while let Some(word) = args.next() {
            let slot = match word.to_str() {
                Some("--serial-unix") => &mut out.socket,
                Some("--share") => &mut out.share,
                _ => return Err(LocalError::Usage(word)),
            };
            *slot = Some(args.next().ok_or(LocalError::Usage(word))?.into());
        }
        Ok(out)
    }
}

/// Prepares the process: returns the socket, listening, and the share's directory. Call before there are threads.
///
/// # Errors
/// [`LocalError::Step`].
pub fn prepare(socket: &Path, share: Option<&Path>) -> Result<(UnixListener, Option<OwnedFd>), LocalError> {
    // Before the mounts, which may hide it.
    let listener = UnixListener::bind(socket).map_err(step("listen on", socket))?;
    listener.set_nonblocking(true).map_err(step("listen on", socket))?;
    let root = Path::new("/");
    let own = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWNET;
    unshare(own).map_err(|e| step("unshare", root)(e.into()))?;
    kata_sys::guest::link_up("lo").map_err(step("bring up the loopback of", root))?;
    let mount = |source: &str, at: &Path, fstype: Option<&str>, flags| {
        mount(Some(source), at, fstype, flags, None::<&str>).map_err(|e| step("mount", at)(e.into()))
    };
    // What is mounted below the share later on arrives here, and nothing of ours leaves.
    mount("none", root, None, MsFlags::MS_SLAVE | MsFlags::MS_REC)?;
    // Opened in the new namespace, or it could not be bound there.
    let share = share.map(|dir| File::open(dir).map_err(step("open", dir))).transpose()?;
    mount("tmpfs", Path::new("/run"), Some("tmpfs"), MsFlags::MS_NODEV | MsFlags::MS_NOSUID)?;
    mount("cgroup2", Path::new("/sys/fs/cgroup"), Some("cgroup2"), MsFlags::empty())?;
    // Orphans of containers come to us and not to whatever started us.
    nix::sys::prctl::set_child_subreaper(true).map_err(|e| step("become the reaper of", root)(e.into()))?;
    Ok((listener, share.map(OwnedFd::from)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_understood_or_named() {
        let parse = |words: &[&str]| Args::parse(words.iter().map(OsString::from));
        let args = parse(&["--serial-unix", "/s", "--share", "/d"]).unwrap();
        assert_eq!((args.socket, args.share), (Some("/s".into()), Some("/d".into())));
        assert!(parse(&["--serial-unix"]).is_err());
        assert!(parse(&["--frobnicate"]).unwrap_err().to_string().contains("--frobnicate"));
    }
}
