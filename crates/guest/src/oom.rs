//! Out-of-memory kills: each container's `memory.events` (cgroup v2) is watched, and what its `oom_kill` counter gains
//! becomes an event that GetOOMEvent waits for.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::inotify;
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::fdio::watch;

/// Events that wait for a host that asks.
const MAX_EVENTS: usize = 256;

/// The watcher. Clones share it.
#[derive(Clone)]
pub struct Oom(Arc<Inner>);

struct Inner {
    inotify: AsyncFd<OwnedFd>,
    state: Mutex<State>,
    more: Notify,
}

#[derive(Default)]
struct State {
    watched: HashMap<i32, Watched>,
    events: VecDeque<String>,
}

struct Watched {
    container: String,
    path: PathBuf,
    kills: u64,
}

impl Oom {
    /// Starts watching. Call once, within the runtime.
    ///
    /// # Errors
    /// inotify(7)'s.
    pub fn start() -> io::Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let inotify = watch(fd, Interest::READABLE)?;
        let me = Oom(Arc::new(Inner { inotify, state: Mutex::default(), more: Notify::new() }));
        let watcher = me.clone();
        tokio::spawn(async move {
            if let Err(e) = watcher.run().await {
                log::error!("out-of-memory kills are not told any more: {e}");
            }
        });
        Ok(me)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches a container's `memory.events`.
    ///
    /// # Errors
    /// When there is no such file: the kernel has no memory controller.
    pub fn watch(&self, container: &str, path: PathBuf) -> io::Result<()> {
        let kills = kills(&std::fs::read_to_string(&path)?);
        let mut state = self.state();
        let id = inotify::add_watch(self.0.inotify.get_ref(), &path, inotify::WatchFlags::MODIFY)?;
        state.watched.insert(id, Watched { container: container.to_owned(), path, kills });
        Ok(())
    }

    /// Watches it no more. Kills up to now are told.
    pub fn forget(&self, container: &str) {
        self.look(|w| w.container == container);
        let mut state = self.state();
        for (id, _) in state.watched.extract_if(|_, w| w.container == container) {
            // The kernel may have removed it with the cgroup.
            let _ = inotify::remove_watch(self.0.inotify.get_ref(), id);
        }
    }

    /// The id of the next container in which something was killed; waits for it.
    pub async fn next(&self) -> String {
        loop {
            // Made first, so that an event between the look and the wait is not missed.
            let more = self.0.more.notified();
            if let Some(container) = self.state().events.pop_front() {
                return container;
            }
            more.await;
        }
    }

    /// Reads the counters of those that `which` picks.
    fn look(&self, which: impl Fn(&Watched) -> bool) {
        let mut state = self.state();
        let State { watched, events } = &mut *state;
        let mut new = false;
        for w in watched.values_mut().filter(|w| which(w)) {
            // A cgroup that is gone has told what it had to tell.
            let Ok(text) = std::fs::read_to_string(&w.path) else { continue };
            let now = kills(&text);
            if now > w.kills {
                w.kills = now;
                if events.len() == MAX_EVENTS {
                    events.pop_front();
                }
                events.push_back(w.container.clone());
                new = true;
            }
        }
        drop(state);
        if new {
            self.0.more.notify_one();
        }
    }

    async fn run(&self) -> io::Result<()> {
        loop {
            let mut changed = Vec::new();
            self.0
                .inotify
                .async_io(Interest::READABLE, |fd| {
                    let mut buffer = [MaybeUninit::uninit(); 512];
                    let mut reader = inotify::Reader::new(fd, &mut buffer);
                    loop {
                        match reader.next() {
                            Ok(event) => changed.push(event.wd()),
                            Err(Errno::AGAIN) if !changed.is_empty() => return Ok(()),
                            Err(e) => return Err(e.into()),
                        }
                    }
                })
                .await?;
            let containers: Vec<String> = {
                let state = self.state();
                changed.iter().filter_map(|id| state.watched.get(id)).map(|w| w.container.clone()).collect()
            };
            self.look(|w| containers.contains(&w.container));
        }
    }
}

/// The `oom_kill` line of `memory.events`; 0 where there is none.
fn kills(text: &str) -> u64 {
    text.lines().find_map(|l| l.strip_prefix("oom_kill ")).and_then(|n| n.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_counter_is_found_among_its_neighbours() {
        assert_eq!(kills("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"), 2);
        assert_eq!(kills("low 0\n"), 0);
    }

    #[test]
    fn a_counter_that_grows_is_an_event_and_one_that_does_not_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("memory.events");
        std::fs::write(&file, "oom_kill 1\n").unwrap();
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        rt.block_on(async {
            let oom = Oom::start().unwrap();
            oom.watch("c1", file.clone()).unwrap();
            std::fs::write(&file, "oom_kill 1\n").unwrap();
            let early = tokio::time::timeout(Duration::from_millis(50), oom.next()).await;
            assert!(early.is_err());
            std::fs::write(&file, "oom_kill 2\n").unwrap();
            let id = tokio::time::timeout(Duration::from_secs(5), oom.next()).await.unwrap();
            assert_eq!(id, "c1");
            oom.forget("c1");
            assert!(oom.state().watched.is_empty());
        });
    }
}
