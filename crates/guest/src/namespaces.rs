//! Namespaces that containers share. A spec names them by paths below [`GUEST_NS_DIR`]: the sandbox's own, made when they
//! are first asked for, or another container's. The network's is no part of this: it is the guest's own for all of them.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kata_proto::oci;
use kata_types::GUEST_NS_DIR;
use nix::sched::{CloneFlags, unshare};

use crate::container::{Container, blocking};
use crate::engine;
use crate::failure::Failure;
use crate::reaper::Reaper;

/// The kinds that can be shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Ipc,
    Uts,
    Pid,
}

impl Kind {
    const ALL: [Kind; 3] = [Kind::Ipc, Kind::Uts, Kind::Pid];

    /// As in a spec, and in /proc/PID/ns.
    fn name(self) -> &'static str {
        match self {
            Kind::Ipc => "ipc",
            Kind::Uts => "uts",
            Kind::Pid => "pid",
        }
    }

    fn parse(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// Whose namespace a path means.
#[derive(Debug, PartialEq, Eq)]
enum Owner<'a> {
    Sandbox(Kind),
    Container(&'a str, Kind),
}

/// `None`: a path of another kind.
fn parse(path: &str) -> Option<Result<Owner<'_>, Failure>> {
    let rest = path.strip_prefix(GUEST_NS_DIR)?.strip_prefix('/')?;
    let bad = || Failure::Invalid(format!("{path:?} is no namespace that containers can share"));
    let owner = match rest.split('/').collect::<Vec<_>>()[..] {
        [kind] => Kind::parse(kind).map(Owner::Sandbox),
        ["of", id, kind] => Kind::parse(kind).map(|kind| Owner::Container(id, kind)),
        _ => None,
    };
    Some(owner.ok_or_else(bad))
}

enum Made {
    File(Arc<OwnedFd>),
    Pids(engine::PidNamespace),
}

/// The sandbox's own.
pub struct Namespaces {
    reaper: Reaper,
    made: Mutex<BTreeMap<Kind, Made>>,
    /// Held while one is made, which blocks.
    making: tokio::sync::Mutex<()>,
}

/// What a resolved spec's paths lead to, open as long as they are to be used.
#[must_use]
pub struct Held {
    _files: Vec<OwnedFd>,
}

impl Namespaces {
    /// None are made yet.
    pub fn new(reaper: Reaper) -> Namespaces {
        Namespaces { reaper, made: Mutex::default(), making: tokio::sync::Mutex::default() }
    }

    fn made(&self) -> MutexGuard<'_, BTreeMap<Kind, Made>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the pid namespace that the containers of this sandbox will ask for.
    ///
    /// # Errors
    /// [`Failure::Internal`].
    pub async fn prepare_pids(&self) -> Result<(), Failure> {
        self.own(Kind::Pid).await.map(drop)
    }

    /// Replaces paths below [`GUEST_NS_DIR`] in a spec by such as can be opened now. `container` finds one by its id.
    ///
    /// # Errors
    /// [`Failure`] naming the path; nothing of the spec can be used then.
    pub async fn resolve(
        &self,
        spec: &mut oci::Spec,
        container: impl Fn(&str) -> Result<Arc<Container>, Failure>,
    ) -> Result<Held, Failure> {
        let mut held = Vec::new();
        let Some(linux) = spec.Linux.as_mut() else { return Ok(Held { _files: held }) };
        for ns in &mut linux.Namespaces {
            let Some(owner) = parse(&ns.Path) else { continue };
            let (file, kind) = match owner? {
                Owner::Sandbox(kind) => (self.own(kind).await?, kind),
                Owner::Container(id, kind) => (container(id)?.namespace(kind.name())?, kind),
            };
            if ns.Type != kind.name() {
                return Err(Failure::Invalid(format!("{:?} is no {} namespace", ns.Path, ns.Type)));
            }
            ns.Path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
            held.push(file);
        }
        Ok(Held { _files: held })
    }

    /// The sandbox's namespace of a kind, made if there is none yet.
    async fn own(&self, kind: Kind) -> Result<OwnedFd, Failure> {
        let _making = self.making.lock().await;
        let there = match self.made().get(&kind) {
            Some(Made::File(file)) => Some(file.try_clone()),
            Some(Made::Pids(pids)) => Some(pids.file().try_clone()),
            None => None,
        };
        if let Some(copy) = there {
            return copy.map_err(|e| failed(kind, &e));
        }
        let made = match kind {
            Kind::Ipc => pinned(kind, CloneFlags::CLONE_NEWIPC).await?,
            Kind::Uts => pinned(kind, CloneFlags::CLONE_NEWUTS).await?,
            Kind::Pid => {
                // Its first process is our child: its end is taken, and means nothing.
                let _hold = self.reaper.hold();
                let (pids, _) = blocking(|| Ok(engine::PidNamespace::create()?)).await?;
                Made::Pids(pids)
            }
        };
        let copy = match &made {
            Made::File(file) => file.try_clone(),
            Made::Pids(pids) => pids.file().try_clone(),
        };
        self.made().insert(kind, made);
        copy.map_err(|e| failed(kind, &e))
    }

    /// Gives all of them up: no container is left that uses them.
    pub fn clear(&self) {
        self.made().clear();
    }
}

fn failed(kind: Kind, e: &std::io::Error) -> Failure {
    Failure::io(format_args!("cannot make the sandbox's {} namespace", kind.name()), e)
}

/// A namespace that one thread has made, kept by its file.
async fn pinned(kind: Kind, flag: CloneFlags) -> Result<Made, Failure> {
    let make = move || {
        // A thread of its own: it is in another namespace from here on, and is not used for anything else.
        let made = std::thread::spawn(move || {
            unshare(flag)?;
            File::open(format!("/proc/thread-self/ns/{}", kind.name()))
        });
        let file = made.join().unwrap_or_else(|_| Err(std::io::Error::other("its thread panicked")));
        file.map(|file| Made::File(Arc::new(file.into()))).map_err(|e| failed(kind, &e))
    };
    blocking(make).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_mean_the_sandboxs_or_a_containers_or_something_else() {
        let read = |rest: &str| match parse(&format!("{GUEST_NS_DIR}{rest}")) {
            Some(Ok(Owner::Sandbox(kind))) => format!("sandbox {}", kind.name()),
            Some(Ok(Owner::Container(id, kind))) => format!("{id} {}", kind.name()),
            Some(Err(Failure::Invalid(_))) => "invalid".into(),
            Some(Err(_)) => "another error".into(),
            None => "other".to_owned(),
        };
        assert_eq!(read("/ipc"), "sandbox ipc");
        assert_eq!(read("/of/c1/pid"), "c1 pid");
        for bad in ["/", "/mnt", "/user", "/of/c1", "/of/c1/net", "/of/../c1/ipc", "/of/c1/ipc/"] {
            assert_eq!(read(bad), "invalid", "{bad}");
        }
        assert_eq!(read("x/ipc"), "other");
        assert!(parse("/proc/1/ns/ipc").is_none());
    }

    #[tokio::test]
    async fn a_pinned_namespace_is_another_than_ours_and_the_same_twice() {
        // Where the test may not make one (no root), that is what it says.
        let all = Namespaces::new(Reaper::default());
        let inode = |file: OwnedFd| std::os::unix::fs::MetadataExt::ino(&File::from(file).metadata().unwrap());
        match all.own(Kind::Ipc).await {
            Ok(first) => {
                let first = inode(first);
                assert_eq!(first, inode(all.own(Kind::Ipc).await.unwrap()));
                assert_ne!(first, inode(File::open("/proc/self/ns/ipc").unwrap().into()));
            }
            Err(e) => assert!(e.to_string().contains("ipc namespace"), "{e}"),
        }
    }
}
