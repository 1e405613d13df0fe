//! What docs/kubernetes.md and packaging/kubernetes say is what the programs do.

use std::fs;
use std::path::{Path, PathBuf};

use kata_deploy::args::CrioType;
use kata_deploy::{containerd, crio};
use serde_yaml_ng::Value;
use toml_edit::DocumentMut;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn packaged(name: &str) -> String {
    let path = root().join("packaging/kubernetes").join(name);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn packaged_names() -> Vec<String> {
    let entries = fs::read_dir(root().join("packaging/kubernetes")).unwrap();
    entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

/// Without comments and empty lines.
fn bare(text: &str) -> Vec<&str> {
    text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')).collect()
}

#[test]
fn snippets_are_what_the_installer_writes() {
    let bin = Path::new("/opt/kata/current/bin");
    let shim = bin.join("containerd-shim-kata-v2");
    let path = Path::new("config.toml");
    let v2 = containerd::edit(path, None, &shim).unwrap().text;
    assert_eq!(bare(&v2), bare(&packaged("containerd-v2.toml")));
    let v3 = containerd::edit(path, Some("version = 3\n"), &shim).unwrap().text;
    assert_eq!(bare(&v3), bare(&packaged("containerd-v3.toml")));
    for (kind, name) in [(CrioType::Vm, "crio-vm.conf"), (CrioType::Oci, "crio-oci.conf")] {
        assert_eq!(bare(&crio::content(bin, kind).unwrap()), bare(&packaged(name)), "{name}");
    }
}

#[test]
fn every_code_block_of_a_file_is_that_file() {
    let doc = fs::read_to_string(root().join("docs/kubernetes.md")).unwrap();
    let lines: Vec<&str> = doc.lines().collect();
    let mut quoted = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let Some(language) = lines[at].strip_prefix("```").filter(|l| !l.is_empty()) else {
            at += 1;
            continue;
        };
        let end = at + 1 + lines[at + 1..].iter().position(|l| *l == "```").unwrap();
        let file = lines[at - 1].strip_prefix("<!-- file: ").and_then(|l| l.strip_suffix(" -->"));
        match file {
            Some(name) => {
                let block: String = lines[at + 1..end].iter().flat_map(|l| [*l, "\n"]).collect();
                assert_eq!(block, packaged(name), "docs/kubernetes.md quotes {name}");
                quoted.push(name.to_owned());
            }
            None => assert_eq!(language, "sh", "line {}: a configuration that no test reads", at + 1),
        }
        at = end + 1;
    }
    for name in
        ["runtimeclass.yaml", "pod.yaml", "containerd-v2.toml", "containerd-v3.toml", "crio-vm.conf", "crio-oci.conf"]
    {
        assert!(quoted.iter().any(|q| q == name), "docs/kubernetes.md does not show {name}");
    }
}

#[test]
fn every_file_parses() {
    for name in packaged_names() {
        let text = packaged(&name);
        match name.rsplit_once('.').map(|(_, end)| end) {
            Some("yaml") => {
                let value: Value = serde_yaml_ng::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
                for key in ["apiVersion", "kind", "metadata"] {
                    assert!(value.get(key).is_some(), "{name} has no {key}");
                }
            }
            Some("toml" | "conf") => drop(text.parse::<DocumentMut>().unwrap_or_else(|e| panic!("{name}: {e}"))),
            Some("md") => {}
            _ => assert_eq!(name, "Dockerfile"),
        }
    }
}

#[test]
fn the_daemonsets_call_the_installer_as_it_is_called() {
    use clap::Parser;
    for (name, verb) in [("daemonset.yaml", "install"), ("cleanup.yaml", "remove")] {
        let value: Value = serde_yaml_ng::from_str(&packaged(name)).unwrap();
        let pod = &value["spec"]["template"]["spec"];
        let init = &pod["initContainers"][0];
        let words: Vec<String> = serde_yaml_ng::from_value(init["args"].clone()).unwrap();
        assert_eq!(words[0], verb);
        kata_deploy::args::Args::try_parse_from(std::iter::once("kata-deploy".to_owned()).chain(words)).unwrap();
        // What it changes is mounted where it looks for it, and each mount has its volume.
        let mounts = init["volumeMounts"].as_sequence().unwrap();
        let volumes = pod["volumes"].as_sequence().unwrap();
        for (host, inside) in [("/opt", "/host/opt"), ("/etc", "/host/etc")] {
            let mount = mounts.iter().find(|m| m["mountPath"] == inside).unwrap_or_else(|| panic!("{name}: {inside}"));
            let volume = volumes.iter().find(|v| v["name"] == mount["name"]).unwrap();
            assert_eq!(volume["hostPath"]["path"], host, "{name}");
        }
        assert_eq!(pod["hostPID"], true, "{name}");
        assert_eq!(value["spec"]["selector"]["matchLabels"], value["spec"]["template"]["metadata"]["labels"]);
        // What stays has no rights at all.
        let stays = &pod["containers"][0]["securityContext"];
        assert_eq!(stays["capabilities"]["drop"][0], "ALL", "{name}");
        assert_eq!(stays["runAsNonRoot"], true, "{name}");
        // Ending the pod, or deleting the DaemonSet, does nothing to the node.
        assert!(pod["containers"][0].get("lifecycle").is_none(), "{name}");
    }
}

#[test]
fn the_runtime_class_is_the_one_the_engines_have() {
    let class: Value = serde_yaml_ng::from_str(&packaged("runtimeclass.yaml")).unwrap();
    assert_eq!(class["handler"], containerd::HANDLER);
    let pod: Value = serde_yaml_ng::from_str(&packaged("pod.yaml")).unwrap();
    assert_eq!(pod["spec"]["runtimeClassName"], class["metadata"]["name"]);
    let nodes: Value = serde_yaml_ng::from_str(&packaged("daemonset.yaml")).unwrap();
    assert_eq!(nodes["spec"]["template"]["spec"]["nodeSelector"], class["scheduling"]["nodeSelector"]);
    // The overhead covers what SPEC.md measures of an idle sandbox that was booted.
    let spec = fs::read_to_string(root().join("SPEC.md")).unwrap();
    let row = spec.lines().find(|l| l.starts_with("| PSS of all host processes, MB |")).unwrap();
    let cold: f64 = row.split('|').nth(3).unwrap().trim().trim_matches('*').parse().unwrap();
    let overhead = class["overhead"]["podFixed"]["memory"].as_str().unwrap().strip_suffix("Mi").unwrap();
    let overhead = overhead.parse::<f64>().unwrap() * 1.048_576;
    assert!((cold..cold * 1.25).contains(&overhead), "{overhead} MB are set aside for {cold} MB");
}
