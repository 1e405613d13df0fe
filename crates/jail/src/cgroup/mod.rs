//! The container's cgroup (version 2 only): made and removed, entered, limited, frozen, killed, listed.

pub(crate) mod devices;
pub(crate) mod limits;
pub(crate) mod stats;

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use kata_proto::oci;
use nix::errno::Errno;

use crate::error::{JailError, Step};
use limits::Setting;

/// Where the guest's agent mounts cgroup2.
const DEFAULT_ROOT: &str = "/sys/fs/cgroup";
/// How long processes may take to die or to freeze.
const PATIENCE: Duration = Duration::from_secs(10);

static TEST_ROOT: OnceLock<PathBuf> = OnceLock::new();

/// For tests, on a machine whose cgroup2 is somewhere else and perhaps without controllers: uses `root` in place of
/// `/sys/fs/cgroup`, and makes a limit whose file is missing there a warning instead of an error. The first call counts.
pub fn set_cgroup_root(root: PathBuf) {
    // A second call changes nothing, as documented.
    let _ = TEST_ROOT.set(root);
}

/// Where containers are by default, below the root.
const PARENT: &str = "kata";

/// What all containers have used that have no cgroup of another name; zeros before the first.
pub fn stats_of_all() -> kata_proto::agent::CgroupStats {
    stats::read(&root().join(PARENT))
}

fn root() -> &'static Path {
    TEST_ROOT.get().map_or(Path::new(DEFAULT_ROOT), PathBuf::as_path)
}

/// A container's cgroup.
#[derive(Debug)]
pub(crate) struct Cgroup {
    dir: PathBuf,
    /// The device program that is attached.
    device_program: Mutex<Option<OwnedFd>>,
    /// Whether missing controllers are a warning only.
    lenient: bool,
}

impl Cgroup {
    /// Makes the cgroup that the spec names, `/kata/<id>` by default, and gives its ancestors the controllers.
    pub(crate) fn create(spec_path: &str, id: &str) -> Result<Self, JailError> {
        let root = root();
        let relative = relative_path(spec_path, id)?;
        let cgroup =
            Cgroup { dir: root.join(&relative), device_program: Mutex::new(None), lenient: TEST_ROOT.get().is_some() };
        if !root.join("cgroup.procs").exists() {
            let step = format!("{} is no cgroup2 filesystem", root.display());
            return Err(JailError::Step { step, source: Errno::ENODEV });
        }
        let mut dir = root.to_owned();
        for part in Path::new(&relative) {
            delegate_controllers(&dir);
            dir.push(part);
            match fs::create_dir(&dir) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                other => other.step(|| format!("making cgroup {}", dir.display()))?,
            }
        }
        if cgroup.populated()? {
            let what = format!("its cgroup {} is in use by other processes", cgroup.dir.display());
            return Err(JailError::State { id: id.to_owned(), what });
        }
        Ok(cgroup)
    }

    /// Its directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Applies all limits and device rules. `None` of the rules leaves the devices as they are.
    pub(crate) fn set(&self, resources: &oci::LinuxResources, device_rules: bool) -> Result<(), JailError> {
        let has = |file: &str| self.dir.join(file).exists();
        let plan = limits::plan(resources, &has)?;
        for w in plan.warnings {
            log::warn!("{w}");
        }
        for s in plan.settings {
            self.apply(&s)?;
        }
        if device_rules { self.set_devices(&resources.Devices) } else { Ok(()) }
    }

    fn apply(&self, s: &Setting) -> Result<(), JailError> {
        let path = self.dir.join(&s.file);
        // Not created: a file that the kernel does not have is a controller that is missing.
        let written = fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut f| io::Write::write_all(&mut f, s.value.as_bytes()));
        match written {
            Err(e) if e.kind() == ErrorKind::NotFound && (self.lenient || s.optional) => {
                log::warn!("limit {} = {} not set: this kernel does not have it", s.file, s.value);
                Ok(())
            }
            other => other.step(|| format!("writing {:?} to {}", s.value, path.display())),
        }
    }

    fn set_devices(&self, rules: &[oci::LinuxDeviceCgroup]) -> Result<(), JailError> {
        let program = devices::compile(rules)?;
        let what = || format!("setting the device rules of {}", self.dir.display());
        let dir: OwnedFd = fs::File::open(&self.dir).step(what)?.into();
        let mut attached = self.device_program.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = kata_sys::jail::load_device_program(&program)
            .and_then(|p| kata_sys::jail::attach_device_program(&dir, &p, attached.as_ref()).map(|()| p));
        match loaded {
            Ok(program) => {
                *attached = Some(program);
                Ok(())
            }
            Err(e) if self.lenient => {
                log::warn!("device rules not set: {e}");
                Ok(())
            }
            Err(e) => Err(e).step(what),
        }
    }

    /// The cgroup.procs files through which a process may join, for `init`'s own cgroup too if that is another one.
    pub(crate) fn open_procs(&self, init: Option<i32>) -> Result<Vec<OwnedFd>, JailError> {
        let open = |dir: &Path| {
            let path = dir.join("cgroup.procs");
            fs::OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_CLOEXEC)
                .open(&path)
                .map(OwnedFd::from)
                .step(|| format!("opening {}", path.display()))
        };
        let mut files = vec![open(&self.dir)?];
        if let Some(dir) = init.and_then(|pid| self.cgroup_of(pid)).filter(|dir| *dir != self.dir) {
            files.push(open(&dir)?);
        }
        Ok(files)
    }

    /// Where below here `pid` is; found by looking, because the path in /proc is that of another cgroup namespace if the
    /// agent has one.
    fn cgroup_of(&self, pid: i32) -> Option<PathBuf> {
        let pid = pid.to_string();
        let mut found = None;
        let walked = walk(&self.dir, &mut |dir| {
            let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            if procs.lines().any(|l| l == pid) {
                found = Some(dir.to_owned());
            }
            Ok(())
        });
        walked.ok().and(found)
    }

    /// All processes here and below, in the reader's pid namespace.
    pub(crate) fn pids(&self) -> Result<Vec<i32>, JailError> {
        let mut pids = Vec::new();
        walk(&self.dir, &mut |dir| {
            match fs::read_to_string(dir.join("cgroup.procs")) {
                Ok(text) => pids.extend(text.lines().filter_map(|l| l.parse::<i32>().ok())),
                // Gone meanwhile; or a cgroup of threads, whose processes are listed further up.
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP)) => {}
                Err(e) => return Err(e),
            }
            Ok(())
        })
        .step(|| format!("listing the processes of {}", self.dir.display()))?;
        // 0 stands for a process that the reader's pid namespace does not have.
        pids.retain(|pid| *pid > 0);
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Sends SIGKILL to all, frozen or not, without missing one that is being forked.
    pub(crate) fn kill(&self) -> Result<(), JailError> {
        self.write("cgroup.kill", "1")
    }

    /// Freezes or thaws, and waits until that is done.
    pub(crate) fn freeze(&self, frozen: bool) -> Result<(), JailError> {
        let (value, event) = if frozen { ("1", "frozen 1") } else { ("0", "frozen 0") };
        self.write("cgroup.freeze", value)?;
        if self.wait_event(event)? {
            return Ok(());
        }
        if frozen {
            // Half frozen helps nobody.
            self.write("cgroup.freeze", "0")?;
        }
        Err(JailError::Step {
            step: format!("waiting for {event:?} in {}", self.dir.display()),
            source: Errno::ETIMEDOUT,
        })
    }

    /// Whether it is frozen or about to be.
    pub(crate) fn is_frozen(&self) -> Result<bool, JailError> {
        let path = self.dir.join("cgroup.freeze");
        fs::read_to_string(&path).map(|t| t.trim() == "1").step(|| format!("reading {}", path.display()))
    }

    /// Kills what is left and removes it with all below.
    pub(crate) fn destroy(&self) -> Result<(), JailError> {
        if !self.dir.exists() {
            return Ok(());
        }
        self.kill()?;
        if !self.wait_event("populated 0")? {
            let step = format!("waiting for the processes of {} to die", self.dir.display());
            return Err(JailError::Step { step, source: Errno::ETIMEDOUT });
        }
        // Deepest first. A process that has just died may hold its cgroup for a moment.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut dirs = Vec::new();
            let what = || format!("removing cgroup {}", self.dir.display());
            walk(&self.dir, &mut |dir| {
                dirs.push(dir.to_owned());
                Ok(())
            })
            .step(what)?;
            let removed = dirs.iter().rev().try_for_each(|dir| match fs::remove_dir(dir) {
                Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
                other => other,
            });
            match removed {
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                other => return other.step(what),
            }
        }
    }

    fn populated(&self) -> Result<bool, JailError> {
        Ok(self.events()?.lines().any(|l| l == "populated 1"))
    }

    fn events(&self) -> Result<String, JailError> {
        let path = self.dir.join("cgroup.events");
        fs::read_to_string(&path).step(|| format!("reading {}", path.display()))
    }

    /// False when it did not happen in time.
    fn wait_event(&self, line: &str) -> Result<bool, JailError> {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_micros(200);
        loop {
            if self.events()?.lines().any(|l| l == line) {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    fn write(&self, file: &str, value: &str) -> Result<(), JailError> {
        let path = self.dir.join(file);
        fs::write(&path, value).step(|| format!("writing {value:?} to {}", path.display()))
    }
}

/// Lets the children of `dir` use every controller that it has. One that cannot be passed on (a cgroup with processes
/// cannot pass on most) shows when a limit is set.
fn delegate_controllers(dir: &Path) {
    let read = |file| fs::read_to_string(dir.join(file)).unwrap_or_default();
    let enabled = read("cgroup.subtree_control");
    for controller in read("cgroup.controllers").split_whitespace() {
        if !enabled.split_whitespace().any(|e| e == controller)
            && let Err(e) = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"))
        {
            log::debug!("passing controller {controller} on in {}: {e}", dir.display());
        }
    }
}

/// Calls `f` for `dir` and all directories below it, parents first.
fn walk(dir: &Path, f: &mut dyn FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    f(dir)?;
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), f)?;
        }
    }
    Ok(())
}

/// The spec's cgroupsPath below the root: a path, or systemd's `slice:prefix:name` as a path; `kata/<id>` when there is
/// none.
fn relative_path(spec_path: &str, id: &str) -> Result<String, JailError> {
    let bad = || JailError::invalid(format!("cgroupsPath {spec_path:?}"));
    let path = match spec_path.split(':').collect::<Vec<_>>()[..] {
        [""] => format!("{PARENT}/{id}"),
        [path] => path.trim_matches('/').to_owned(),
        [slice, prefix, name] if !name.is_empty() => {
            let slice = if slice.is_empty() { "system.slice" } else { slice.trim_matches('/') };
            let name = if name.ends_with(".slice") || prefix.is_empty() {
                name.to_owned()
            } else {
                format!("{prefix}-{name}.scope")
            };
            format!("{slice}/{name}")
        }
        _ => return Err(bad()),
    };
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    if parts.is_empty() || parts.iter().any(|p| matches!(*p, "." | "..")) || path.contains('\0') {
        return Err(bad());
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::relative_path;

    #[test]
    fn paths_stay_below_the_root() {
        assert_eq!(relative_path("", "c1").unwrap(), "kata/c1");
        assert_eq!(relative_path("/docker/abc", "c1").unwrap(), "docker/abc");
        assert_eq!(relative_path("a//b/", "c1").unwrap(), "a/b");
        assert_eq!(relative_path("system.slice:docker:abc", "c1").unwrap(), "system.slice/docker-abc.scope");
        assert_eq!(relative_path(":libpod:abc", "c1").unwrap(), "system.slice/libpod-abc.scope");
        for bad in ["/", "/../x", "a/../../b", "a:b", "a:b:", "..:x:y"] {
            assert!(relative_path(bad, "c1").is_err(), "{bad}");
        }
    }
}
