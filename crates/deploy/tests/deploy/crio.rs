//! CRI-O's drop-in.

use kata_deploy::error::DeployError;
use toml_edit::DocumentMut;

use crate::node::{DROP_IN, Node, fixture};

fn crio() -> Node {
    let main = fixture("crio.conf");
    Node::with(&[("etc/crio/crio.conf", &main), ("etc/crio/crio.conf.d/10-crio.conf", "[crio.image]\n")])
}

fn install(node: &Node, more: &[&str]) -> Result<bool, DeployError> {
    node.install(&[&["--engine", "crio"], more].concat()).map(|done| done.changed)
}

#[test]
fn a_drop_in_is_made_and_taken_away() {
    for (kind, program) in [("vm", "containerd-shim-kata-v2"), ("oci", "kata-runtime")] {
        let node = crio();
        let picture = node.picture();
        assert!(install(&node, &["--crio-type", kind]).unwrap());
        let text = node.read(DROP_IN);
        let doc: DocumentMut = text.parse().unwrap();
        let table = &doc["crio"]["runtime"]["runtimes"]["kata"];
        assert_eq!(table["runtime_type"].as_str(), Some(kind));
        assert_eq!(table["runtime_path"].as_str(), Some(format!("/opt/kata/current/bin/{program}").as_str()));
        assert_eq!(table["privileged_without_host_devices"].as_bool(), Some(true));
        assert_eq!(doc.iter().count(), 1, "nothing else is set: {text}");
        assert!(!install(&node, &["--crio-type", kind]).unwrap());
        node.removed();
        let mut now = node.picture();
        now.remove(std::path::Path::new("opt"));
        assert_eq!(now, picture);
    }
}

#[test]
fn the_other_type_takes_its_place() {
    let node = crio();
    install(&node, &[]).unwrap();
    assert!(install(&node, &["--crio-type", "oci"]).unwrap());
    assert!(node.read(DROP_IN).contains("kata-runtime"));
    // What somebody adds beside it stays.
    node.write(DROP_IN, &format!("{}\n[crio.runtime]\nlog_level = \"debug\"\n", node.read(DROP_IN)));
    node.removed();
    assert_eq!(node.read(DROP_IN).trim(), "[crio.runtime]\nlog_level = \"debug\"");
}

#[test]
fn a_runtime_of_somebody_elses_is_refused_or_overridden() {
    let theirs = "[crio.runtime.runtimes.kata]\nruntime_path = \"/usr/bin/containerd-shim-kata-v2\"\n";
    for path in ["etc/crio/crio.conf", "etc/crio/crio.conf.d/99-kata-deploy"] {
        let node = Node::with(&[(path, theirs)]);
        let err = install(&node, &[]).unwrap_err();
        assert!(matches!(&err, DeployError::Taken { path: at } if at.ends_with(path)), "{err}");
        assert!(!node.path(DROP_IN).exists() && !node.path("opt/kata/deploy.json").exists());
        install(&node, &["--replace-upstream"]).unwrap();
        // The last in the order of names wins.
        assert!(DROP_IN > "etc/crio/crio.conf.d/99-kata-deploy");
        assert_eq!(node.read(path), theirs);
        install(&node, &[]).unwrap();
        node.removed();
        assert_eq!(node.read(path), theirs);
        assert!(!node.path(DROP_IN).exists());
    }
}

#[test]
fn from_one_engine_to_the_other() {
    let node = crio();
    install(&node, &[]).unwrap();
    node.containerd(&[]).unwrap();
    assert!(!node.path(DROP_IN).exists() && node.path("etc/containerd/config.toml").exists());
    node.removed();
    assert!(!node.path("etc/containerd").exists(), "the directory was ours");
}
