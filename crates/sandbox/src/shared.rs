//! What a container shares with the others of its sandbox: the namespaces that its spec joins, in the guest's terms. Pure.
//!
//! The spec's paths are the host's: of the process that stands for another container (`/proc/PID/ns/ipc`), or of a namespace
//! that the engine has made for the pod and given to its sandbox's container (CRI-O). All that is neither stays as it is, for
//! planning to refuse.

use std::collections::BTreeSet;

use kata_oci::{Namespace, Spec};
use kata_types::GUEST_NS_DIR;
use thiserror::Error;

use crate::role::pid_of;

/// The kinds that containers of one guest can share by a path. The network's is the guest's own for all of them.
const KINDS: [&str; 3] = ["ipc", "uts", "pid"];

/// Another container of the sandbox, which has not ended.
#[derive(Debug, Clone, Copy)]
pub struct Neighbour<'a> {
    /// Its id.
    pub id: &'a str,
    /// The pid that stands for it on the host.
    pub pid: i32,
    /// It stands for the sandbox and has no process in the guest.
    pub stands: bool,
    /// Its spec: as the engine wrote it where it stands for the sandbox, resolved where it does not.
    pub spec: &'a Spec,
}

/// Why namespaces cannot be shared as asked.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum SharedError {
    /// Several containers have that pid on the host, and it makes a difference.
    #[error(
        "cannot tell whose {kind} namespace {path} is meant to be: it could be that of {}; \
         tasks of one containerd sandbox all have one pid", .candidates.join(", ")
    )]
    Ambiguous {
        /// "pid", "ipc", "uts".
        kind: String,
        /// The spec's path.
        path: String,
        /// Who it could be.
        candidates: Vec<String>,
    },
    /// A path that means something in the guest only.
    #[error("the {kind} namespace {path} is no path of the host's")]
    Guests {
        /// Which.
        kind: String,
        /// The spec's path.
        path: String,
    },
}

/// Replaces, in `spec`, the paths of namespaces that are the sandbox's or a neighbour's. Where a neighbour has the guest's own,
/// the container gets that as well. The pod's kernel parameters become the container's.
///
/// # Errors
/// [`SharedError`].
pub fn resolve(spec: &mut Spec, neighbours: &[Neighbour<'_>]) -> Result<(), SharedError> {
    let Some(linux) = spec.linux.as_mut() else { return Ok(()) };
    let mut out = Vec::with_capacity(linux.namespaces.len());
    for mut ns in std::mem::take(&mut linux.namespaces) {
        if ns.path.starts_with(GUEST_NS_DIR) {
            return Err(SharedError::Guests { kind: ns.kind, path: ns.path });
        }
        match find(&ns, neighbours)? {
            Found::Nothing => {}
            Found::Path(path) => ns.path = path,
            Found::Guests => continue,
        }
        out.push(ns);
    }
    linux.namespaces = out;
    // A pod's kernel parameters are those of namespaces that its containers share, and what stands for the pod has no process
    // that could set them: each container does, to the same.
    for stands in neighbours.iter().filter(|n| n.stands) {
        for (key, value) in stands.spec.linux.iter().flat_map(|l| &l.sysctl) {
            linux.sysctl.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
    Ok(())
}

/// Where a namespace is, in the guest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Found {
    /// Nobody's here.
    Nothing,
    Path(String),
    /// No namespace but the guest's own.
    Guests,
}

fn find(ns: &Namespace, neighbours: &[Neighbour<'_>]) -> Result<Found, SharedError> {
    if ns.path.is_empty() || !KINDS.contains(&ns.kind.as_str()) {
        return Ok(Found::Nothing);
    }
    let given = |n: &Neighbour<'_>| n.stands && namespaces(n.spec).any(|g| *g == *ns);
    if neighbours.iter().any(given) {
        return Ok(sandboxes(&ns.kind));
    }
    let Some(pid) = pid_of(&ns.path) else { return Ok(Found::Nothing) };
    let here: Vec<&Neighbour<'_>> = neighbours.iter().filter(|n| n.pid == pid).collect();
    let stands = here.iter().any(|n| n.stands);
    // IPC and UTS are the pod's in every engine. A pid namespace may be that of another container in it (Kubernetes'
    // ephemeral containers), whose pid may be the same as the sandbox's.
    if stands && ns.kind != "pid" {
        return Ok(sandboxes(&ns.kind));
    }
    let real: Vec<&Neighbour<'_>> = here.into_iter().filter(|n| !n.stands).collect();
    let found: BTreeSet<Found> = real.iter().map(|n| of(n, &ns.kind)).collect();
    let mut found = found.into_iter();
    match (found.next(), found.next()) {
        (None, _) if stands => Ok(sandboxes(&ns.kind)),
        (None, _) => Ok(Found::Nothing),
        (Some(one), None) => Ok(one),
        (Some(_), Some(_)) => Err(SharedError::Ambiguous {
            kind: ns.kind.clone(),
            path: ns.path.clone(),
            candidates: real.iter().map(|n| n.id.to_owned()).collect(),
        }),
    }
}

fn namespaces(spec: &Spec) -> impl Iterator<Item = &Namespace> {
    spec.linux.iter().flat_map(|l| &l.namespaces)
}

fn sandboxes(kind: &str) -> Found {
    Found::Path(format!("{GUEST_NS_DIR}/{kind}"))
}

/// The namespace that a container with a process in the guest has.
fn of(n: &Neighbour<'_>, kind: &str) -> Found {
    match namespaces(n.spec).find(|ns| ns.kind == kind) {
        None => Found::Guests,
        Some(ns) if ns.path.is_empty() => Found::Path(format!("{GUEST_NS_DIR}/of/{}/{kind}", n.id)),
        // It has joined somebody's.
        Some(ns) => Found::Path(ns.path.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(namespaces: &[(&str, &str)]) -> Spec {
        let list: Vec<_> = namespaces.iter().map(|(k, p)| serde_json::json!({ "type": k, "path": p })).collect();
        serde_json::from_value(serde_json::json!({ "linux": { "namespaces": list } })).unwrap()
    }

    fn resolved(wanted: &[(&str, &str)], neighbours: &[Neighbour<'_>]) -> Result<Vec<(String, String)>, SharedError> {
        let mut spec = spec(wanted);
        resolve(&mut spec, neighbours)?;
        Ok(spec.linux.unwrap().namespaces.into_iter().map(|n| (n.kind, n.path)).collect())
    }

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    const DIR: &str = GUEST_NS_DIR;

    #[test]
    fn a_pods_containers_share_what_its_sandbox_stands_for() {
        // CRI-O makes the namespaces itself.
        let pause = spec(&[("pid", ""), ("ipc", "/var/run/ipcns/u1"), ("uts", "/var/run/utsns/u1")]);
        let sandbox = Neighbour { id: "s", pid: 7, stands: true, spec: &pause };
        let wanted =
            [("pid", ""), ("ipc", "/proc/7/ns/ipc"), ("uts", "/var/run/utsns/u1"), ("network", "/proc/7/ns/net")];
        let (ipc, uts) = (format!("{DIR}/ipc"), format!("{DIR}/uts"));
        let expected = pairs(&[("pid", ""), ("ipc", &ipc), ("uts", &uts), ("network", "/proc/7/ns/net")]);
        assert_eq!(resolved(&wanted, &[sandbox]).unwrap(), expected);
        // What is nobody's here stays as it is, and is refused by whoever plans.
        let others = [("ipc", "/proc/8/ns/ipc"), ("uts", "/var/run/utsns/u2"), ("user", "/proc/7/ns/user")];
        assert_eq!(resolved(&others, &[sandbox]).unwrap(), pairs(&others));
        // The guest's paths are not for engines.
        assert!(matches!(resolved(&[("ipc", &ipc)], &[sandbox]), Err(SharedError::Guests { .. })));
    }

    #[test]
    fn a_pods_kernel_parameters_are_those_of_its_containers_which_may_have_others() {
        let with = |sysctl: serde_json::Value| -> Spec {
            serde_json::from_value(serde_json::json!({ "linux": { "sysctl": sysctl } })).unwrap()
        };
        let pause = with(serde_json::json!({ "kernel.shm_rmid_forced": "1", "net.core.somaxconn": "64" }));
        let sandbox = Neighbour { id: "s", pid: 7, stands: true, spec: &pause };
        let real = with(serde_json::json!({ "kernel.msgmax": "1" }));
        let neighbour = Neighbour { id: "c", pid: 7, stands: false, spec: &real };
        let mut spec = with(serde_json::json!({ "net.core.somaxconn": "128" }));
        resolve(&mut spec, &[sandbox, neighbour]).unwrap();
        let has: Vec<_> = spec.linux.unwrap().sysctl.into_iter().collect();
        assert_eq!(has, pairs(&[("kernel.shm_rmid_forced", "1"), ("net.core.somaxconn", "128")]));
    }

    #[test]
    fn a_pid_namespace_is_the_pods_or_its_one_containers() {
        let pause = spec(&[("pid", ""), ("ipc", "")]);
        let sandbox = Neighbour { id: "s", pid: 7, stands: true, spec: &pause };
        let own = spec(&[("pid", "")]);
        let pods = format!("{DIR}/pid");
        let joined = spec(&[("pid", &pods)]);
        let wanted = [("pid", "/proc/7/ns/pid")];
        let to = |neighbours: &[Neighbour<'_>]| resolved(&wanted, neighbours).map(|n| n[0].1.clone());
        let real = |id, spec| Neighbour { id, pid: 7, stands: false, spec };
        assert_eq!(to(&[sandbox]).unwrap(), pods);
        assert_eq!(to(&[sandbox, real("a", &joined), real("b", &joined)]).unwrap(), pods);
        assert_eq!(to(&[sandbox, real("a", &own)]).unwrap(), format!("{DIR}/of/a/pid"));
        let err = to(&[sandbox, real("a", &own), real("b", &own)]).unwrap_err().to_string();
        assert!(err.contains("a, b") && err.contains("/proc/7/ns/pid"), "{err}");
        // Where each has a pid of its own there is nothing to guess.
        assert_eq!(to(&[sandbox, Neighbour { pid: 9, ..real("a", &own) }]).unwrap(), pods);
    }

    #[test]
    fn a_container_may_join_another_that_is_no_pods() {
        let first = spec(&[("pid", ""), ("ipc", "")]);
        let n = Neighbour { id: "x", pid: 9, stands: false, spec: &first };
        let wanted = [("pid", "/proc/9/ns/pid"), ("ipc", "/proc/9/ns/ipc"), ("uts", "/proc/9/ns/uts"), ("mount", "")];
        let (pid, ipc) = (format!("{DIR}/of/x/pid"), format!("{DIR}/of/x/ipc"));
        // Its UTS namespace is the guest's own.
        assert_eq!(resolved(&wanted, &[n]).unwrap(), pairs(&[("pid", &pid), ("ipc", &ipc), ("mount", "")]));
    }
}
