//! Whose pod a sandbox is.

use std::collections::BTreeMap;

use kata_sandbox::Found;
use serde_json::Value;

/// Labels that tell one sandbox from another. Nobody's own page may have them.
pub const RESERVED: &[&str] = &["sandbox_id", "sandbox_dir", "cri_uid", "cri_name", "cri_namespace"];

/// The labels of a sandbox's samples. `unique`: no other sandbox has its id (another containerd namespace may).
pub fn labels(found: &Found, unique: bool) -> Vec<(&'static str, String)> {
    let mut out = vec![("sandbox_id", found.state.id.clone())];
    if !unique {
        let dir = found.run_dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        out.push(("sandbox_dir", dir));
    }
    if let Some(container) = found.first_container() {
        out.extend(pod(&container.annotations));
    }
    out
}

/// What containerd's CRI plugin or CRI-O wrote into the annotations.
fn pod(annotations: &BTreeMap<String, String>) -> Vec<(&'static str, String)> {
    let get = |key: &str| annotations.get(key).filter(|v| !v.is_empty()).cloned();
    // CRI-O: the pod's uid is only in the metadata.
    let metadata: Option<Value> =
        annotations.get("io.kubernetes.cri-o.Metadata").and_then(|text| serde_json::from_str(text).ok());
    let in_metadata = |key: &str| metadata.as_ref()?.get(key)?.as_str().map(str::to_owned);
    let all = [
        (
            "cri_uid",
            get("io.kubernetes.cri.sandbox-uid")
                .or_else(|| get("io.kubernetes.pod.uid"))
                .or_else(|| in_metadata("uid")),
        ),
        (
            "cri_name",
            get("io.kubernetes.cri.sandbox-name")
                .or_else(|| get("io.kubernetes.cri-o.KubeName"))
                .or_else(|| get("io.kubernetes.pod.name")),
        ),
        (
            "cri_namespace",
            get("io.kubernetes.cri.sandbox-namespace")
                .or_else(|| get("io.kubernetes.cri-o.Namespace"))
                .or_else(|| get("io.kubernetes.pod.namespace")),
        ),
    ];
    all.into_iter().filter_map(|(label, value)| Some((label, value?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(annotations: &[(&str, &str)]) -> Vec<(&'static str, String)> {
        pod(&annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn the_pod_is_known_by_either_engines_annotations() {
        let want = [("cri_uid", "u".to_owned()), ("cri_name", "web".to_owned()), ("cri_namespace", "prod".to_owned())];
        let containerd = [
            ("io.kubernetes.cri.sandbox-uid", "u"),
            ("io.kubernetes.cri.sandbox-name", "web"),
            ("io.kubernetes.cri.sandbox-namespace", "prod"),
        ];
        assert_eq!(of(&containerd), want);
        let crio = [
            ("io.kubernetes.cri-o.KubeName", "web"),
            ("io.kubernetes.cri-o.Namespace", "prod"),
            ("io.kubernetes.cri-o.Metadata", r#"{"name":"web","uid":"u","namespace":"prod"}"#),
        ];
        assert_eq!(of(&crio), want);
        assert!(of(&[("io.kubernetes.cri-o.Metadata", "rubbish")]).is_empty());
    }
}
