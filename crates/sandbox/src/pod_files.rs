//! What the containers of a pod have in /etc, and their shared memory, where the engine leaves that to the sandbox: containerd
//! mounts neither into the containers of a pod that it has made through its Sandbox API.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use kata_oci::{Mount, Spec};
use kata_storage::View;
use thiserror::Error;

/// Each file's name in our directory, and where containers have it.
const FILES: [(&str, &str); 3] =
    [("hostname", "/etc/hostname"), ("hosts", "/etc/hosts"), ("resolv.conf", "/etc/resolv.conf")];
const SHM: &str = "/dev/shm";

/// A file that the pod cannot have.
#[derive(Debug, Error)]
#[error("cannot {what} {path} for the pod's containers: {source}")]
pub struct PodFilesError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// What is in the files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodNames {
    /// The pod's own.
    pub hostname: String,
    /// Of its resolv.conf(5). All three empty: the host's own file.
    pub servers: Vec<String>,
    /// Domains.
    pub searches: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

/// The files, in the sandbox's directory, which they go with.
#[derive(Debug, Clone)]
pub struct PodFiles {
    dir: PathBuf,
}

impl PodFiles {
    /// Writes them. `host`: where the host's own files are looked for.
    ///
    /// # Errors
    /// [`PodFilesError`].
    pub fn make(run_dir: &Path, names: &PodNames, host: &View) -> Result<PodFiles, PodFilesError> {
        let dir = run_dir.join("etc");
        let fail = |what, path: &Path| {
            let path = path.to_owned();
            move |source| PodFilesError { what, path, source }
        };
        // Its parent is closed to all others; containers get the files themselves.
        std::fs::DirBuilder::new().mode(0o755).create(&dir).map_err(fail("make", &dir))?;
        let hosts = |path: &str| {
            let path = Path::new(path);
            match host.look(|| std::fs::read(path)).flatten() {
                Ok(bytes) => Ok(bytes),
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
                Err(e) => Err(fail("read", path)(e)),
            }
        };
        for (name, at) in FILES {
            let bytes = match name {
                "hostname" => format!("{}\n", names.hostname).into_bytes(),
                "resolv.conf" => resolv_conf(names).map_or_else(|| hosts(at), |text| Ok(text.into_bytes()))?,
                _ => hosts(at)?,
            };
            let path = dir.join(name);
            std::fs::write(&path, bytes).map_err(fail("write", &path))?;
        }
        Ok(PodFiles { dir })
    }

    /// Adds to the spec of one of the pod's containers what it does not have.
    pub(crate) fn give(&self, spec: &mut Spec) {
        let read_only = spec.root.as_ref().is_some_and(|root| root.readonly);
        for (name, at) in FILES {
            if spec.mounts.iter().any(|m| m.destination == at) {
                continue;
            }
            let options = ["rbind", "rprivate", if read_only { "ro" } else { "rw" }].map(str::to_owned).to_vec();
            let source = self.dir.join(name).to_string_lossy().into_owned();
            spec.mounts.push(Mount { destination: at.into(), kind: "bind".into(), source, options });
        }
        let mut namespaces = spec.linux.iter().flat_map(|l| &l.namespaces);
        if !namespaces.any(|ns| ns.kind == "ipc" && !ns.path.is_empty()) {
            return;
        }
        // By the name of its source, containers have it in common; it is in the guest, and never here.
        for shm in spec.mounts.iter_mut().filter(|m| m.destination == SHM && m.kind == "tmpfs") {
            shm.kind = "bind".into();
            shm.source = self.dir.join("shm").to_string_lossy().into_owned();
            shm.options.retain(|o| o.starts_with("size="));
            shm.options.push("rbind".into());
        }
    }
}

/// The file that these make; `None` if they say nothing.
fn resolv_conf(names: &PodNames) -> Option<String> {
    let PodNames { servers, searches, options, .. } = names;
    if servers.is_empty() && searches.is_empty() && options.is_empty() {
        return None;
    }
    let mut text = String::new();
    if !searches.is_empty() {
        text += &format!("search {}\n", searches.join(" "));
    }
    servers.iter().for_each(|server| text += &format!("nameserver {server}\n"));
    if !options.is_empty() {
        text += &format!("options {}\n", options.join(" "));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> Spec {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn the_files_say_what_the_pod_was_told_and_else_what_the_host_says() {
        let dir = tempfile::tempdir().unwrap();
        let told = PodNames {
            hostname: "web".into(),
            servers: vec!["10.0.0.1".into(), "10.0.0.2".into()],
            searches: vec!["a.local".into(), "local".into()],
            options: vec!["ndots:5".into()],
        };
        let host = View::current().unwrap();
        PodFiles::make(dir.path(), &told, &host).unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join("etc").join(name)).unwrap();
        assert_eq!(read("hostname"), "web\n");
        assert_eq!(
            read("resolv.conf"),
            "search a.local local\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions ndots:5\n"
        );
        assert_eq!(read("hosts"), std::fs::read_to_string("/etc/hosts").unwrap_or_default());
        let other = tempfile::tempdir().unwrap();
        PodFiles::make(other.path(), &PodNames::default(), &host).unwrap();
        let hosts = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        assert_eq!(std::fs::read_to_string(other.path().join("etc/resolv.conf")).unwrap(), hosts);
        // Twice is a mistake of ours, and is told.
        assert!(PodFiles::make(other.path(), &told, &host).unwrap_err().to_string().contains("etc"));
    }

    #[test]
    fn a_container_is_given_what_it_lacks() {
        let files = PodFiles { dir: "/run/s/etc".into() };
        let mut spec = spec(
            r#"{"root":{"path":"r","readonly":true},"mounts":[
            {"destination":"/etc/hosts","type":"bind","source":"/kubelets","options":["rbind"]},
            {"destination":"/dev/shm","type":"tmpfs","source":"shm","options":["nosuid","size=65536k"]}],
            "linux":{"namespaces":[{"type":"ipc","path":"/proc/7/ns/ipc"}]}}"#,
        );
        files.give(&mut spec);
        let of = |at: &str| spec.mounts.iter().filter(|m| m.destination == at).collect::<Vec<_>>();
        assert_eq!(of("/etc/hosts").iter().map(|m| m.source.as_str()).collect::<Vec<_>>(), ["/kubelets"]);
        let resolv = of("/etc/resolv.conf");
        assert_eq!((resolv[0].source.as_str(), resolv[0].is_read_only()), ("/run/s/etc/resolv.conf", true));
        let shm = of("/dev/shm");
        assert!(
            shm[0].is_bind() && shm[0].source == "/run/s/etc/shm" && shm[0].options.contains(&"size=65536k".into())
        );
    }

    #[test]
    fn shared_memory_is_a_containers_own_where_its_ipc_namespace_is() {
        let files = PodFiles { dir: "/run/s/etc".into() };
        let mut spec = spec(
            r#"{"mounts":[{"destination":"/dev/shm","type":"tmpfs","source":"shm"}],
            "linux":{"namespaces":[{"type":"ipc"}]}}"#,
        );
        files.give(&mut spec);
        assert!(!spec.mounts[0].is_bind());
    }
}
