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
    if let Some(mirror) = mirror(&release) {
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

/// The mirror from which apt gets this release here.
fn mirror(release: &str) -> Option<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    files.extend(fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|e| e.path()));
    files.iter().filter_map(|file| fs::read_to_string(file).ok()).find_map(|text| mirror_in(&text, release))
}

/// The first URI with this suite in a sources.list(5), in either of its forms. Others than the distribution's have
/// suites of their own.
fn mirror_in(text: &str, release: &str) -> Option<String> {
    let one_line = text.lines().filter_map(|line| {
        let line = line.strip_prefix("deb ")?.trim_start();
        let line = line.strip_prefix('[').map_or(line, |rest| rest.split_once(']').map_or("", |(_, after)| after));
        let mut words = line.split_ascii_whitespace();
        let (uri, suite) = (words.next()?, words.next()?);
        (suite == release).then(|| uri.to_owned())
    });
    let stanzas = text.split("\n\n").filter_map(|stanza| {
        let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name));
        let suites = field("Suites:")?;
        let uri = field("URIs:")?.split_ascii_whitespace().next()?;
        suites.split_ascii_whitespace().any(|suite| suite == release).then(|| uri.to_owned())
    });
    one_line.chain(stanzas).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_sources_are_read() {
        let one =
            "# deb http://no/\ndeb https://c/apt other main\ndeb [signed-by=/k arch=x] http://a/debian bookworm main\n";
        assert_eq!(mirror_in(one, "bookworm").as_deref(), Some("http://a/debian"));
        let two = "Types: deb\nURIs: https://n/node\nSuites: nodistro\n\n\
                   Types: deb\n# x\nURIs: http://b/debian\nSuites: bookworm bookworm-updates\n";
        assert_eq!(mirror_in(two, "bookworm").as_deref(), Some("http://b/debian"));
        assert_eq!(mirror_in(two, "trixie"), None);
        assert_eq!(mirror_in("Types: deb\n", "bookworm"), None);
    }
}
