//! The host's cgroup of a sandbox: its processes sit where the spec says, so that the engine's own accounting of them
//! is true (design decision 8): VMM, file daemon, the sandbox's daemon and the kata-shims. Limits are applied in the guest.
//! cgroup v1, v2, and both at once; where systemd runs, what is named in its form is a scope of its.

mod confine;
mod split;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use thiserror::Error;

use crate::systemd::{self, SystemdError};

/// How long dying processes may keep a cgroup from being removed.
const EMPTY_WITHIN: Duration = Duration::from_millis(500);

/// How long systemd may take to do what it has queued.
const UNIT_WITHIN: Duration = Duration::from_secs(5);

/// Why the cgroup could not be made.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// A path that would leave the hierarchy.
    #[error("linux.cgroupsPath {0:?} must not contain \"..\"")]
    Path(String),
    /// A directory or file.
    #[error("cannot {what} the cgroup {path}: {source}")]
    Io {
        /// "make", "prepare", "join".
        what: &'static str,
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// CPUs or memory nodes that it cannot have.
    #[error("cannot write {ids:?} to {path}: {source}; the host, and the cgroups above, must have what is named")]
    Confine {
        /// The file.
        path: PathBuf,
        /// What was to be written.
        ids: String,
        /// Why not.
        source: io::Error,
    },
    /// Nowhere to write them to.
    #[error(
        "the sandbox cannot be confined to {ids} ({file}): the spec names no cgroup (linux.cgroupsPath), or no controller for it \
         can be had there"
    )]
    NoCpuset {
        /// The file that is missing.
        file: &'static str,
        /// What was to be written.
        ids: String,
    },
    /// Version 2 alone.
    #[error(
        "runtime.sandbox_cgroup_only is false, which puts threads of one process into two cgroups: this host has cgroup v2 only, \
         where that cannot be; leave the key out"
    )]
    Threads,
    /// systemd did not make its unit.
    #[error("cannot make the cgroup {path}: {}", crate::machine::chain(.source))]
    Systemd {
        /// linux.cgroupsPath.
        path: String,
        /// Why not.
        source: SystemdError,
    },
}

/// The directories of one cgroup in all of the host's hierarchies; empty if the spec names none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostCgroup {
    /// Absolute; each has a `cgroup.procs`.
    pub dirs: Vec<PathBuf>,
    /// Those of the threads that run the guest's CPUs, where they are not where the processes are.
    pub vcpus: Vec<PathBuf>,
}

impl HostCgroup {
    /// Makes the cgroup that `linux.cgroupsPath` names, and enters it.
    ///
    /// # Errors
    /// [`CgroupError`]. A hierarchy that is mounted read-only or that we may not write is left out.
    pub fn make(cgroups_path: &str) -> Result<HostCgroup, CgroupError> {
        let made = HostCgroup::make_at(cgroups_path, Path::new(systemd::SOCKET))?;
        made.enter();
        Ok(made)
    }

    fn make_at(cgroups_path: &str, systemd: &Path) -> Result<HostCgroup, CgroupError> {
        let Some(relative) = relative(cgroups_path)? else { return Ok(HostCgroup::default()) };
        if let Some((slice, unit)) = scope(cgroups_path)
            && systemd.exists()
        {
            systemd::start_scope(systemd, &unit, slice, &[std::process::id()])
                .map_err(|source| CgroupError::Systemd { path: cgroups_path.to_owned(), source })?;
            await_unit(&relative);
        }
        Ok(HostCgroup { dirs: make_in(&mounted(), &relative)?, vcpus: Vec::new() })
    }

    /// Those directories of the cgroup that are there; for what has to be removed without having been made by us.
    pub fn find(cgroups_path: &str) -> HostCgroup {
        let Ok(Some(relative)) = relative(cgroups_path) else { return HostCgroup::default() };
        let dirs = mounted().into_iter().map(|h| h.mount.join(&relative));
        HostCgroup { dirs: dirs.filter(|dir| dir.is_dir()).collect(), vcpus: Vec::new() }
    }

    /// Moves a process into it.
    ///
    /// # Errors
    /// [`CgroupError::Io`].
    pub fn join(&self, pid: i32) -> Result<(), CgroupError> {
        for dir in &self.dirs {
            std::fs::write(dir.join("cgroup.procs"), pid.to_string()).map_err(|source| CgroupError::Io {
                what: "join",
                path: dir.clone(),
                source,
            })?;
        }
        Ok(())
    }

    /// Moves this process into it. Without it only the accounting would be short of us.
    fn enter(&self) {
        if let Err(err) = self.join(std::process::id().cast_signed()) {
            tracing::warn!("the sandbox's daemon is not in its cgroup: {err}");
        }
    }

    /// Moves this process out of it, to where it keeps nothing from being removed.
    pub fn leave(&self) {
        for h in mounted().iter().filter(|h| self.dirs.iter().any(|dir| dir.starts_with(&h.mount))) {
            if let Err(e) = std::fs::write(h.mount.join("cgroup.procs"), std::process::id().to_string()) {
                tracing::debug!("cannot leave for {}: {e}", h.mount.display());
            }
        }
    }

    /// Removes it; what is already gone is fine. Waits a moment for processes that are just dying.
    pub fn remove(&self) {
        let deadline = Instant::now() + EMPTY_WITHIN;
        for dir in self.dirs.iter().chain(&self.vcpus) {
            while let Err(e) = std::fs::remove_dir(dir) {
                match e.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::ENOENT) => break,
                    Some(Errno::EBUSY) if Instant::now() < deadline => {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    _ => {
                        tracing::warn!("cannot remove the cgroup {}: {e}", dir.display());
                        break;
                    }
                }
            }
            split::removed(dir);
        }
    }
}

/// Makes a directory in each of the hierarchies.
fn make_in(hierarchies: &[Hierarchy], relative: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let mut dirs = Vec::new();
    for h in hierarchies {
        let dir = h.mount.join(relative);
        let made = match std::fs::create_dir_all(&dir) {
            Ok(()) if h.cpuset => inherit_cpuset(&h.mount, relative),
            Ok(()) => Ok(()),
            Err(e) if is_denied(&e) => continue,
            Err(source) => Err(CgroupError::Io { what: "make", path: dir.clone(), source }),
        };
        dirs.push(dir);
        if let Err(err) = made {
            HostCgroup { dirs, vcpus: Vec::new() }.remove();
            return Err(err);
        }
    }
    Ok(dirs)
}

/// A path below a hierarchy's root. systemd's form `slice:prefix:name` becomes the directory that systemd would make
/// (systemd.slice(5): "a-b.slice" lies in "a.slice").
fn relative(cgroups_path: &str) -> Result<Option<PathBuf>, CgroupError> {
    if cgroups_path.is_empty() {
        return Ok(None);
    }
    let text = match unit(cgroups_path) {
        Some((slice, unit)) => format!("{}{unit}", expand_slice(slice)),
        None => cgroups_path.trim_start_matches('/').to_owned(),
    };
    if text.split('/').any(|part| part == "..") {
        return Err(CgroupError::Path(cgroups_path.to_owned()));
    }
    Ok((!text.is_empty()).then(|| PathBuf::from(text)))
}

/// The slice and the unit in it that `slice:prefix:name` means: a scope, or another slice; `None` for a path.
fn unit(cgroups_path: &str) -> Option<(&str, String)> {
    let [slice, prefix, name] = cgroups_path.split(':').collect::<Vec<_>>()[..] else { return None };
    let slice = if slice.is_empty() { "system.slice" } else { slice };
    let unit = if name.ends_with(".slice") { name.to_owned() } else { format!("{prefix}-{name}.scope") };
    Some((slice, unit))
}

/// The same, of a scope: systemd makes a slice of itself when something is in it.
fn scope(cgroups_path: &str) -> Option<(&str, String)> {
    unit(cgroups_path).filter(|(_, unit)| !unit.ends_with(".slice"))
}

/// Waits until systemd, which has queued the job, has made the directory in the hierarchy that it looks after.
fn await_unit(relative: &Path) {
    let its_own =
        |h: &&Hierarchy| h.mount.ends_with("systemd") || h.mount.ends_with("unified") || h.mount.ends_with("cgroup");
    let all = mounted();
    let Some(h) = all.iter().find(its_own) else { return };
    let deadline = Instant::now() + UNIT_WITHIN;
    while !h.mount.join(relative).exists() {
        if Instant::now() >= deadline {
            tracing::warn!("systemd has not made {} in time; it is made without", relative.display());
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// "a-b.slice" → "a.slice/a-b.slice/".
fn expand_slice(slice: &str) -> String {
    let Some(name) = slice.strip_suffix(".slice") else { return format!("{slice}/") };
    if name == "-" {
        return String::new();
    }
    let mut out = String::new();
    for (at, _) in name.match_indices('-').filter(|(at, _)| *at > 0) {
        out.push_str(&name[..at]);
        out.push_str(".slice/");
    }
    out.push_str(slice);
    out.push('/');
    out
}

/// Read-only, or not ours to write.
fn is_denied(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied)
}

#[derive(Debug, Clone)]
struct Hierarchy {
    mount: PathBuf,
    cpuset: bool,
    v2: bool,
}

/// Those that this process sees.
fn mounted() -> Vec<Hierarchy> {
    hierarchies(&std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

/// The cgroup mounts of a mountinfo (proc_pid_mountinfo(5)).
fn hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let mut after = after.split(' ');
        let (kind, options) = (after.next().unwrap_or_default(), after.nth(1).unwrap_or_default());
        if kind != "cgroup" && kind != "cgroup2" {
            continue;
        }
        let Some(mount) = before.split(' ').nth(4) else { continue };
        // A v1 hierarchy without a controller (name=systemd) accounts for nothing, but engines look there too.
        let cpuset = kind == "cgroup" && options.split(',').any(|o| o == "cpuset");
        if !found.iter().any(|h| h.mount == Path::new(mount)) {
            found.push(Hierarchy { mount: PathBuf::from(mount), cpuset, v2: kind == "cgroup2" });
        }
    }
    found
}

/// A new v1 cpuset is empty and takes no process (cgroup-v1/cpusets.rst): each level gets its parent's values.
fn inherit_cpuset(mount: &Path, relative: &Path) -> Result<(), CgroupError> {
    let mut dir = mount.to_owned();
    for part in relative.components() {
        let parent = dir.clone();
        dir.push(part);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let io = |source| CgroupError::Io { what: "prepare", path: dir.clone(), source };
            if std::fs::read_to_string(dir.join(file)).map_err(io)?.trim().is_empty() {
                let value = std::fs::read_to_string(parent.join(file)).map_err(io)?;
                std::fs::write(dir.join(file), value.trim()).map_err(io)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_both_drivers() {
        let r = |s: &str| relative(s).unwrap().map(|p| p.to_string_lossy().into_owned());
        assert_eq!(r(""), None);
        assert_eq!(r("/docker/abc").as_deref(), Some("docker/abc"));
        assert_eq!(r("system.slice:docker:abc").as_deref(), Some("system.slice/docker-abc.scope"));
        assert_eq!(r("a-b.slice:x:y").as_deref(), Some("a.slice/a-b.slice/x-y.scope"));
        assert!(relative("/a/../../b").is_err());
    }

    #[test]
    fn scopes_are_systemds_and_paths_are_not() {
        assert_eq!(
            scope("kubepods-besteffort.slice:cri-containerd:abc"),
            Some(("kubepods-besteffort.slice", "cri-containerd-abc.scope".to_owned()))
        );
        assert_eq!(scope(":docker:abc"), Some(("system.slice", "docker-abc.scope".to_owned())));
        assert_eq!(scope("/docker/abc"), None);
        assert_eq!(scope("a.slice:x:b.slice"), None);
    }

    #[test]
    fn a_systemd_that_does_not_answer_is_an_error_and_none_is_not_needed() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("private");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let err = HostCgroup::make_at("a.slice:b:c", &socket).unwrap_err().to_string();
        assert!(err.contains("a.slice:b:c") && err.contains("connect to systemd"), "{err}");
        assert_eq!(HostCgroup::make_at("", &socket).unwrap(), HostCgroup::default());
    }

    #[test]
    fn hybrid_mounts_are_all_found() {
        let text = "30 23 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                    31 23 0:27 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
                    32 23 0:28 / /proc rw - proc proc rw\n";
        let found = hierarchies(text);
        assert_eq!(found.len(), 2);
        assert!(!found[0].cpuset && found[0].v2 && found[1].cpuset && !found[1].v2);
    }
}
