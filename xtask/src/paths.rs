//! Where things are.

use std::path::{Path, PathBuf};

/// The repository's root (xtask sits directly in it).
pub fn repo_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is in the repository's root")
}

/// Cargo's target directory.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repo_root().join("target"), PathBuf::from)
}

/// What is expensive to make and outlives a clean clone: kernels, Debian root file systems.
/// `$KATA_CACHE_DIR`, else `$XDG_CACHE_HOME/kata-rs`, else `~/.cache/kata-rs`.
pub fn cache_dir() -> PathBuf {
    let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    var("KATA_CACHE_DIR")
        .or_else(|| var("XDG_CACHE_HOME").map(|dir| dir.join("kata-rs")))
        .or_else(|| var("HOME").map(|dir| dir.join(".cache/kata-rs")))
        .unwrap_or_else(|| PathBuf::from("/var/tmp/kata-rs"))
}
