//! The container that stands for a pod, of what the Sandbox API says of it. Pure.

use std::collections::{BTreeMap, HashMap};

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use kata_oci::{Linux, Namespace, OCI_VERSION, Process, Root, Spec};
use kata_proto::cri::{LinuxPodSandboxConfig, NamespaceMode, PodSandboxConfig};
use kata_sandbox::PodNames;
use thiserror::Error;

/// What the CRI plugin's options are called; typeurl may write a path before it.
const POD: &str = "runtime.v1.PodSandboxConfig";
/// Annotations of containerd's CRI plugin.
const PREFIX: &str = "io.kubernetes.cri.";
/// Says that a container stands for its pod.
pub(super) const TYPE: (&str, &str) = ("io.kubernetes.cri.container-type", "sandbox");
/// Of a pod's own annotations, those that are meant for us.
const OURS: &str = "io.katacontainers.";

/// Options that are not understood.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum PodError {
    /// Of another kind.
    #[error("the options of a sandbox are a {POD}, or nothing; {0:?} is not known")]
    Kind(String),
    /// Not what they say they are.
    #[error("the sandbox's options are no {POD}: {0}")]
    Damaged(String),
}

/// Reads the options of CreateSandbox.
///
/// # Errors
/// [`PodError`].
pub(super) fn config(options: Option<&Any>) -> Result<PodSandboxConfig, PodError> {
    let Some(options) = options.filter(|any| !any.type_url.is_empty()) else { return Ok(PodSandboxConfig::new()) };
    if options.type_url != POD && !options.type_url.ends_with(&format!("/{POD}")) {
        return Err(PodError::Kind(options.type_url.clone()));
    }
    PodSandboxConfig::parse_from_bytes(&options.value).map_err(|e| PodError::Damaged(e.to_string()))
}

/// What containers get from their pod.
pub(super) fn names(pod: &PodSandboxConfig) -> PodNames {
    let dns = pod.dns_config.as_ref();
    let list = |of: fn(&kata_proto::cri::DNSConfig) -> &Vec<String>| dns.map(|dns| of(dns).clone()).unwrap_or_default();
    PodNames {
        hostname: pod.hostname.clone(),
        servers: list(|dns| &dns.servers),
        searches: list(|dns| &dns.searches),
        options: list(|dns| &dns.options),
    }
}

/// The spec. `netns`: the path of the pod's network namespace; empty, the pod is to be in the host's.
pub(super) fn spec(id: &str, pod: &PodSandboxConfig, netns: &str, annotations: &HashMap<String, String>) -> Spec {
    let linux = pod.linux.as_ref();
    let nothing = LinuxPodSandboxConfig::new();
    let linux = linux.unwrap_or(&nothing);
    Spec {
        oci_version: OCI_VERSION.into(),
        // It is never run.
        process: Some(Process { args: vec!["/pause".into()], cwd: "/".into(), ..Process::default() }),
        root: Some(Root { path: "rootfs".into(), readonly: true }),
        hostname: pod.hostname.clone(),
        annotations: annotated(id, pod, annotations),
        linux: Some(Linux {
            sysctl: linux.sysctls.clone().into_iter().collect(),
            cgroups_path: cgroups_path(&linux.cgroup_parent, id),
            namespaces: namespaces(linux, netns),
            ..Linux::default()
        }),
        ..Spec::default()
    }
}

/// As containerd's own sandboxes have it.
fn annotated(id: &str, pod: &PodSandboxConfig, given: &HashMap<String, String>) -> BTreeMap<String, String> {
    let mut out: BTreeMap<String, String> = given.clone().into_iter().collect();
    out.extend(pod.annotations.iter().filter(|(key, _)| key.starts_with(OURS)).map(|(k, v)| (k.clone(), v.clone())));
    let mut add = |key: &str, value: String| drop(out.insert(format!("{PREFIX}{key}"), value));
    add("sandbox-id", id.to_owned());
    if let Some(metadata) = pod.metadata.as_ref() {
        add("sandbox-name", metadata.name.clone());
        add("sandbox-namespace", metadata.namespace.clone());
        add("sandbox-uid", metadata.uid.clone());
    }
    if !pod.log_directory.is_empty() {
        add("sandbox-log-directory", pod.log_directory.clone());
    }
    if let Some(resources) = pod.linux.as_ref().and_then(|linux| linux.resources.as_ref()) {
        add("sandbox-cpu-period", resources.cpu_period.to_string());
        add("sandbox-cpu-quota", resources.cpu_quota.to_string());
        add("sandbox-cpu-shares", resources.cpu_shares.to_string());
        add("sandbox-memory", resources.memory_limit_in_bytes.to_string());
    }
    out.insert(TYPE.0.into(), TYPE.1.into());
    out
}

fn namespaces(linux: &LinuxPodSandboxConfig, netns: &str) -> Vec<Namespace> {
    let options = linux.security_context.as_ref().and_then(|c| c.namespace_options.as_ref());
    let of_node = |mode: fn(&kata_proto::cri::NamespaceOption) -> NamespaceMode| {
        options.is_some_and(|options| mode(options) == NamespaceMode::NODE)
    };
    let own = |kind: &str| Namespace { kind: kind.into(), path: String::new() };
    let mut out = vec![own("mount"), own("uts")];
    if !of_node(|o| o.ipc.enum_value_or_default()) {
        out.push(own("ipc"));
    }
    if !of_node(|o| o.pid.enum_value_or_default()) {
        out.push(own("pid"));
    }
    if !of_node(|o| o.network.enum_value_or_default()) && !netns.is_empty() {
        out.push(Namespace { kind: "network".into(), path: netns.into() });
    }
    out
}

/// Where containerd puts a pod's sandbox: a directory of its id, or a scope in systemd's slice.
fn cgroups_path(parent: &str, id: &str) -> String {
    let parent = parent.trim_end_matches('/');
    match parent.rsplit('/').next().unwrap_or_default() {
        "" => String::new(),
        slice if slice.ends_with(".slice") => format!("{slice}:cri-containerd:{id}"),
        _ => format!("{parent}/{id}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kata_proto::cri::{DNSConfig, LinuxContainerResources, LinuxSandboxSecurityContext, NamespaceOption};

    fn any(type_url: &str, value: Vec<u8>) -> Any {
        Any { type_url: type_url.into(), value, ..Any::default() }
    }

    fn pod() -> PodSandboxConfig {
        let mut pod = PodSandboxConfig::new();
        pod.hostname = "web".into();
        pod.dns_config = Some(DNSConfig { servers: vec!["10.0.0.1".into()], ..Default::default() }).into();
        pod.annotations = [("io.katacontainers.x".into(), "1".into()), ("other".into(), "2".into())].into();
        let linux = pod.linux.mut_or_insert_default();
        linux.cgroup_parent = "/kubepods/pod1".into();
        linux.sysctls = [("kernel.shm_rmid_forced".into(), "1".into())].into();
        linux.resources = Some(LinuxContainerResources { memory_limit_in_bytes: 1 << 28, ..Default::default() }).into();
        pod
    }

    fn kinds(spec: &Spec) -> Vec<(&str, &str)> {
        let namespaces = spec.linux.iter().flat_map(|l| &l.namespaces);
        namespaces.map(|n| (n.kind.as_str(), n.path.as_str())).collect()
    }

    #[test]
    fn a_pod_becomes_a_container_that_stands_for_it() {
        let read = config(Some(&any("runtime.v1.PodSandboxConfig", pod().write_to_bytes().unwrap()))).unwrap();
        let spec = spec("s1", &read, "/run/netns/p", &[("more".into(), "3".into())].into());
        assert_eq!(kata_sandbox::role(&spec).unwrap(), kata_sandbox::Role::Sandbox);
        assert_eq!(spec.annotations["io.kubernetes.cri.sandbox-memory"], "268435456");
        assert_eq!((&*spec.annotations["io.katacontainers.x"], &*spec.annotations["more"]), ("1", "3"));
        assert!(!spec.annotations.contains_key("other"));
        assert_eq!(kinds(&spec), [("mount", ""), ("uts", ""), ("ipc", ""), ("pid", ""), ("network", "/run/netns/p")]);
        let linux = spec.linux.as_ref().unwrap();
        assert_eq!(linux.cgroups_path, "/kubepods/pod1/s1");
        assert_eq!(linux.sysctl["kernel.shm_rmid_forced"], "1");
        assert_eq!((names(&read).hostname, names(&read).servers), ("web".into(), vec!["10.0.0.1".into()]));
        // It is a bundle's, and can be read as any.
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
        assert_eq!(kata_oci::load_spec(dir.path()).unwrap(), spec);
    }

    #[test]
    fn what_is_the_nodes_is_not_the_pods() {
        let mut pod = pod();
        let context = LinuxSandboxSecurityContext {
            namespace_options: Some(NamespaceOption {
                network: NamespaceMode::NODE.into(),
                pid: NamespaceMode::CONTAINER.into(),
                ipc: NamespaceMode::NODE.into(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        pod.linux.mut_or_insert_default().security_context = Some(context).into();
        assert_eq!(kinds(&spec("s", &pod, "", &HashMap::new())), [("mount", ""), ("uts", ""), ("pid", "")]);
    }

    #[test]
    fn cgroups_of_either_driver() {
        assert_eq!(cgroups_path("kubepods-pod1.slice", "s"), "kubepods-pod1.slice:cri-containerd:s");
        assert_eq!(cgroups_path("/kubepods.slice/kubepods-pod1.slice", "s"), "kubepods-pod1.slice:cri-containerd:s");
        assert_eq!(cgroups_path("/a/b/", "s"), "/a/b/s");
        assert_eq!(cgroups_path("/a/b", "s"), "/a/b/s");
        assert_eq!(cgroups_path("", "s"), "");
    }

    #[test]
    fn options_of_another_kind_are_refused() {
        assert_eq!(config(None).unwrap(), PodSandboxConfig::new());
        assert_eq!(config(Some(&Any::new())).unwrap(), PodSandboxConfig::new());
        assert!(config(Some(&any("types.containerd.io/runtime.v1.PodSandboxConfig", Vec::new()))).is_ok());
        let err = config(Some(&any("x.Options", Vec::new()))).unwrap_err();
        assert!(err.to_string().contains("x.Options"), "{err}");
        let bad = any("runtime.v1.PodSandboxConfig", b"\xff\xff\xff".to_vec());
        assert!(matches!(config(Some(&bad)), Err(PodError::Damaged(_))));
    }
}
