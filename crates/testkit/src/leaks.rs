//! The leak checker: what was on the host before a test, and what is there after it that was not.
//!
//! Processes of ours and of engines, mounts, network namespaces and interfaces, rules of CNI plugins, cgroups of every
//! hierarchy, unix sockets, and files where sandboxes and tests keep theirs. It looks at the whole host, not at what the product
//! recorded of itself: what the product forgets is what it must find.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

mod firewall;
mod host;
mod pool;

/// How long the host may take to come to rest: a killed process to go, the kernel to drop its namespaces.
const SETTLES_WITHIN: Duration = Duration::from_secs(5);

/// The kinds of things that can be left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A process of ours, of a VMM, or of an engine.
    Process,
    /// A mount in the test's mount namespace.
    Mount,
    /// A network namespace that a process or a mount holds.
    NetworkNamespace,
    /// A network interface (taps among them).
    Interface,
    /// A directory of a cgroup hierarchy.
    Cgroup,
    /// A bound unix socket.
    Socket,
    /// A file or directory.
    File,
    /// A chain or a rule of the firewall.
    Firewall,
}

/// Everything that was there at one moment. How many times, because one place can be mounted over twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    roots: Vec<PathBuf>,
    things: BTreeMap<(Kind, String), Thing>,
}

/// Of one kind and name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Thing {
    count: usize,
    /// More about it, which may change while it stays the same thing.
    detail: String,
}

impl Snapshot {
    /// The host now.
    pub fn take() -> Snapshot {
        Snapshot::with(&[])
    }

    /// The host now; files and sockets below `roots` count too.
    pub fn with(roots: &[PathBuf]) -> Snapshot {
        let mut things = BTreeMap::new();
        host::look(roots, |kind, name, detail| {
            let thing: &mut Thing = things.entry((kind, name)).or_default();
            thing.count += 1;
            thing.detail = detail;
        });
        Snapshot { roots: roots.to_vec(), things }
    }

    /// What is there now and was not then, once the host has come to rest; empty if nothing is.
    pub fn compare(&self) -> Vec<String> {
        let start = Instant::now();
        loop {
            let new = self.new_in(&Snapshot::with(&self.roots));
            if new.is_empty() || start.elapsed() > SETTLES_WITHIN {
                return new;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn new_in(&self, now: &Snapshot) -> Vec<String> {
        let before = |what| self.things.get(what).map_or(0, |thing| thing.count);
        let new = now.things.iter().filter(|(what, thing)| thing.count > before(what));
        new.map(|((kind, name), thing)| format!("{kind:?}: {name} {}", thing.detail).trim_end().to_owned()).collect()
    }
}

/// Fails the test at its end if it left anything behind, naming it. Made first, so that it is dropped last.
pub struct Guard {
    before: Snapshot,
}

impl Guard {
    /// Looks at the host as it is before the test.
    #[must_use = "the test is checked when the guard is dropped"]
    pub fn new() -> Guard {
        Guard { before: Snapshot::take() }
    }
}

impl Default for Guard {
    fn default() -> Self {
        Guard::new()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let left = self.before.compare();
        if left.is_empty() {
            return;
        }
        let left = left.join("\n  ");
        if std::thread::panicking() {
            println!("the failed test also left behind:\n  {left}");
        } else {
            panic!("the test left behind:\n  {left}");
        }
    }
}

/// Every path below `dir`, which need not exist; links are not followed.
fn walk(dir: &Path, visit: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        visit(&entry.path());
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            walk(&entry.path(), visit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::os::unix::process::CommandExt;

    #[test]
    fn files_sockets_and_processes_are_found_and_only_new_ones() {
        let dir = tempfile::tempdir().unwrap();
        let root = [dir.path().to_owned()];
        fs::write(dir.path().join("old"), "").unwrap();
        let before = Snapshot::with(&root);
        assert_eq!(before.new_in(&Snapshot::with(&root)), Vec::<String>::new());

        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/new"), "").unwrap();
        let socket = UnixListener::bind(dir.path().join("sock")).unwrap();
        let mut child = std::process::Command::new("sleep").arg0("qemu-system-test").arg("100").spawn().unwrap();
        let found = before.new_in(&Snapshot::with(&root)).join("\n");
        drop(child.kill());
        drop(child.wait());
        for what in ["File: ", "d/new", "Socket: ", "/sock", "Process: ", "qemu-system-test"] {
            assert!(found.contains(what), "{what} in {found}");
        }
        assert!(!found.contains("old"), "{found}");
        drop(socket);
        fs::remove_file(dir.path().join("sock")).unwrap();
        fs::remove_dir_all(dir.path().join("d")).unwrap();
        assert_eq!(before.compare(), Vec::<String>::new());
    }

    #[test]
    fn a_second_mount_over_the_first_is_new() {
        let one = |count| Snapshot {
            roots: Vec::new(),
            things: BTreeMap::from([((Kind::Mount, "/x".to_owned()), Thing { count, detail: String::new() })]),
        };
        assert_eq!(one(1).new_in(&one(2)), ["Mount: /x"]);
        assert!(one(2).new_in(&one(1)).is_empty());
    }
}
