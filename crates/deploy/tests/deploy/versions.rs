//! Versions beside each other, what runs from them, and crashes between any two steps.

use std::fs;
use std::path::Path;

use kata_deploy::error::DeployError;
use kata_deploy::host::{Host, Moment};
use kata_deploy::remove::Removed;

use crate::node::{CONTAINERD, Node, fixture};

fn versions(node: &Node) -> Vec<String> {
    let entries = fs::read_dir(node.path("opt/kata/versions")).into_iter().flatten();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_tree_is_copied_without_what_is_somebody_elses() {
    let node = Node::with(&[]);
    let done = node.containerd(&[]).unwrap();
    assert_eq!(versions(&node), [&*done.version]);
    assert_eq!(fs::read_link(node.path("opt/kata/current")).unwrap(), Path::new("versions").join(&done.version));
    for path in
        ["bin/kata", "bin/containerd-shim-kata-v2", "share/kata-containers/vmlinux.elf", "libexec/kata-containers/qemu"]
    {
        assert!(node.path("opt/kata").join(path).exists(), "{path}");
        assert!(node.path("opt/kata/current").join(path).exists(), "{path}");
    }
    assert!(fs::symlink_metadata(node.path("opt/kata/bin/kata-runtime")).unwrap().is_symlink());
    assert!(!node.path("opt/kata/bin/somebody-elses").exists());
    assert!(!node.path("opt/kata/share/kata-containers/manifest").exists());
    let status = node.status().unwrap();
    assert_eq!((status.version, status.configured, status.removing), (done.version, true, false));
}

#[test]
fn an_upgrade_leaves_what_runs_where_it_is() {
    let node = Node::with(&[]);
    let old = node.containerd(&[]).unwrap().version;
    let config = node.read(CONTAINERD);
    let mut sandbox = node.runs("kata", &["1000"]);
    node.source("two");
    let done = node.containerd(&[]).unwrap();
    assert_ne!(done.version, old);
    assert_eq!(done.kept.versions.get(&old), Some(&vec![sandbox.pid()]));
    assert!(!done.changed && node.read(CONTAINERD) == config, "the engine need not know");
    assert_eq!(node.read("opt/kata/current/share/kata-containers/vmlinux.elf"), "two");
    assert_eq!(node.read(&format!("opt/kata/versions/{old}/share/kata-containers/vmlinux.elf")), "one");
    assert_eq!(node.status().unwrap().versions[&old].as_deref(), Some(&[sandbox.pid()][..]));
    assert!(sandbox.lives());

    // Removing: the engine no longer has it, the files stay for those who run from them, also the current ones.
    let Removed::InUse { users, .. } = node.remove().unwrap() else { panic!() };
    assert_eq!(users.versions.keys().collect::<Vec<_>>(), [&old]);
    assert!(!node.path(CONTAINERD).exists() && sandbox.lives());
    assert!(node.path("opt/kata/current/bin/containerd-shim-kata-v2").exists());
    assert!(node.status().unwrap().removing);
    drop(sandbox);
    node.removed();
    assert!(!node.path("opt/kata").exists());
    assert!(matches!(node.remove().unwrap(), Removed::Nothing));
}

#[test]
fn an_old_version_goes_when_nobody_runs_from_it() {
    let node = Node::with(&[]);
    let old = node.containerd(&[]).unwrap().version;
    let sandbox = node.runs("kata", &["1000"]);
    for word in ["two", "three"] {
        node.source(word);
        node.containerd(&[]).unwrap();
    }
    assert_eq!(versions(&node).len(), 2, "the one between is gone");
    drop(sandbox);
    let done = node.containerd(&[]).unwrap();
    assert_eq!(versions(&node), [done.version]);
    // And back to a version that is there still, or again.
    node.source("one");
    assert_eq!(node.containerd(&[]).unwrap().version, old);
}

#[test]
fn keepers_of_old_versions_are_told_to_end_and_sandboxes_are_not() {
    let node = Node::with(&[]);
    node.containerd(&[]).unwrap();
    // A program that takes any words: the shell, in the place of ours.
    let current = node.path("opt/kata/current/bin/kata");
    fs::remove_file(&current).unwrap();
    fs::copy("/bin/sh", &current).unwrap();
    let script = node.dir.path().join("factory-daemon");
    fs::write(&script, "sleep 1000 & wait").unwrap();
    let run = |word: &str| {
        use std::os::unix::process::CommandExt;
        let mut command = std::process::Command::new(&current);
        command.arg0("kata").arg(word).current_dir(node.dir.path()).process_group(0);
        crate::node::Running(command.spawn().unwrap())
    };
    fs::copy(&script, node.dir.path().join("sandbox-daemon")).unwrap();
    let mut keeper = run("factory-daemon");
    let mut sandbox = run("sandbox-daemon");
    node.source("two");
    let done = node.containerd(&[]).unwrap();
    let status = keeper.0.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(15));
    assert!(sandbox.lives());
    let kept: Vec<i32> = done.kept.versions.into_values().flatten().collect();
    assert!(kept.contains(&sandbox.pid()), "{kept:?}");
    for process in [&keeper, &sandbox] {
        let group = rustix::process::Pid::from_raw(process.pid()).unwrap();
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
}

#[test]
fn a_crash_after_any_step_is_repeated_or_undone() {
    let files = [(CONTAINERD, fixture("containerd-hand.toml"))];
    let files: Vec<(&str, &str)> = files.iter().map(|(p, t)| (*p, t.as_str())).collect();
    // What is on the disk at each step, by undoing the later ones of a whole installation.
    type Crash = fn(&Node);
    let steps: [(&str, Crash); 4] = [
        ("the record is written", |node| {
            for path in ["bin", "libexec", "share", "current"] {
                fs::remove_file(node.path("opt/kata").join(path)).unwrap();
            }
            fs::remove_dir_all(node.path("opt/kata/versions")).unwrap();
            node.write(CONTAINERD, &fixture("containerd-hand.toml"));
        }),
        ("half of the tree is copied", |node| {
            for path in ["bin", "libexec", "share", "current"] {
                fs::remove_file(node.path("opt/kata").join(path)).unwrap();
            }
            let version = versions(node).remove(0);
            let at = |name: &str| node.path("opt/kata/versions").join(name);
            fs::rename(at(&version), at(&format!(".{version}"))).unwrap();
            fs::remove_dir_all(at(&format!(".{version}")).join("share")).unwrap();
            node.write(CONTAINERD, &fixture("containerd-hand.toml"));
        }),
        ("the files are there", |node| {
            node.write(CONTAINERD, &fixture("containerd-hand.toml"));
            node.write("etc/containerd/.config.toml.kata-deploy", "half of it");
        }),
        ("all is there", |_| {}),
    ];
    for (step, crash) in steps {
        let node = Node::with(&files);
        let picture = node.picture();
        node.containerd(&[]).unwrap();
        let whole = node.picture();
        crash(&node);
        node.containerd(&[]).unwrap_or_else(|e| panic!("{step}: {e}"));
        let again = node.picture();
        let differ = |a: &crate::node::Picture, b: &crate::node::Picture| -> Vec<_> {
            let names: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).cloned().collect();
            names.into_iter().filter(|n| a.get(n) != b.get(n) && !n.ends_with("deploy.json")).collect()
        };
        assert_eq!(differ(&again, &whole), Vec::<std::path::PathBuf>::new(), "{step}, installed again");
        crash(&node);
        node.removed();
        let mut now = node.picture();
        now.remove(Path::new("opt"));
        now.remove(Path::new("etc/containerd/.config.toml.kata-deploy"));
        assert_eq!(differ(&now, &picture), Vec::<std::path::PathBuf>::new(), "{step}, removed");
    }
}

#[test]
fn a_removal_that_crashed_is_finished() {
    let node = Node::with(&[(CONTAINERD, &fixture("containerd-hand.toml"))]);
    node.containerd(&[]).unwrap();
    // The configuration is undone, the files are half gone.
    node.write(CONTAINERD, &fixture("containerd-hand.toml"));
    fs::remove_file(node.path("opt/kata/current")).unwrap();
    node.removed();
    assert_eq!(node.read(CONTAINERD), fixture("containerd-hand.toml"));
    assert!(!node.path("opt/kata").exists());
}

#[test]
fn what_is_not_ours_is_not_taken_over() {
    let node = Node::with(&[("opt/kata/current/x", "")]);
    let err = node.containerd(&[]).unwrap_err();
    assert!(matches!(&err, DeployError::ForeignPrefix { .. }), "{err}");
    let node = Node::with(&[("opt/kata/deploy.json", "{\"format\": 7}")]);
    assert!(matches!(node.containerd(&[]), Err(DeployError::Record { .. })));
    assert!(matches!(node.remove(), Err(DeployError::Record { .. })));
    let node = Node::with(&[]);
    fs::remove_file(node.dir.path().join("source/bin/kata-runtime")).unwrap();
    let err = node.containerd(&[]).unwrap_err().to_string();
    assert!(err.contains("bin/kata-runtime") && err.contains("--source"), "{err}");
    let err = node.install(&[]).unwrap_err();
    // Somebody's containerd may run on this very machine.
    assert!(matches!(err, DeployError::NoEngine { .. } | DeployError::NotAnInstallation { .. }), "{err}");
}

#[test]
fn two_at_once_do_not_mix() {
    let node = Node::with(&[]);
    fs::create_dir_all(node.path("opt/kata")).unwrap();
    let lock = fs::File::create(node.path("opt/kata/.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    assert!(matches!(node.containerd(&[]), Err(DeployError::Busy { .. })));
}

#[test]
fn a_restart_is_told_from_the_engines_start() {
    use kata_deploy::engine::Engine;
    // An "engine" on the node: a process of that name.
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("crio");
    fs::copy("/bin/sleep", &program).unwrap();
    let host = Host::new(Path::new("/")).unwrap();
    let config = Path::new("/nowhere");
    let now = || Engine::Crio.restarted(&host, config, &host.now().unwrap()).unwrap();
    if now().is_some() {
        println!("SKIP: a CRI-O runs on this machine");
        return;
    }
    let before = host.now().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(30));
    let engine = crate::node::Running(std::process::Command::new(&program).arg("1000").spawn().unwrap());
    std::thread::sleep(std::time::Duration::from_millis(30));
    assert_eq!(Engine::Crio.restarted(&host, config, &before).unwrap(), Some(true));
    assert_eq!(now(), Some(false));
    let earlier = Moment { boot_id: "another".into(), ticks: u64::MAX };
    assert_eq!(Engine::Crio.restarted(&host, config, &earlier).unwrap(), Some(true), "the machine has been");
    drop(engine);
    assert_eq!(now(), None);
}
