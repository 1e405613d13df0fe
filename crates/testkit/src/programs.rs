//! Small programs for containers that busybox has none of: built here, linked statically.

use std::path::Path;

use crate::cmd::Cmd;

/// Puts a program at `path` that is called with a directory and a name: it says "watching", and ends when inotify(7)
/// tells of something at that name.
///
/// # Panics
/// When it cannot be built.
pub fn await_event(path: &Path) {
    build(path, include_str!("programs/await_event.rs"));
}

/// Puts a program at `path` that is called with a port and serves HTTP/1.1 on it: what `/N` is, see [`http_body`].
///
/// # Panics
/// When it cannot be built.
pub fn http(path: &Path) {
    build(path, include_str!("programs/http.rs"));
}

/// What [`http`]'s program answers for `/N`: most of it does not fit into one packet.
pub fn http_body(number: usize) -> String {
    format!("{number}\n").repeat(1 + number % 400)
}

fn build(path: &Path, source: &str) {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("program.rs");
    std::fs::write(&file, source).expect("its source");
    Cmd::new("rustc")
        .args([
            "--edition=2024",
            "-Copt-level=s",
            "-Cpanic=abort",
            "-Cstrip=symbols",
            "-Ctarget-feature=+crt-static",
            "-o",
        ])
        .args([path, &file])
        .ok();
}
