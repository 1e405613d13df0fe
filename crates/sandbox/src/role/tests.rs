//! Specs as engines have written them (reduced to what decides), and as CRI-O documents that it writes them.

use std::collections::BTreeMap;

use super::*;

const CONTAINERD_16: &str = include_str!("recorded/containerd-1.6.json");
const CONTAINERD_21: &str = include_str!("recorded/containerd-2.1.json");
const PODMAN_43: &str = include_str!("recorded/podman-4.3.json");

fn recorded(text: &str) -> BTreeMap<String, Spec> {
    serde_json::from_str(text).unwrap()
}

fn container(id: &str) -> Role {
    Role::Container { sandbox: SandboxId::new(id).unwrap() }
}

fn annotated(annotations: &[(&str, &str)]) -> Spec {
    let annotations = annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Spec { annotations, ..Spec::default() }
}

#[test]
fn containerds_cri_plugin() {
    for text in [CONTAINERD_16, CONTAINERD_21] {
        let specs = recorded(text);
        for pod in ["own", "shared"] {
            let (sandbox, a) = (&specs[&format!("{pod}-sandbox")], &specs[&format!("{pod}-a")]);
            assert_eq!(role(sandbox).unwrap(), Role::Sandbox);
            let id = &sandbox.annotations["io.kubernetes.cri.sandbox-id"];
            assert_eq!(role(a).unwrap(), container(id));
            assert!(joined_pids(sandbox).is_empty(), "it has a named network namespace only");
            let kinds: Vec<_> = joined_pids(a).into_iter().map(|(kind, _)| kind).collect();
            let shares =
                if pod == "own" { vec!["ipc", "uts", "network"] } else { vec!["pid", "ipc", "uts", "network"] };
            assert_eq!(kinds, shares);
        }
    }
}

#[test]
fn podmans_pods_and_joined_containers() {
    let specs = recorded(PODMAN_43);
    for infra in ["infra", "kube-infra"] {
        assert_eq!(role(&specs[infra]).unwrap(), Role::Sandbox, "{infra}");
    }
    for member in ["member", "member-shared-pid", "kube-member"] {
        let id = &specs[member].annotations["io.kubernetes.cri-o.SandboxID"];
        assert_eq!(role(&specs[member]).unwrap(), container(id), "{member}");
    }
    assert_eq!(role(&specs["member-without-infra"]).unwrap(), Role::Single);
    assert_eq!(role(&specs["single"]).unwrap(), Role::Single);
    assert_eq!(role(&specs["joins-single"]).unwrap(), Role::Single);
    let joined = joined_pids(&specs["joins-single"]);
    assert_eq!(joined.iter().map(|(kind, _)| kind.as_str()).collect::<Vec<_>>(), ["pid", "network", "ipc"]);
    assert!(joined.iter().all(|(_, pid)| *pid == joined[0].1));
    // Its infra container with a command of the user's is a container like any other.
    let mut custom = specs["infra"].clone();
    custom.process.as_mut().unwrap().args = vec!["/catatonit".into(), "--".into(), "top".into()];
    assert_eq!(role(&custom).unwrap(), Role::Single);
    // And so is the same command of anybody else's.
    let mut other = specs["infra"].clone();
    other.annotations.clear();
    assert_eq!(role(&other).unwrap(), Role::Single);
}

#[test]
fn cri_o_and_dockershim_as_documented() {
    let o = |kind| annotated(&[("io.kubernetes.cri-o.ContainerType", kind), ("io.kubernetes.cri-o.SandboxID", "s1")]);
    assert_eq!(role(&o("sandbox")).unwrap(), Role::Sandbox);
    assert_eq!(role(&o("container")).unwrap(), container("s1"));
    let d = |kind| annotated(&[("io.kubernetes.docker.type", kind), ("io.kubernetes.sandbox.id", "s2")]);
    assert_eq!(role(&d("podsandbox")).unwrap(), Role::Sandbox);
    assert_eq!(role(&d("container")).unwrap(), container("s2"));
}

#[test]
fn contradictions_are_told_by_the_annotations_name() {
    let err = |annotations: &[(&str, &str)]| role(&annotated(annotations)).unwrap_err().to_string();
    assert!(err(&[("io.kubernetes.cri.container-type", "pod")]).contains("io.kubernetes.cri.container-type"));
    assert!(err(&[("io.kubernetes.cri.container-type", "container")]).contains("io.kubernetes.cri.sandbox-id"));
    let bad = [("io.kubernetes.cri-o.ContainerType", "container"), ("io.kubernetes.cri-o.SandboxID", "../x")];
    assert!(err(&bad).contains("io.kubernetes.cri-o.SandboxID"), "{}", err(&bad));
    assert_eq!(role(&annotated(&[("io.kubernetes.cri.sandbox-id", "s")])).unwrap(), Role::Single);
}

#[test]
fn only_paths_of_a_process_tell_a_pid() {
    assert_eq!(pid_of("/proc/12/ns/net"), Some(12));
    for other in
        ["/proc/self/ns/net", "/proc/0/ns/net", "/proc/-1/ns/net", "/proc/1/ns/", "/run/netns/x", "/proc/1/ns/a/b"]
    {
        assert_eq!(pid_of(other), None, "{other}");
    }
}
