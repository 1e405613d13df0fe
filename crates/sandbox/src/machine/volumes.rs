//! What a container has of the host's files: shown in the share, and, where the host changes them, followed.

use std::path::Path;

use kata_proto::agent as pb;
use kata_proto::oci;
use kata_storage::ShareError;
use kata_types::ContainerId;

use super::Machine;
use super::follow::{self, Follower};
use crate::plan::Bind;

impl Machine {
    /// Shows binds to a container, and fills in the sources of its mounts; returns what the agent has to mount for them.
    ///
    /// # Errors
    /// [`ShareError`]; what was done stays until [`Machine::remove_volumes`].
    pub fn add_binds(
        &mut self,
        container: &ContainerId,
        binds: &[Bind],
        spec: &mut oci::Spec,
    ) -> Result<Vec<pb::Storage>, ShareError> {
        let mut storages = Vec::new();
        for bind in binds {
            let shared = if bind.later {
                self.share.add_bind(container, &bind.source, bind.read_only, bind.recursive)?
            } else {
                self.share.add_private_bind(container, &bind.source, bind.read_only, bind.recursive)?
            };
            let Some(mount) = spec.Mounts.get_mut(bind.mount) else { continue };
            // The source may be mounted where this process does not see it; the share is the same directory.
            let here = self.share.on_host(&shared);
            mount.source = if bind.followed && here.is_dir() {
                let mut storage = follow::storage(container, bind.mount, &shared, false);
                // Before the guest copies it: no change may fall between the two.
                if self.watch(container, &here, &storage.mount_point) {
                    storage = follow::storage(container, bind.mount, &shared, true);
                }
                let copy = storage.mount_point.clone();
                storages.push(storage);
                copy
            } else {
                shared
            };
        }
        Ok(storages)
    }

    /// Whether the guest will be told of changes; if not, it has to look by itself.
    fn watch(&mut self, container: &ContainerId, source: &Path, copy: &str) -> bool {
        let follower = match self.follower.take() {
            Some(follower) => Ok(follower),
            None => Follower::start(self.agent.clone()),
        };
        let watched = follower.and_then(|f| self.follower.insert(f).add(container, source, copy));
        if let Err(e) = &watched {
            let source = source.display();
            tracing::warn!("{source} cannot be watched, so the guest looks at it every second: {e}");
        }
        watched.is_ok()
    }

    /// Takes a container's files out of the share.
    ///
    /// # Errors
    /// [`ShareError`] with what could not be removed.
    pub fn remove_volumes(&mut self, container: &ContainerId) -> Result<(), ShareError> {
        if let Some(follower) = &self.follower {
            follower.forget(container);
        }
        self.share.remove_container(container)
    }
}
