//! Root file systems for containers.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cmd::Cmd;

/// Where what takes long to make is kept between runs.
const CACHE_DIR: &str = "KATA_CACHE_DIR";
/// debootstrap downloads and unpacks about 100 packages.
const DEBOOTSTRAP: Duration = Duration::from_secs(600);

/// Where what takes long to make is kept between runs: `$KATA_CACHE_DIR`, or below the home directory.
///
/// # Panics
/// When it cannot be made.
pub fn cache_dir() -> PathBuf {
    let dir = std::env::var_os(CACHE_DIR).map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache/kata-rs"),
        PathBuf::from,
    );
    fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("cannot make {}: {e}", dir.display()));
    dir
}

/// Debian's static busybox.
///
/// # Panics
/// Where it is not installed.
pub fn busybox_program() -> PathBuf {
    let places = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from);
    places.into_iter().find(|p| p.exists()).expect("no busybox here (Debian package busybox-static)")
}

/// Makes a root file system of busybox under all its names.
///
/// # Panics
/// When it cannot.
pub fn busybox(rootfs: &Path) {
    make_busybox(rootfs).unwrap_or_else(|e| panic!("a root file system in {}: {e}", rootfs.display()));
}

fn make_busybox(rootfs: &Path) -> std::io::Result<()> {
    for dir in ["bin", "dev", "etc", "home", "proc", "root", "sys", "tmp", "var"] {
        fs::create_dir_all(rootfs.join(dir))?;
    }
    let program = busybox_program();
    let bin = rootfs.join("bin");
    fs::copy(&program, bin.join("busybox"))?;
    for name in Cmd::new(&program).arg("--list").ok().out().lines().filter(|name| *name != "busybox") {
        symlink("busybox", bin.join(name))?;
    }
    fs::write(rootfs.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nworker:x:1000:1000::/home:/bin/sh\n")?;
    fs::write(rootfs.join("etc/group"), "root:x:0:\nworker:x:1000:\nextra:x:2000:worker\n")?;
    fs::write(rootfs.join("etc/not-a-program"), "no interpreter line, and not executable\n")
}

/// A minimal Debian, made once by debootstrap and kept; never written to.
///
/// # Errors
/// What debootstrap said, without a mirror for instance.
///
/// # Panics
/// When the cache cannot be written.
pub fn debian() -> Result<PathBuf, String> {
    let release = release();
    let dir = cache_dir().join("debootstrap").join(format!("{release}-minbase"));
    if dir.join("usr/bin/apt-get").exists() {
        return Ok(dir);
    }
    let parent = dir.parent().expect("a path of several parts");
    fs::create_dir_all(parent).unwrap_or_else(|e| panic!("cannot make {}: {e}", parent.display()));
    // Renamed when it is complete: a run that is interrupted leaves no half of it.
    let temp = tempfile::tempdir_in(parent).unwrap_or_else(|e| panic!("cannot use {}: {e}", parent.display()));
    let new = temp.path().join("rootfs");
    let mut cmd = Cmd::new("debootstrap").deadline(DEBOOTSTRAP).arg("--variant=minbase").arg(&release).arg(&new);
    if let Some(mirror) = mirror() {
        cmd = cmd.arg(mirror);
    }
    let out = cmd.run();
    if out.status.is_none_or(|status| !status.success()) {
        return Err(out.report());
    }
    // Downloaded packages are half of it.
    drop(fs::remove_dir_all(new.join("var/cache/apt/archives")));
    fs::rename(&new, &dir).unwrap_or_else(|e| panic!("cannot keep {}: {e}", dir.display()));
    Ok(dir)
}

/// This Debian's own release: its mirror certainly has it.
fn release() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    name.map_or_else(|| "bookworm".into(), |name| name.trim_matches('"').to_owned())
}

/// The mirror that apt uses here.
fn mirror() -> Option<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    files.extend(fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|e| e.path()));
    files.iter().filter_map(|file| fs::read_to_string(file).ok()).find_map(|text| mirror_in(&text))
}

/// The first URI of a sources.list(5), in either of its forms.
fn mirror_in(text: &str) -> Option<String> {
    let lines = text.lines().filter(|line| line.starts_with("deb ") || line.starts_with("URIs:"));
    lines.flat_map(str::split_ascii_whitespace).find(|word| word.contains("://")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_sources_are_read() {
        let one = "# deb http://no/\ndeb [signed-by=/k] http://a/debian bookworm main\n";
        assert_eq!(mirror_in(one).as_deref(), Some("http://a/debian"));
        let two = "Types: deb\nURIs: http://b/debian\nSuites: bookworm\n";
        assert_eq!(mirror_in(two).as_deref(), Some("http://b/debian"));
        assert_eq!(mirror_in("Types: deb\n"), None);
    }
}
