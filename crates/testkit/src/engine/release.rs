//! Which release of an engine.

use std::path::PathBuf;

/// The environment variable that names the directory with newer engines. `cargo xtask test` sets it.
const NEWER: &str = "KATA_NEWER_ENGINES";

/// Where an engine's programs come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// This distribution's packages.
    Distribution,
    /// A later suite's, unpacked somewhere.
    Newer,
}

impl Release {
    /// The path of one of its programs, which is `path` ("usr/bin/ctr") in its package.
    ///
    /// # Panics
    /// Where there are no newer engines.
    pub fn program(self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    /// What comes first in the PATH of its daemons: their helpers are of the same release.
    pub fn path(self) -> String {
        let common = super::path();
        match self {
            Release::Distribution => common,
            Release::Newer => {
                let root = self.root();
                // Ours stays first.
                let (ours, rest) = common.split_once(':').unwrap_or((&common, ""));
                format!("{ours}:{0}/usr/sbin:{0}/usr/bin:{rest}", root.display())
            }
        }
    }

    fn root(self) -> PathBuf {
        match self {
            Release::Distribution => PathBuf::from("/"),
            Release::Newer => std::env::var_os(NEWER)
                .map(PathBuf::from)
                .unwrap_or_else(|| panic!("{NEWER} names no directory with engines: run `cargo xtask test`")),
        }
    }
}
