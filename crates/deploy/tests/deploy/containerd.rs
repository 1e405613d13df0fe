//! containerd's configuration on a node in a directory: what is added, and that nothing else changes.

use crate::node::{CONTAINERD, Node, fixture};
use kata_deploy::error::DeployError;
use toml_edit::{DocumentMut, Item};

const V2: &str = "io.containerd.grpc.v1.cri";
const V3: &str = "io.containerd.cri.v1.runtime";

fn runtimes(text: &str, plugin: &str) -> Item {
    let doc: DocumentMut = text.parse().unwrap();
    doc["plugins"][plugin]["containerd"]["runtimes"].clone()
}

fn names(text: &str, plugin: &str) -> Vec<String> {
    runtimes(text, plugin).as_table_like().unwrap().iter().map(|(name, _)| name.to_owned()).collect()
}

/// Lines of `new` that are not in `old`, in which every other line is still there in its place.
fn added<'a>(old: &str, new: &'a str) -> Vec<&'a str> {
    let mut old = old.lines().peekable();
    let added = new.lines().filter(|line| if old.peek() == Some(line) { old.next().is_none() } else { true }).collect();
    assert_eq!(old.next(), None, "a line was changed");
    added
}

#[test]
fn each_kind_of_configuration_gets_one_table_and_its_bytes_back() {
    for (name, plugin) in
        [("containerd-1.6-default.toml", V2), ("containerd-2.1-default.toml", V3), ("containerd-hand.toml", V2)]
    {
        let before = fixture(name);
        let node = Node::with(&[(CONTAINERD, &before)]);
        let picture = node.picture();
        let done = node.containerd(&[]).unwrap();
        assert!(done.changed && done.config.to_str() == Some("/etc/containerd/config.toml"));
        let after = node.read(CONTAINERD);
        let new: Vec<&str> = added(&before, &after).into_iter().filter(|line| !line.is_empty()).collect();
        let header = new[0].trim();
        assert!(header.starts_with("[plugins.") && header.ends_with(".containerd.runtimes.kata]"), "{name}: {new:?}");
        let shim = "/opt/kata/current/bin/containerd-shim-kata-v2";
        let program = match plugin {
            V2 => format!("runtime_type = {shim:?}"),
            _ => format!("runtime_type = \"io.containerd.kata.v2\"\nruntime_path = {shim:?}"),
        };
        let lines = program.lines();
        assert_eq!(
            new[1..].iter().map(|l| l.trim()).collect::<Vec<_>>(),
            lines
                .chain(["privileged_without_host_devices = true", "pod_annotations = [\"io.katacontainers.*\"]"])
                .collect::<Vec<_>>(),
            "{name}"
        );
        assert!(runtimes(&after, plugin)["kata"].is_table(), "{name}");
        // Once more changes nothing at all.
        let installed = node.picture();
        assert!(!node.containerd(&[]).unwrap().changed);
        assert_eq!(node.picture(), installed, "{name}");
        node.removed();
        assert_eq!(without_opt(node.picture()), picture, "{name}");
    }
}

/// But for the directory above the prefix, which stays: every node has it.
fn without_opt(mut picture: crate::node::Picture) -> crate::node::Picture {
    picture.remove(std::path::Path::new("opt"));
    picture
}

#[test]
fn without_a_file_a_minimal_one_is_made_that_keeps_runc_and_is_taken_away() {
    for files in [&[][..], &[(CONTAINERD, "")], &[(CONTAINERD, "# nothing yet\n")]] {
        let node = Node::with(files);
        let picture = node.picture();
        node.containerd(&[]).unwrap();
        let text = node.read(CONTAINERD);
        // containerd 1.x would forget its own runc.
        assert_eq!(names(&text, V2), ["runc", "kata"], "{text}");
        assert_eq!(text.parse::<DocumentMut>().unwrap()["version"].as_integer(), Some(2));
        node.removed();
        assert_eq!(without_opt(node.picture()), picture, "{files:?}");
    }
    // A file with other settings, but no runtime.
    let text = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"x\"\n";
    let node = Node::with(&[(CONTAINERD, text)]);
    node.containerd(&[]).unwrap();
    assert_eq!(names(&node.read(CONTAINERD), V2), ["runc", "kata"]);
    // 2.x keeps its own.
    let node = Node::with(&[(CONTAINERD, "version = 3\n")]);
    node.containerd(&[]).unwrap();
    assert_eq!(names(&node.read(CONTAINERD), V3), ["kata"]);
}

#[test]
fn what_somebody_edits_meanwhile_stays_and_only_ours_goes() {
    let node = Node::with(&[(CONTAINERD, &fixture("containerd-hand.toml"))]);
    node.containerd(&[]).unwrap();
    let edited = node.read(CONTAINERD).replace("level = \"info\"", "level = \"debug\" # theirs");
    let edited = edited.replace("pod_annotations = [\"io.katacontainers.*\"]", "pod_annotations = []");
    node.write(CONTAINERD, &edited);
    assert!(node.status().unwrap().config_edited);
    // An upgrade leaves their edit of our table alone, too.
    node.source("two");
    assert!(!node.containerd(&[]).unwrap().changed);
    assert_eq!(node.read(CONTAINERD), edited);
    node.removed();
    let expected = fixture("containerd-hand.toml").replace("level = \"info\"", "level = \"debug\" # theirs");
    assert_eq!(node.read(CONTAINERD).trim_end(), expected.trim_end());

    // A runtime that was added beside the runc that we had named: runc must go on being named.
    let node = Node::with(&[]);
    node.containerd(&[]).unwrap();
    let more =
        format!("{}\n[plugins.\"{V2}\".containerd.runtimes.other]\nruntime_type = \"x\"\n", node.read(CONTAINERD));
    node.write(CONTAINERD, &more);
    node.removed();
    assert_eq!(names(&node.read(CONTAINERD), V2), ["runc", "other"]);
    // Our table taken out by hand, and another put there: that one is not ours to remove.
    let node = Node::with(&[]);
    node.containerd(&[]).unwrap();
    let theirs = node.read(CONTAINERD).replace("/opt/kata/current/bin/", "/elsewhere/");
    node.write(CONTAINERD, &theirs);
    assert!(!node.status().unwrap().configured);
    assert!(matches!(node.containerd(&[]), Err(DeployError::Taken { .. })));
    node.removed();
    assert_eq!(node.read(CONTAINERD), theirs);
}

#[test]
fn upstreams_runtime_is_replaced_only_when_told_and_comes_back() {
    let before = fixture("containerd-upstream.toml");
    let node = Node::with(&[(CONTAINERD, &before), ("opt/kata/bin/containerd-shim-kata-v2", "upstream's")]);
    let picture = node.picture();
    let err = node.containerd(&[]).unwrap_err();
    assert!(matches!(err, DeployError::Taken { .. }), "{err}");
    assert!(err.to_string().contains("--replace-upstream"), "{err}");
    assert_eq!(node.read(CONTAINERD), before);
    assert!(!node.path("opt/kata/versions").exists() && !node.path("opt/kata/deploy.json").exists());

    node.containerd(&["--replace-upstream"]).unwrap();
    let after = node.read(CONTAINERD);
    let all = runtimes(&after, V2);
    assert_eq!(all["kata"]["runtime_type"].as_str(), Some("/opt/kata/current/bin/containerd-shim-kata-v2"));
    assert!(all["kata"].get("options").is_none(), "upstream's file is not ours to read");
    assert_eq!(all["kata-qemu"]["options"]["ConfigPath"].as_str().map(|p| p.ends_with("-qemu.toml")), Some(true));
    // Upstream's files are where they were: what runs from them goes on.
    assert_eq!(node.read("opt/kata/bin/containerd-shim-kata-v2"), "upstream's");
    // Once allowed is enough.
    node.source("two");
    node.containerd(&[]).unwrap();
    node.removed();
    let mut now = node.picture();
    assert!(now.remove(std::path::Path::new("opt/kata/.lock")).is_none());
    assert_eq!(now, picture);

    // The same when somebody has edited the file since.
    node.containerd(&["--replace-upstream"]).unwrap();
    node.write(CONTAINERD, &format!("{}\n[debug]\nlevel = \"debug\"\n", node.read(CONTAINERD)));
    node.removed();
    let text = node.read(CONTAINERD);
    let old = runtimes(&text, V2)["kata"].clone();
    assert_eq!(old["runtime_path"].as_str(), Some("/opt/kata/bin/containerd-shim-kata-v2"), "{text}");
    assert!(old["options"]["ConfigPath"].is_str() && text.contains("[debug]"), "{text}");
}

#[test]
fn the_file_that_decides_is_edited() {
    // containerd 1.x takes the whole section of an imported file: our table would be lost in the main one.
    let main = "version = 2\nimports = [\"conf.d/*.toml\", \"/elsewhere/one.toml\"]\n";
    let section = format!("version = 2\n[plugins.\"{V2}\".containerd.runtimes.other]\nruntime_type = \"x\"\n");
    let node = Node::with(&[
        (CONTAINERD, main),
        ("etc/containerd/conf.d/10-debug.toml", "version = 2\n[debug]\n"),
        ("etc/containerd/conf.d/20-gpu.toml", &section),
        ("etc/containerd/conf.d/30-no.txt", &section),
    ]);
    let done = node.containerd(&[]).unwrap();
    assert_eq!(done.config.to_str(), Some("/etc/containerd/conf.d/20-gpu.toml"));
    assert_eq!(node.read(CONTAINERD), main);
    assert_eq!(names(&node.read("etc/containerd/conf.d/20-gpu.toml"), V2), ["other", "kata"]);
    node.removed();
    assert_eq!(node.read("etc/containerd/conf.d/20-gpu.toml"), section);
    // One elsewhere, named.
    let node = Node::with(&[("var/k3s.toml", "version = 3\n")]);
    let done = node.containerd(&["--engine-config", "/var/k3s.toml"]).unwrap();
    assert_eq!(done.config.to_str(), Some("/var/k3s.toml"));
    // And then the usual one: the first is as it was.
    node.containerd(&[]).unwrap();
    assert_eq!(node.read("var/k3s.toml"), "version = 3\n");
    assert!(node.path(CONTAINERD).exists());
}

#[test]
fn what_cannot_be_edited_is_refused_before_anything_is_written() {
    for (text, words) in [
        ("disabled_plugins = [\"cri\"]\n", "disabled_plugins"),
        ("root = \"/x\"\n", "version 1"),
        ("version = 4\n", "version 4"),
        ("version = 2\nnot toml", "not TOML"),
        ("version = 2\n[plugins]\n\"io.containerd.grpc.v1.cri\" = 3\n", "is no table"),
    ] {
        let node = Node::with(&[(CONTAINERD, text)]);
        let err = node.containerd(&[]).unwrap_err().to_string();
        assert!(err.contains(words) && err.contains("config.toml"), "{text}: {err}");
        assert_eq!(node.read(CONTAINERD), text);
        assert!(!node.path("opt/kata/deploy.json").exists() && !node.path("opt/kata/versions").exists(), "{text}");
    }
}
