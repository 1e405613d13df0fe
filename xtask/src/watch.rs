//! Reading a command's output line by line, and ending it with all its descendants when it says nothing for too long.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::run;

/// How the command ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, with 0 or not.
    Exited(bool),
    /// It was silent for too long and has been killed.
    Hung,
}

/// Runs `command` and hands each line of its stdout to `each`; stderr is ours.
///
/// # Errors
/// It could not be started.
pub fn lines(command: &mut Command, silence: Duration, mut each: impl FnMut(&str)) -> Result<End> {
    let shown = run::show(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{shown}`"))?;
    let stdout = child.stdout.take().context("a piped stdout")?;
    let (send, receive) = mpsc::channel();
    // Not joined: a descendant that has left the tree may keep the pipe open.
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            if send.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });
    let mut quiet = Duration::ZERO;
    let tick = Duration::from_millis(500).min(silence);
    loop {
        match receive.recv_timeout(tick) {
            Ok(line) => {
                quiet = Duration::ZERO;
                each(&line);
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(End::Exited(child.wait()?.success())),
            Err(RecvTimeoutError::Timeout) => {
                if let Some(status) = child.try_wait()? {
                    // It has ended, and what it wrote last may still be on its way.
                    while let Ok(line) = receive.recv_timeout(tick) {
                        each(&line);
                    }
                    return Ok(End::Exited(status.success()));
                }
                quiet += tick;
                if quiet >= silence {
                    eprintln!("`{shown}` has been silent for {}; it is killed", run::seconds(quiet));
                    kill_tree(&mut child);
                    return Ok(End::Hung);
                }
            }
        }
    }
}

fn kill_tree(child: &mut Child) {
    let mut parents: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // "pid (name) state ppid ...", and the name may hold anything.
        let ppid = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        parents.entry(ppid.unwrap_or(0)).or_default().push(pid);
    }
    let mut doomed = BTreeSet::new();
    let mut todo = vec![child.id()];
    while let Some(pid) = todo.pop() {
        if doomed.insert(pid) {
            todo.extend(parents.get(&pid).into_iter().flatten());
        }
    }
    let pids: Vec<String> = doomed.iter().map(u32::to_string).collect();
    run::succeeds("kill", &["-KILL"].into_iter().chain(pids.iter().map(String::as_str)).collect::<Vec<_>>());
    drop(child.wait());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_in_order_with_the_status() {
        let mut got = Vec::new();
        let mut command = run::cmd("sh", ["-c", "echo a; echo b; exit 3"]);
        let end = lines(&mut command, Duration::from_secs(20), |line| got.push(line.to_owned())).unwrap();
        assert_eq!((end, got), (End::Exited(false), vec!["a".to_owned(), "b".into()]));
    }

    #[test]
    fn silence_is_ended_with_the_grandchildren() {
        let mut pid = String::new();
        let mut command = run::cmd("sh", ["-c", "sleep 1000 & echo $!; wait"]);
        let end = lines(&mut command, Duration::from_millis(700), |line| pid = line.to_owned()).unwrap();
        assert_eq!(end, End::Hung);
        // A signal has been sent; the process needs a moment to be gone (or a zombie, where nobody reaps orphans).
        let gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z")
        };
        let start = std::time::Instant::now();
        while !gone() {
            assert!(start.elapsed() < Duration::from_secs(10), "{pid} lives");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
