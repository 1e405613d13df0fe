//! What the processes of an idle sandbox hold, by proportional set size: a page that several share counts once in all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// What a sandbox's processes descend from, by the beginning of the program's name. Anything else that was started
/// meanwhile is somebody else's.
const ROOTS: &[&str] = &["containerd-shim", "kata", "qemu-system"];

/// One process.
#[derive(Debug)]
pub struct Process {
    /// What it was started as.
    pub name: String,
    /// KiB.
    pub pss_kib: u64,
}

/// Every process there is.
pub fn pids() -> BTreeSet<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The sandbox's processes that have come since `before`, the largest first.
pub fn of_new_processes(before: &BTreeSet<u32>) -> Vec<Process> {
    of_descendants(before, ROOTS)
}

fn of_descendants(before: &BTreeSet<u32>, roots: &[&str]) -> Vec<Process> {
    let new: BTreeSet<u32> = pids().difference(before).copied().collect();
    let parents: BTreeMap<u32, u32> = new.iter().filter_map(|pid| Some((*pid, parent_of(*pid)?))).collect();
    let is_ours = |pid: u32| {
        let mut up = Some(pid);
        std::iter::from_fn(|| {
            let this = up.filter(|pid| new.contains(pid))?;
            up = parents.get(&this).copied();
            Some(this)
        })
        .any(|pid| program_of(pid).is_some_and(|name| roots.iter().any(|root| name.starts_with(root))))
    };
    let mut found: Vec<Process> = new.iter().filter(|pid| is_ours(**pid)).filter_map(|pid| of(*pid)).collect();
    found.sort_by_key(|process| std::cmp::Reverse(process.pss_kib));
    found
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // "pid (name) state ppid ...", and the name may hold anything.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// The words of its command line.
fn words_of(pid: u32) -> Vec<String> {
    let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    cmdline.split(|b| *b == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// What it was started as, without the path; `None` for kernel threads and zombies.
fn program_of(pid: u32) -> Option<String> {
    let program = words_of(pid).into_iter().next()?;
    program.rsplit('/').next().filter(|name| !name.is_empty()).map(str::to_owned)
}

fn of(pid: u32) -> Option<Process> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let pss_kib =
        rollup.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.parse().ok())?;
    let program = program_of(pid)?;
    // Our own program's mode.
    let mode = words_of(pid).into_iter().nth(1).filter(|word| !word.starts_with('-')).unwrap_or_default();
    Some(Process { name: format!("{program} {mode}").trim().to_owned(), pss_kib })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_processes_of_the_right_family_count() {
        let mut old = std::process::Command::new("sleep").arg("30").spawn().unwrap();
        let before = pids();
        let mut shell = std::process::Command::new("sh").args(["-c", "sleep 30 & wait"]).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(300));
        let as_family = of_descendants(&before, &["sh"]);
        let as_other = of_descendants(&before, &["no-such-program"]);
        let child = pids().into_iter().find(|pid| parent_of(*pid) == Some(shell.id()));
        crate::run::succeeds("kill", &[&child.unwrap().to_string()]);
        old.kill().unwrap();
        old.wait().unwrap();
        shell.wait().unwrap();
        assert!(as_family.iter().any(|p| p.name.starts_with("sh")) && as_family.iter().any(|p| p.name == "sleep 30"));
        assert!(as_family.iter().all(|p| p.pss_kib > 0));
        assert!(as_other.is_empty());
    }
}
