//! Volumes that the host changes while a container has them (a ConfigMap of Kubernetes'). No inotify event comes through
//! virtio-fs, so the guest has copies of them, and is told when to look again. Nothing runs as long as nothing changes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kata_agent_client::AgentClient;
use kata_proto::agent as pb;
use kata_types::ContainerId;
use rustix::fs::inotify::{self, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The driver, by upstream's name.
pub const DRIVER: &str = "watchable-bind";
/// The option that spares the agent to look by itself.
const TOLD: &str = "kata-rs.told";
/// Where the guest has the copies.
const COPIES: &str = "/run/kata-containers/watchable";
/// An update is several changes: the guest is told when none has come for so long,
const QUIET: Duration = Duration::from_millis(50);
/// or so long after the first.
const AT_MOST: Duration = Duration::from_millis(500);

/// What tells of a change in a directory: the kubelet renames a link in it; others may write to a file in it.
const CHANGES: WatchFlags = WatchFlags::MOVED_TO
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ATTRIB);

/// The watch on all such volumes of a sandbox. Ends when it is dropped.
#[derive(Debug)]
pub struct Follower {
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    inotify: AsyncFd<OwnedFd>,
    watched: Mutex<Watched>,
}

/// By watch: whose copies are where. One directory has one watch, however many containers have it.
type Watched = BTreeMap<i32, BTreeSet<(ContainerId, String)>>;

/// What the agent is asked to mount for a container's volume with this number.
pub fn storage(container: &ContainerId, number: usize, shared: &str, told: bool) -> pb::Storage {
    let mut storage = pb::Storage::new();
    storage.driver = DRIVER.into();
    storage.source = shared.into();
    storage.fstype = "bind".into();
    storage.options = vec!["bind".into()];
    storage.mount_point = format!("{COPIES}/{container}/{number}");
    if told {
        storage.driver_options.push(TOLD.into());
    }
    storage
}

impl Follower {
    /// Must be called within the runtime.
    ///
    /// # Errors
    /// inotify(7)'s: a user has only so many (fs.inotify.max_user_instances).
    pub fn start(agent: AgentClient) -> io::Result<Follower> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        #[expect(deprecated, reason = "unsound only for types whose descriptor may change; the replacement is unsafe")]
        let inotify = AsyncFd::with_interest(fd, Interest::READABLE)?;
        let shared = Arc::new(Shared { inotify, watched: Mutex::default() });
        let task = tokio::spawn(run(Arc::clone(&shared), agent));
        Ok(Follower { shared, task })
    }

    /// Watches the directory `source`, of which the container has a copy at `copy` in the guest.
    ///
    /// # Errors
    /// inotify(7)'s.
    pub fn add(&self, container: &ContainerId, source: &Path, copy: &str) -> io::Result<()> {
        let mut watched = self.shared.watched();
        let id = inotify::add_watch(self.shared.inotify.get_ref(), source, CHANGES | WatchFlags::ONLYDIR)?;
        watched.entry(id).or_default().insert((container.clone(), copy.to_owned()));
        Ok(())
    }

    /// Watches nothing for this container any more.
    pub fn forget(&self, container: &ContainerId) {
        let mut watched = self.shared.watched();
        watched.retain(|id, copies| {
            copies.retain(|(of, _)| of != container);
            if copies.is_empty() {
                // Gone already with its directory.
                let _ = inotify::remove_watch(self.shared.inotify.get_ref(), *id);
            }
            !copies.is_empty()
        });
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The watches on which something has happened; `None`: more than the kernel could tell of.
    async fn changed(&self) -> io::Result<Option<BTreeSet<i32>>> {
        self.inotify
            .async_io(Interest::READABLE, |fd| {
                let mut buffer = [MaybeUninit::uninit(); 4096];
                let mut reader = inotify::Reader::new(fd, &mut buffer);
                let mut changed = BTreeSet::new();
                let mut overflow = false;
                loop {
                    match reader.next() {
                        Ok(event) => {
                            overflow |= event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW);
                            changed.insert(event.wd());
                        }
                        Err(Errno::AGAIN) if !changed.is_empty() => return Ok((!overflow).then_some(changed)),
                        Err(e) => return Err(e.into()),
                    }
                }
            })
            .await
    }
}

async fn run(shared: Arc<Shared>, agent: AgentClient) {
    loop {
        let mut all = match shared.changed().await {
            Ok(changed) => changed,
            Err(e) => {
                tracing::error!("volumes are not followed any more: {e}");
                return;
            }
        };
        let deadline = tokio::time::Instant::now() + AT_MOST;
        loop {
            let until = deadline.min(tokio::time::Instant::now() + QUIET);
            match tokio::time::timeout_at(until, shared.changed()).await {
                Ok(Ok(more)) => all = all.zip(more).map(|(a, b)| &a | &b),
                Ok(Err(_)) | Err(_) => break,
            }
            if tokio::time::Instant::now() >= deadline {
                break;
            }
        }
        let mut request = pb::UpdateEphemeralMountsRequest::new();
        request.storages = {
            let watched = shared.watched();
            let hit = watched.iter().filter(|(id, _)| all.as_ref().is_none_or(|all| all.contains(id)));
            hit.flat_map(|(_, copies)| copies).map(|(_, copy)| told(copy)).collect()
        };
        if request.storages.is_empty() {
            continue;
        }
        tracing::debug!(volumes = request.storages.len(), "volumes have changed");
        if let Err(err) = agent.calls().update_ephemeral_mounts(request).await {
            tracing::warn!("the guest has not taken over what changed in a volume: {err}");
        }
    }
}

fn told(copy: &str) -> pb::Storage {
    let mut storage = pb::Storage::new();
    storage.driver = DRIVER.into();
    storage.mount_point = copy.to_owned();
    storage
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_asked_for_in_upstreams_words() {
        let s = storage(&ContainerId::new("c1").unwrap(), 2, "/shared/c1/mounts/2", true);
        assert_eq!(
            (s.driver.as_str(), s.mount_point.as_str()),
            ("watchable-bind", "/run/kata-containers/watchable/c1/2")
        );
        assert_eq!(s.driver_options, [TOLD]);
        assert!(storage(&ContainerId::new("c1").unwrap(), 2, "", false).driver_options.is_empty());
    }
}
