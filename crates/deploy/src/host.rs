//! The node, whose root directory may be mounted somewhere below ours: its paths and its processes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use crate::error::{DeployError, io};

/// As the kernel's own bound (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// A node.
#[derive(Debug, Clone)]
pub struct Host {
    root: PathBuf,
}

/// A file by what it is, not by its name: a process in a mount namespace of its own knows it under another one.
pub type FileId = (u64, u64);

/// A process of the node.
#[derive(Debug, Clone)]
pub struct Process {
    /// As we see it.
    pub pid: i32,
    /// The kernel's name of it, at most 15 bytes.
    pub name: String,
    /// Its command line.
    pub argv: Vec<String>,
    /// Clock ticks after the node's boot at which it started.
    pub started: u64,
}

impl Process {
    /// The value of a flag, `--flag value`, `--flag=value` or one dash.
    pub fn flag(&self, names: &[&str]) -> Option<&str> {
        let mut args = self.argv.iter().skip(1);
        while let Some(arg) = args.next() {
            for name in names {
                match arg.strip_prefix(name) {
                    Some("") => return args.next().map(String::as_str),
                    Some(rest) if rest.starts_with('=') => return Some(&rest[1..]),
                    _ => {}
                }
            }
        }
        None
    }
}

/// A moment of a node: comparable with the start of its processes, whatever its clock is set to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Moment {
    /// Which boot (random(4)).
    pub boot_id: String,
    /// Clock ticks after that boot.
    pub ticks: u64,
}

impl Host {
    /// The node whose root directory this is.
    ///
    /// # Errors
    /// [`DeployError::NotAbsolute`].
    pub fn new(root: &Path) -> Result<Host, DeployError> {
        absolute("host-root", root)?;
        Ok(Host { root: root.to_owned() })
    }

    /// Its root directory, as we see it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether it is the machine (or container) that we are in.
    pub fn is_ours(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Where we find what the node calls `path` (absolute): its symbolic links are followed as the node would.
    /// What is not there is found where it would be made.
    ///
    /// # Errors
    /// Links in a circle.
    pub fn at(&self, path: &Path) -> Result<PathBuf, DeployError> {
        let mut todo: Vec<PathBuf> = vec![path.to_owned()];
        let mut inside = PathBuf::new();
        let mut links = 0;
        while let Some(next) = todo.pop() {
            let mut parts = next.components();
            while let Some(part) = parts.next() {
                match part {
                    Component::RootDir | Component::Prefix(_) => inside = PathBuf::new(),
                    Component::CurDir => {}
                    Component::ParentDir => drop(inside.pop()),
                    Component::Normal(name) => {
                        let here = inside.join(name);
                        let Ok(target) = fs::read_link(self.root.join(&here)) else {
                            inside = here;
                            continue;
                        };
                        links += 1;
                        if links > MAX_LINKS {
                            return Err(DeployError::Links { path: path.to_owned() });
                        }
                        todo.push(parts.as_path().to_owned());
                        todo.push(target);
                        break;
                    }
                }
            }
        }
        Ok(self.root.join(inside))
    }

    /// The node's /proc: its own where it is mounted with the root, else ours.
    fn proc(&self) -> PathBuf {
        let own = self.root.join("proc");
        if own.join("1/stat").exists() { own } else { "/proc".into() }
    }

    /// Whether [`Host::proc`] shows the node's processes. Ours does in a container that shares the node's pid namespace:
    /// then process 1 is in another mount namespace than we are.
    fn sees_processes(&self) -> bool {
        if self.is_ours() || self.proc() != Path::new("/proc") {
            return true;
        }
        let namespace = |pid: &str| fs::metadata(format!("/proc/{pid}/ns/mnt")).map(|meta| meta.ino()).ok();
        namespace("1").is_some_and(|theirs| Some(theirs) != namespace("self"))
    }

    /// Every process that can be seen, but for those that end meanwhile.
    pub fn processes(&self) -> Vec<Process> {
        self.pids().into_iter().filter_map(|pid| self.process(pid)).collect()
    }

    fn pids(&self) -> Vec<i32> {
        let entries = fs::read_dir(self.proc()).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
    }

    fn process(&self, pid: i32) -> Option<Process> {
        let dir = self.proc().join(pid.to_string());
        let stat = fs::read_to_string(dir.join("stat")).ok()?;
        // The name is in parentheses and may itself hold any (proc_pid_stat(5)); the start is the 22nd field.
        let (head, tail) = stat.rsplit_once(')')?;
        let name = head.split_once('(')?.1.to_owned();
        let started = tail.split_whitespace().nth(19)?.parse().ok()?;
        let argv = fs::read(dir.join("cmdline")).ok()?;
        let argv = argv.split(|b| *b == 0).map(|arg| String::from_utf8_lossy(arg).into_owned());
        let mut argv: Vec<String> = argv.collect();
        argv.pop();
        Some(Process { pid, name, argv, started })
    }

    /// Which of these sets of files are programs that processes run from now: the pids by the set's key. `None` if a
    /// process could not be looked at; then nobody knows.
    pub fn runs<'a>(&self, sets: &BTreeMap<&'a str, BTreeSet<FileId>>) -> Option<BTreeMap<&'a str, Vec<i32>>> {
        if !self.sees_processes() {
            return None;
        }
        let mut found: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
        // Process 1 is the node's init, which may have more capabilities than we, and then cannot be looked at.
        for pid in self.pids().into_iter().filter(|pid| *pid != 1) {
            // Following this link needs no path that we could see: it leads to the file itself.
            let exe = match fs::metadata(self.proc().join(pid.to_string()).join("exe")) {
                Ok(meta) => (meta.dev(), meta.ino()),
                // Gone, or a thread of the kernel.
                Err(err) if matches!(err.raw_os_error(), Some(libc_enoent::ENOENT | libc_enoent::ESRCH)) => continue,
                Err(_) => return None,
            };
            for (name, files) in sets {
                if files.contains(&exe) {
                    found.entry(name).or_default().push(pid);
                }
            }
        }
        Some(found)
    }

    /// Now.
    ///
    /// # Errors
    /// A node without /proc.
    pub fn now(&self) -> Result<Moment, DeployError> {
        let path = self.proc().join("sys/kernel/random/boot_id");
        let boot_id = fs::read_to_string(&path).map_err(io("read", &path))?.trim().to_owned();
        let path = self.proc().join("uptime");
        let uptime = fs::read_to_string(&path).map_err(io("read", &path))?;
        let seconds: f64 = uptime.split(' ').next().and_then(|s| s.parse().ok()).unwrap_or_default();
        // Both are in hundredths of a second: USER_HZ is 100 on every architecture we build for.
        Ok(Moment { boot_id, ticks: (seconds * rustix::param::clock_ticks_per_second() as f64) as u64 })
    }
}

/// The two errors that mean "no such process any more".
mod libc_enoent {
    pub const ENOENT: i32 = rustix::io::Errno::NOENT.raw_os_error();
    pub const ESRCH: i32 = rustix::io::Errno::SRCH.raw_os_error();
}

/// Refuses a relative path.
///
/// # Errors
/// [`DeployError::NotAbsolute`].
pub fn absolute(name: &'static str, path: &Path) -> Result<(), DeployError> {
    if path.is_absolute() { Ok(()) } else { Err(DeployError::NotAbsolute { name, path: path.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_as_the_node_would() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("var/opt/kata")).unwrap();
        symlink("/var/opt", root.join("opt")).unwrap();
        symlink("../../../..", root.join("var/opt/up")).unwrap();
        symlink("circle", root.join("circle")).unwrap();
        let host = Host::new(root).unwrap();
        let at = |path: &str| host.at(Path::new(path));
        assert_eq!(at("/opt/kata/bin").unwrap(), root.join("var/opt/kata/bin"));
        assert_eq!(at("/opt/up/etc").unwrap(), root.join("etc"), "not above the node's root");
        assert_eq!(at("/nothing/here").unwrap(), root.join("nothing/here"));
        assert!(matches!(at("/circle/x"), Err(DeployError::Links { .. })));
        assert!(matches!(Host::new(Path::new("a/b")), Err(DeployError::NotAbsolute { .. })));
    }

    #[test]
    fn a_running_program_is_known_by_its_file() {
        let host = Host::new(Path::new("/")).unwrap();
        let me = fs::metadata("/proc/self/exe").unwrap();
        let sets = BTreeMap::from([("me", BTreeSet::from([(me.dev(), me.ino())])), ("no", BTreeSet::new())]);
        let Some(runs) = host.runs(&sets) else {
            assert!(!rustix::process::geteuid().is_root(), "root may look at every process");
            return;
        };
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(runs["me"].contains(&pid) && !runs.contains_key("no"));
        let process = host.processes().into_iter().find(|p| p.pid == pid).unwrap();
        assert!(process.started <= host.now().unwrap().ticks && !process.argv.is_empty());
    }

    #[test]
    fn flags_are_found_in_each_form() {
        let with = |args: &[&str]| {
            let argv = args.iter().map(|a| (*a).to_owned()).collect();
            let process = Process { pid: 1, name: String::new(), argv, started: 0 };
            process.flag(&["--config", "-c"]).map(str::to_owned)
        };
        assert_eq!(with(&["containerd"]), None);
        assert_eq!(with(&["containerd", "--config", "/a"]).as_deref(), Some("/a"));
        assert_eq!(with(&["containerd", "--config=/a"]).as_deref(), Some("/a"));
        assert_eq!(with(&["containerd", "-c", "/a"]).as_deref(), Some("/a"));
        assert_eq!(with(&["containerd", "--configuration", "/a"]), None);
    }
}
