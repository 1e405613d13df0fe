//! Looking at the host.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::pool::Pool;
use super::{Kind, firewall, walk};

/// Where sandboxes, and the containers of the command line, have their state.
const OURS: [&str; 2] = ["/run/kata", "/run/kata-containers"];
/// Where network namespaces have names, and CNI plugins keep what they gave to a container.
const NETWORKS: [&str; 3] = ["/run/netns", "/var/lib/cni/results", "/var/lib/cni/networks"];
/// What stays there on purpose: the accelerator's verdict and the counter's frequency of this boot, the
/// lock on uids, digests of files, templates,
/// the factory's log.
const STAYS: [&str; 6] = [
    "/run/kata/accel-",
    "/run/kata/tsc-",
    "/run/kata/uids",
    "/run/kata/digests",
    "/run/kata/templates",
    "/run/kata/factory.log",
];
/// Programs whose processes are nobody else's business on a host that runs these tests.
const PROGRAMS: [&str; 19] = [
    "kata",
    "kata-factory",
    "kata-runtime",
    "kata-sandbox",
    "kata-shim",
    "containerd-shim-kata-v2",
    "containerd",
    "containerd-shim",
    "containerd-shim-runc-v2",
    "ctr",
    "docker",
    "docker-init",
    "docker-proxy",
    "dockerd",
    "conmon",
    "podman",
    "runc",
    "crun",
    "virtiofsd",
];
const VMM: &str = "qemu-system-";

/// Tells of everything there is.
pub fn look(roots: &[PathBuf], mut found: impl FnMut(Kind, String, String)) {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounts: Vec<Mount> = mountinfo.lines().filter_map(Mount::parse).collect();
    let pool = Pool::now();
    processes(&pool, &mut found);
    let names = mounts.iter().position(Mount::is_of_names);
    for (_, m) in mounts.iter().enumerate().filter(|(at, _)| Some(*at) != names) {
        found(Kind::Mount, format!("{} ({} {})", m.point, m.kind, m.source), String::new());
    }
    for (inode, who) in network_namespaces(&mounts, &pool) {
        found(Kind::NetworkNamespace, inode, who);
    }
    for name in interfaces() {
        found(Kind::Interface, name, String::new());
    }
    firewall::look(|rule| found(Kind::Firewall, rule, String::new()));
    for dir in cgroups(&mounts) {
        found(Kind::Cgroup, dir, String::new());
    }
    let places: Vec<&Path> =
        OURS.iter().chain(&NETWORKS).map(Path::new).chain(roots.iter().map(PathBuf::as_path)).collect();
    for path in
        sockets().into_iter().filter(|path| !Pool::has_path(path) && places.iter().any(|place| path.starts_with(place)))
    {
        found(Kind::Socket, path.display().to_string(), String::new());
    }
    for place in places {
        walk(place, &mut |path| {
            if Pool::has_path(path) {
                return;
            }
            let path = path.to_string_lossy();
            if !STAYS.iter().any(|stays| path.starts_with(stays)) {
                found(Kind::File, path.into_owned(), String::new());
            }
        });
    }
}

struct Mount {
    point: String,
    kind: String,
    source: String,
    /// In its file system; `net:[4026531840]` for a network namespace.
    root: String,
}

impl Mount {
    /// The directory of named network namespaces, which the first `ip netns add` (ip-netns(8)), or a library for containers'
    /// networks, makes a mount, once after each boot, and which is left so for all that come after.
    fn is_of_names(&self) -> bool {
        self.point == NETWORKS[0] && self.kind != "nsfs"
    }

    /// One line of proc_pid_mountinfo(5).
    fn parse(line: &str) -> Option<Mount> {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let (root, point) = (before.next()?, before.next()?);
        let mut after = after.split(' ');
        let (kind, source) = (after.next()?, after.next()?);
        Some(Mount { point: point.into(), kind: kind.into(), source: source.into(), root: root.into() })
    }
}

/// The pids of all processes.
pub(super) fn pids() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok())
}

fn processes(pool: &Pool, found: &mut impl FnMut(Kind, String, String)) {
    for pid in pids().filter(|pid| *pid != std::process::id() && !pool.has(*pid)) {
        let dir = PathBuf::from(format!("/proc/{pid}"));
        let Some((start, zombie)) = birth(&dir) else { continue };
        // One that nobody reaps holds nothing; its parent, if it is ours, is found itself.
        if zombie {
            continue;
        }
        let argv = fs::read(dir.join("cmdline")).unwrap_or_default();
        let argv: Vec<String> = argv.split(|b| *b == 0).map(|arg| String::from_utf8_lossy(arg).into_owned()).collect();
        let exe = fs::read_link(dir.join("exe")).unwrap_or_default().to_string_lossy().into_owned();
        let comm = fs::read_to_string(dir.join("comm")).unwrap_or_default();
        if is_ours(&argv, &exe, comm.trim()) {
            let shown: String = argv.join(" ").chars().take(200).collect();
            found(Kind::Process, format!("{pid} (started at tick {start})"), format!("{exe}: {shown}"));
        }
    }
}

fn is_ours(argv: &[String], exe: &str, comm: &str) -> bool {
    let base = |path: &str| path.trim_end_matches(" (deleted)").rsplit('/').next().unwrap_or_default().to_owned();
    // A stand-in shows its container's command as its own: only its executable tells.
    let names = [base(argv.first().map_or("", String::as_str)), base(exe), comm.to_owned()];
    names.iter().any(|name| PROGRAMS.contains(&name.as_str()) || name.starts_with(VMM))
        || argv.iter().any(|arg| arg.contains("/run/kata/"))
}

/// When a process started, in clock ticks since boot, and whether it is a zombie.
fn birth(dir: &Path) -> Option<(u64, bool)> {
    let stat = fs::read_to_string(dir.join("stat")).ok()?;
    // The name may hold spaces and parentheses: fields are counted after the last ')'.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let zombie = matches!(fields.next()?, "Z" | "X");
    Some((fields.nth(18)?.parse().ok()?, zombie))
}

/// By inode; with who holds it.
fn network_namespaces(mounts: &[Mount], pool: &Pool) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for m in mounts.iter().filter(|m| m.root.starts_with("net:[")) {
        all.insert(m.root.clone(), format!("the mount {}", m.point));
    }
    for pid in pids().filter(|pid| !pool.has(*pid)) {
        if let Ok(link) = fs::read_link(format!("/proc/{pid}/ns/net")) {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            all.entry(link.to_string_lossy().into_owned()).or_insert(format!("process {pid} ({})", comm.trim()));
        }
    }
    all
}

fn interfaces() -> Vec<String> {
    let text = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    text.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim().to_owned()).collect()
}

fn cgroups(mounts: &[Mount]) -> Vec<String> {
    let mut dirs = Vec::new();
    let mut seen = BTreeSet::new();
    for m in mounts.iter().filter(|m| m.kind == "cgroup" || m.kind == "cgroup2") {
        let point = Path::new(&m.point);
        // One hierarchy can be mounted at several places.
        let Ok(metadata) = fs::metadata(point) else { continue };
        if seen.insert((metadata.dev(), metadata.ino())) {
            walk_dirs(point, &mut dirs);
        }
    }
    dirs
}

fn walk_dirs(dir: &Path, into: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            into.push(entry.path().display().to_string());
            walk_dirs(&entry.path(), into);
        }
    }
}

/// The paths of all bound sockets of this network namespace.
fn sockets() -> BTreeSet<PathBuf> {
    let text = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    // Num RefCount Protocol Flags Type St Inode Path
    text.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().nth(7)).map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_are_told_from_others() {
        let argv = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert!(is_ours(&argv("sh -c x"), "/opt/bin/kata (deleted)", "sh"));
        assert!(is_ours(&argv("/proc/self/exe virtiofsd --root /run/kata/1/share"), "", "exe"));
        assert!(is_ours(&argv("/usr/bin/qemu-system-x86_64 -m 1"), "/usr/bin/qemu-system-x86_64", "qemu-system-x86"));
        assert!(!is_ours(&argv("sh -c x"), "/bin/dash", "sh"));
        assert!(!is_ours(&argv("cargo test --package kata-system-tests"), "/bin/cargo", "cargo"));
    }

    #[test]
    fn a_line_of_mountinfo() {
        let line = "41 31 0:38 net:[402] /run/netns/x rw shared:3 master:1 - nsfs nsfs rw";
        let m = Mount::parse(line).unwrap();
        assert_eq!((m.root.as_str(), m.point.as_str(), m.kind.as_str()), ("net:[402]", "/run/netns/x", "nsfs"));
        assert!(!m.is_of_names());
        assert!(Mount::parse("40 31 0:38 /netns /run/netns rw shared:3 - tmpfs tmpfs rw").unwrap().is_of_names());
    }
}
