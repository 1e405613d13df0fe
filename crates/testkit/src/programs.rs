//! Small programs for containers that busybox has none of: built here, linked statically.

use std::path::Path;

use crate::cmd::Cmd;

/// Puts a program at `path` that is called with a directory and a name: it says "watching", and ends when inotify(7)
/// tells of something at that name.
///
/// # Panics
/// When it cannot be built.
pub fn await_event(path: &Path) {
    let dir = tempfile::tempdir().expect("a directory");
    let source = dir.path().join("await_event.rs");
    std::fs::write(&source, include_str!("programs/await_event.rs")).expect("its source");
    Cmd::new("rustc")
        .args([
            "--edition=2024",
            "-Copt-level=s",
            "-Cpanic=abort",
            "-Cstrip=symbols",
            "-Ctarget-feature=+crt-static",
            "-o",
        ])
        .args([path, &source])
        .ok();
}
