//! What a sandbox was made for, and whether anybody is left who could ask for its clean-up.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use kata_storage::View;
use serde::{Deserialize, Serialize};

use crate::key::Owner;
use crate::state::ContainerRecord;

/// Recorded when a sandbox is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Whose sandbox.
    pub owner: Owner,
    /// The bundle of its first container.
    pub bundle: PathBuf,
    /// Which directory that was: device and inode. Engines give the name to another one for another container of the same id.
    inode: Option<(u64, u64)>,
    /// The inode of the mount namespace in which the paths are true; none: it could not be told.
    mounts: Option<u64>,
}

impl Origin {
    /// Of a sandbox that is being made. `view`: where its bundle is, and whoever asked for it.
    pub fn of(owner: &Owner, bundle: &Path, view: &View) -> Origin {
        Origin { owner: owner.clone(), bundle: bundle.to_owned(), inode: inode(bundle).ok(), mounts: view.inode().ok() }
    }

    /// Whether nobody can ask for the clean-up of this sandbox any more, as seen by this process: an engine does so with the bundle,
    /// the user of a command line with what is kept in its `--root`. Where that cannot be known somebody still can.
    pub fn is_forgotten(&self, id: &str, containers: &BTreeMap<String, ContainerRecord>) -> bool {
        let bundle_is_gone = match inode(&self.bundle) {
            Ok(there) => self.inode.is_some_and(|ours| ours != there),
            Err(e) => e.kind() == io::ErrorKind::NotFound,
        };
        // The first question is the one that living sandboxes fail: it costs one stat(2).
        bundle_is_gone
            && self.bundle.is_absolute()
            && self
                .mounts
                .is_some_and(|theirs| View::current().and_then(|here| here.inode()).is_ok_and(|ours| ours == theirs))
            && containers.values().all(|c| is_gone(&c.bundle))
            && match &self.owner {
                Owner::Containerd(_) => true,
                // One directory a container.
                Owner::Oci(root) => containers.keys().map(String::as_str).chain([id]).all(|id| is_gone(&root.join(id))),
            }
    }
}

/// Device and inode.
fn inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|m| (m.dev(), m.ino()))
}

/// What cannot be looked at may be there.
fn is_gone(path: &Path) -> bool {
    fs::metadata(path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none() -> BTreeMap<String, ContainerRecord> {
        BTreeMap::new()
    }

    fn here() -> View {
        View::current().unwrap()
    }

    #[test]
    fn a_bundle_that_is_there_is_somebodys_and_one_of_the_same_name_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = dir.path().join("bundle");
        fs::create_dir(&bundle).unwrap();
        let origin = Origin::of(&Owner::Containerd("k8s.io".into()), &bundle, &here());
        assert!(!origin.is_forgotten("x", &none()));
        let other = dir.path().join("other");
        fs::create_dir(&other).unwrap();
        fs::remove_dir(&bundle).unwrap();
        assert!(origin.is_forgotten("x", &none()));
        fs::rename(&other, &bundle).unwrap();
        assert!(origin.is_forgotten("x", &none()), "the same name, another directory");
    }

    #[test]
    fn what_cannot_be_known_is_not_forgotten() {
        let gone = Path::new("/no/such/bundle");
        let owner = Owner::Containerd("k8s.io".into());
        assert!(Origin::of(&owner, gone, &here()).is_forgotten("x", &none()));
        // Paths of another mount namespace, or of one that is not known.
        for mounts in [None, Some(1)] {
            let origin = Origin { mounts, ..Origin::of(&owner, gone, &here()) };
            assert!(!origin.is_forgotten("x", &none()));
        }
        assert!(!Origin::of(&owner, Path::new("no/such/bundle"), &here()).is_forgotten("x", &none()));
        // A path through a file: neither there nor gone.
        assert!(!Origin::of(&owner, Path::new("/etc/passwd/bundle"), &here()).is_forgotten("x", &none()));
    }

    #[test]
    fn every_containers_bundle_must_be_gone() {
        let dir = tempfile::tempdir().unwrap();
        let origin = Origin::of(&Owner::Containerd("k8s.io".into()), &dir.path().join("gone"), &here());
        let record = |bundle: &Path| ContainerRecord { bundle: bundle.to_owned(), ..ContainerRecord::default() };
        let mut containers = none();
        containers.insert("x".into(), record(&dir.path().join("gone")));
        assert!(origin.is_forgotten("x", &containers));
        containers.insert("y".into(), record(dir.path()));
        assert!(!origin.is_forgotten("x", &containers));
    }

    #[test]
    fn what_the_command_line_still_lists_can_be_deleted_without_its_bundle() {
        let root = tempfile::tempdir().unwrap();
        let origin = Origin::of(&Owner::Oci(root.path().to_owned()), Path::new("/no/such/bundle"), &here());
        let mut containers = none();
        containers.insert("member".into(), ContainerRecord { bundle: "/no/such/other".into(), ..Default::default() });
        for id in ["x", "member"] {
            fs::create_dir(root.path().join(id)).unwrap();
            assert!(!origin.is_forgotten("x", &containers), "{id} can be deleted");
            fs::remove_dir(root.path().join(id)).unwrap();
        }
        assert!(origin.is_forgotten("x", &containers));
    }
}
