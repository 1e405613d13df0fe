//! Which namespaces a container gets, and entering them.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use kata_proto::oci;
use nix::sched::{CloneFlags, setns, unshare};

use crate::error::{JailError, Step};

/// linux/sched.h; nix has no name for it.
pub(crate) const CLONE_NEWTIME: CloneFlags = CloneFlags::from_bits_retain(0x80);

/// A kind of namespace, in the order in which they are entered: the user namespace first, because the others belong
/// to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    User,
    Mount,
    Uts,
    Ipc,
    Net,
    Pid,
    Cgroup,
    Time,
}

impl Kind {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "user" => Kind::User,
            "mount" => Kind::Mount,
            "uts" => Kind::Uts,
            "ipc" => Kind::Ipc,
            "network" => Kind::Net,
            "pid" => Kind::Pid,
            "cgroup" => Kind::Cgroup,
            "time" => Kind::Time,
            _ => return None,
        })
    }

    pub(crate) fn flag(self) -> CloneFlags {
        match self {
            Kind::User => CloneFlags::CLONE_NEWUSER,
            Kind::Mount => CloneFlags::CLONE_NEWNS,
            Kind::Uts => CloneFlags::CLONE_NEWUTS,
            Kind::Ipc => CloneFlags::CLONE_NEWIPC,
            Kind::Net => CloneFlags::CLONE_NEWNET,
            Kind::Pid => CloneFlags::CLONE_NEWPID,
            Kind::Cgroup => CloneFlags::CLONE_NEWCGROUP,
            Kind::Time => CLONE_NEWTIME,
        }
    }
}

/// The namespaces of a spec: for each kind either a path to join or `None` for a new one.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Namespaces(BTreeMap<Kind, Option<String>>);

impl Namespaces {
    /// Reads and checks the spec's list.
    pub(crate) fn parse(list: &[oci::LinuxNamespace]) -> Result<Self, JailError> {
        let mut all = BTreeMap::new();
        for ns in list {
            let kind = Kind::parse(&ns.Type)
                .ok_or_else(|| JailError::invalid(format!("unknown namespace type {:?}", ns.Type)))?;
            let path = (!ns.Path.is_empty()).then(|| ns.Path.clone());
            if all.insert(kind, path).is_some() {
                return Err(JailError::invalid(format!("namespace {:?} is listed twice", ns.Type)));
            }
        }
        match all.get(&Kind::Mount) {
            None => return Err(JailError::unsupported("a container without a mount namespace of its own")),
            Some(Some(path)) => return Err(JailError::unsupported(format!("joining the mount namespace {path}"))),
            Some(None) => {}
        }
        Ok(Namespaces(all))
    }

    /// Whether the container has this kind for itself or with others, but not with the agent.
    pub(crate) fn has(&self, kind: Kind) -> bool {
        self.0.contains_key(&kind)
    }

    /// Whether a new one is to be made.
    pub(crate) fn is_new(&self, kind: Kind) -> bool {
        matches!(self.0.get(&kind), Some(None))
    }

    /// The flags of all of them.
    pub(crate) fn flags(&self) -> CloneFlags {
        self.0.keys().fold(CloneFlags::empty(), |all, kind| all | kind.flag())
    }

    /// Opens those that are to be joined, while the paths still mean what the agent meant.
    pub(crate) fn open(&self) -> Result<Vec<(Kind, OwnedFd)>, JailError> {
        let mut fds = Vec::new();
        for (kind, path) in &self.0 {
            if let Some(path) = path {
                let file = std::fs::File::open(path).step(|| format!("opening namespace {path}"))?;
                fds.push((*kind, OwnedFd::from(file)));
            }
        }
        Ok(fds)
    }

    /// The new ones that are made before the fork, but for the user namespace. The cgroup namespace comes later: its
    /// root is the cgroup of the process that makes it.
    fn new_flags(&self) -> CloneFlags {
        let late = [Kind::User, Kind::Cgroup];
        self.0
            .iter()
            .filter(|(kind, path)| path.is_none() && !late.contains(kind))
            .fold(CloneFlags::empty(), |all, (kind, _)| all | kind.flag())
    }

    /// Enters all but a new user namespace and a new cgroup namespace.
    pub(crate) fn enter(&self, join: &[(Kind, OwnedFd)]) -> Result<(), JailError> {
        for (kind, fd) in join {
            // The flag makes the kernel check that the file is a namespace of this kind.
            setns(fd, kind.flag()).step(|| format!("joining the {kind:?} namespace"))?;
        }
        let flags = self.new_flags();
        unshare(flags).step(|| format!("making new namespaces ({flags:?})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ns(kind: &str, path: &str) -> oci::LinuxNamespace {
        oci::LinuxNamespace { Type: kind.into(), Path: path.into(), ..Default::default() }
    }

    #[test]
    fn the_list_is_checked() {
        assert!(matches!(Namespaces::parse(&[]), Err(JailError::Unsupported { .. })));
        assert!(matches!(Namespaces::parse(&[ns("mount", "/x")]), Err(JailError::Unsupported { .. })));
        assert!(matches!(Namespaces::parse(&[ns("mount", ""), ns("moon", "")]), Err(JailError::InvalidSpec { .. })));
        let twice = [ns("mount", ""), ns("pid", ""), ns("pid", "")];
        assert!(matches!(Namespaces::parse(&twice), Err(JailError::InvalidSpec { .. })));
    }

    #[test]
    fn joined_and_late_ones_are_not_made_at_first() {
        let all = [ns("mount", ""), ns("pid", "/proc/1/ns/pid"), ns("cgroup", ""), ns("user", ""), ns("time", "")];
        let n = Namespaces::parse(&all).unwrap();
        assert_eq!(n.new_flags(), CloneFlags::CLONE_NEWNS | CLONE_NEWTIME);
        assert!(n.has(Kind::Pid) && !n.is_new(Kind::Pid) && n.is_new(Kind::Cgroup) && !n.has(Kind::Net));
        assert!(n.flags().contains(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWUSER));
    }
}
