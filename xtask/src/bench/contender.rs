//! Who runs containers: others, and we in each of the ways in which a sandbox can begin.

use std::path::PathBuf;

use anyhow::Result;

use super::kata::{Kata, Mode, Ticket};

/// A runtime that is not ours.
#[derive(Debug)]
pub struct Other {
    /// For people, and its program.
    pub name: &'static str,
    /// What containerd calls it.
    pub containerd: &'static str,
}

/// Those we know how to call. The first is the yardstick.
pub const OTHERS: &[Other] = &[
    Other { name: "runc", containerd: "io.containerd.runc.v2" },
    Other { name: "crun", containerd: "io.containerd.runc.v2" },
    Other { name: "runsc", containerd: "io.containerd.runsc.v1" },
];

/// Who runs a container.
pub enum Contender {
    /// Somebody else, by the path of the program.
    Other(&'static Other, PathBuf),
    /// We.
    Kata(Kata),
}

impl Contender {
    /// For people, and for containers' ids.
    pub fn name(&self) -> String {
        match self {
            Contender::Other(other, _) => other.name.to_owned(),
            Contender::Kata(kata) => kata.name(),
        }
    }

    /// How our sandbox begins; `None` of others.
    pub fn mode(&self) -> Option<Mode> {
        match self {
            Contender::Other(..) => None,
            Contender::Kata(kata) => Some(kata.mode()),
        }
    }

    /// Waits until `starts` containers could be started in the way that is meant.
    ///
    /// # Errors
    /// They cannot be.
    pub fn ready(&self, starts: usize) -> Result<Option<Ticket>> {
        match self {
            Contender::Other(..) => Ok(None),
            Contender::Kata(kata) => kata.ready(starts).map(Some),
        }
    }

    /// Fails if what was started since [`Contender::ready`] began in another way.
    ///
    /// # Errors
    /// Then.
    pub fn came_true(&self, ticket: Option<Ticket>) -> Result<()> {
        match (self, ticket) {
            (Contender::Kata(kata), Some(ticket)) => kata.came_true(&ticket),
            _ => Ok(()),
        }
    }
}

/// The others that are installed.
pub fn installed() -> Vec<Contender> {
    let dirs: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    let find = |name: &str| dirs.iter().map(|dir| dir.join(name)).find(|path| path.is_file());
    OTHERS.iter().filter_map(|other| Some(Contender::Other(other, find(other.name)?))).collect()
}
