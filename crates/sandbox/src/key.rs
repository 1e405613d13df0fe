//! Where a sandbox lives on the host.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Whose sandbox: ids are only unique within a containerd namespace, or within a root of the OCI command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// containerd, by its namespace.
    Containerd(String),
    /// The OCI command line, by `--root` (absolute).
    Oci(PathBuf),
}

/// A sandbox's short key: 32 hex digits, so that socket paths stay under the 107 bytes that unix(7) allows.
pub fn key(owner: &Owner, id: &str) -> String {
    let mut hash = Sha256::new();
    match owner {
        Owner::Containerd(namespace) => {
            hash.update(b"containerd\0");
            hash.update(namespace.as_bytes());
        }
        Owner::Oci(root) => {
            hash.update(b"oci\0");
            hash.update(root.as_os_str().as_encoded_bytes());
        }
    }
    hash.update(b"\0");
    hash.update(id.as_bytes());
    let mut text = hex::encode(hash.finalize());
    text.truncate(32);
    text
}

/// The sandbox's directory below [`kata_types::HOST_RUN_DIR`].
pub fn run_dir(owner: &Owner, id: &str) -> PathBuf {
    Path::new(kata_types::HOST_RUN_DIR).join(key(owner, id))
}

/// The Task API's socket in a run directory.
pub fn task_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("task.sock")
}

/// The socket at which shims attach, in a run directory.
pub fn attach_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("attach.sock")
}

/// The management socket in a run directory; upstream's name.
pub fn monitor_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("shim-monitor.sock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_do_not_share_keys() {
        let a = key(&Owner::Containerd("default".into()), "c");
        assert_eq!(a.len(), 32);
        assert_ne!(a, key(&Owner::Containerd("moby".into()), "c"));
        assert_ne!(a, key(&Owner::Oci("default".into()), "c"));
        assert_ne!(key(&Owner::Oci("/a".into()), "b"), key(&Owner::Oci("/a".into()), "c"));
    }
}
