//! `--root`: one directory a container. Making it is the lock on the id. All else about a container is known by the
//! daemon, or in the state file of its sandbox's directory, whose name follows from root and id.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use kata_sandbox::{Owner, run_dir};
use kata_types::ContainerId;
use serde::{Deserialize, Serialize};

use crate::error::{CliError, io};

const FILE: &str = "container.json";

/// The containers under one root.
#[derive(Debug, Clone)]
pub struct Store {
    /// Absolute.
    pub root: PathBuf,
}

/// What `list` shows of a container beyond its state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    /// RFC 3339.
    pub created: String,
    /// uid of whoever made it.
    pub owner: u32,
    /// The sandbox that it is in; none: one of its own id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
}

impl Store {
    /// The containers under `root`, which need not exist yet.
    ///
    /// # Errors
    /// A relative root without a working directory.
    pub fn new(root: &Path) -> Result<Store, CliError> {
        Ok(Store { root: std::path::absolute(root).map_err(io("use the root", root))? })
    }

    /// The directory of a container's sandbox, whether it exists or not. `entry` is the container's.
    pub fn run_dir(&self, id: &str, entry: &Entry) -> PathBuf {
        run_dir(&self.owner(), entry.sandbox.as_deref().unwrap_or(id))
    }

    /// Whose sandboxes these are.
    pub fn owner(&self) -> Owner {
        Owner::Oci(self.root.clone())
    }

    /// Takes the id, for a container in its own sandbox or in `sandbox`.
    ///
    /// # Errors
    /// [`CliError::Exists`], a bad id, or the directory's.
    pub fn add(&self, id: &str, bundle: &Path, sandbox: Option<String>) -> Result<Entry, CliError> {
        ContainerId::new(id)?;
        DirBuilder::new().recursive(true).mode(0o711).create(&self.root).map_err(io("make", &self.root))?;
        let dir = self.root.join(id);
        match DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(CliError::Exists { id: id.to_owned(), root: self.root.clone() });
            }
            Err(e) => return Err(io("make", dir)(e)),
        }
        let entry = Entry {
            bundle: bundle.to_owned(),
            created: crate::log::now(),
            owner: nix::unistd::Uid::current().as_raw(),
            sandbox,
        };
        let path = dir.join(FILE);
        let text = serde_json::to_vec(&entry).map_err(|e| io("write", &path)(e.into()))?;
        std::fs::write(&path, text).map_err(io("write", &path))?;
        Ok(entry)
    }

    /// A container that exists.
    ///
    /// # Errors
    /// [`CliError::NotFound`], or a bad id.
    pub fn get(&self, id: &str) -> Result<Entry, CliError> {
        ContainerId::new(id)?;
        let dir = self.root.join(id);
        if !dir.is_dir() {
            return Err(CliError::NotFound { id: id.to_owned(), root: self.root.clone() });
        }
        // A crash can have come between the directory and its file: such a container can still be deleted.
        let text = std::fs::read(dir.join(FILE)).unwrap_or_default();
        Ok(serde_json::from_slice(&text).unwrap_or_default())
    }

    /// Gives the id back.
    ///
    /// # Errors
    /// The directory's.
    pub fn remove(&self, id: &str) -> Result<(), CliError> {
        ContainerId::new(id)?;
        let dir = self.root.join(id);
        match std::fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io("remove", dir)(e)),
            _ => Ok(()),
        }
    }

    /// All ids, sorted.
    pub fn ids(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.root).into_iter().flatten().flatten();
        let mut ids: Vec<String> = entries
            .filter(|e| e.path().is_dir())
            .filter_map(|e| e.file_name().into_string().ok())
            .filter(|id| ContainerId::new(id.as_str()).is_ok())
            .collect();
        ids.sort();
        ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_once_and_cannot_leave_the_root() {
        let root = std::env::temp_dir().join(format!("kata-store-{}", std::process::id()));
        let s = Store::new(&root).unwrap();
        s.add("a", Path::new("/b"), None).unwrap();
        assert!(matches!(s.add("a", Path::new("/b"), None), Err(CliError::Exists { .. })));
        let alone = s.get("a").unwrap();
        assert_eq!(alone.bundle, Path::new("/b"));
        let member = s.add("m", Path::new("/b"), Some("a".into())).unwrap();
        assert_eq!(s.get("m").unwrap(), member);
        assert_eq!(s.run_dir("m", &member), s.run_dir("a", &alone));
        s.remove("m").unwrap();
        assert!(matches!(s.get("b"), Err(CliError::NotFound { .. })));
        for bad in ["../x", "", "a/b", ".."] {
            assert!(matches!(s.add(bad, Path::new("/b"), None), Err(CliError::Id(_))), "{bad}");
            assert!(matches!(s.remove(bad), Err(CliError::Id(_))), "{bad}");
        }
        assert_eq!(s.ids(), ["a"]);
        s.remove("a").unwrap();
        assert!(s.ids().is_empty());
        std::fs::remove_dir_all(&root).unwrap();
    }
}
