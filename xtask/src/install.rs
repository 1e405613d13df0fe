//! Installing, and removing exactly what was installed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path};

use anyhow::{Context, Result, bail, ensure};

use crate::build::Profile;
use crate::layout::{self, Piece};
use crate::{deps, guest, qemu, run};

/// What we put below the prefix, one path a line; directories that were not there before end in '/'.
const MANIFEST: &str = "share/kata-containers/manifest";

/// Builds everything optimised and installs it below `prefix`. What an older installation had and this one has not
/// is removed. A file that is there and not ours is left alone, and nothing is installed.
///
/// # Errors
/// The build's, a foreign file in the way, or a place that cannot be written.
pub fn run(prefix: &Path) -> Result<()> {
    ensure!(prefix.is_absolute(), "the prefix must be an absolute path, and {} is not", prefix.display());
    deps::ensure(deps::BUILD)?;
    // Ours only if it has been built: that takes minutes, and the distribution's works too.
    let qemu = qemu::pieces()?;
    let which = if qemu.is_empty() {
        deps::ensure(deps::RUN)?;
        "the distribution's QEMU (`cargo xtask qemu` builds a smaller one)"
    } else {
        "our own QEMU"
    };
    let kernel = guest::at_hand()?;
    let mut pieces = layout::pieces(Profile::Release, &kernel)?;
    pieces.extend(qemu);
    run::step(&format!("installing to {}", prefix.display()), || place(prefix, &pieces))?;
    eprintln!("    the guest boots {} on {which}", kernel.name);
    eprintln!("    try: {}", prefix.join("bin/kata-runtime check").display());
    Ok(())
}

fn place(prefix: &Path, pieces: &[Piece]) -> Result<()> {
    let old = read_manifest(prefix)?.unwrap_or_default();
    let new: BTreeSet<String> = pieces.iter().map(|p| p.path.to_string()).chain([MANIFEST.to_owned()]).collect();
    for path in &new {
        let there = prefix.join(path);
        if !old.contains(path) && there.symlink_metadata().is_ok() {
            bail!("{} is there and was not installed by this; remove it, or choose another --prefix", there.display());
        }
    }
    let dirs = missing_dirs(prefix, &new);
    let old_dirs = old.iter().filter(|path| path.ends_with('/'));
    let keep: BTreeSet<String> = new.iter().chain(&dirs).chain(old_dirs).cloned().collect();
    // First the list, of old and new together: an installation that is interrupted here can still be removed.
    write_manifest(prefix, &keep.union(&old).cloned().collect())?;
    for piece in pieces {
        piece.put(prefix)?;
    }
    for path in old.difference(&keep) {
        remove(prefix, path)?;
    }
    write_manifest(prefix, &keep)
}

/// Removes what the manifest names: files, links, and those directories of ours that are empty then.
///
/// # Errors
/// No installation there, a manifest that names something outside the prefix, or a file that cannot be removed.
pub fn uninstall(prefix: &Path) -> Result<()> {
    let Some(list) = read_manifest(prefix)? else {
        bail!("nothing is installed in {}: there is no {MANIFEST}", prefix.display());
    };
    // Deepest first; the manifest itself last of the files, so that an interrupted removal can be repeated.
    for path in list.iter().filter(|path| !path.ends_with('/') && *path != MANIFEST) {
        remove(prefix, path)?;
    }
    remove(prefix, MANIFEST)?;
    for path in list.iter().rev().filter(|path| path.ends_with('/')) {
        // One in which somebody else has put something stays.
        drop(fs::remove_dir(if path == "./" { prefix.to_owned() } else { prefix.join(path) }));
    }
    eprintln!("    removed from {}", prefix.display());
    Ok(())
}

fn remove(prefix: &Path, path: &str) -> Result<()> {
    let there = prefix.join(path);
    match fs::remove_file(&there) {
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
            Err(err).with_context(|| format!("cannot remove {}", there.display()))
        }
        _ => Ok(()),
    }
}

/// The directories that these paths need and that are not there, the prefix itself ("./" to the manifest) included.
fn missing_dirs(prefix: &Path, paths: &BTreeSet<String>) -> BTreeSet<String> {
    let parents = paths.iter().flat_map(|path| Path::new(path).ancestors().skip(1));
    parents
        .filter(|dir| !prefix.join(dir).exists())
        .map(|dir| if dir.as_os_str().is_empty() { "./".to_owned() } else { format!("{}/", dir.display()) })
        .collect()
}

fn read_manifest(prefix: &Path) -> Result<Option<BTreeSet<String>>> {
    let path = prefix.join(MANIFEST);
    let text = match fs::read_to_string(&path) {
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.with_context(|| format!("cannot read {}", path.display()))?,
    };
    for line in text.lines() {
        let plain = Path::new(line).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        ensure!(plain && !line.is_empty(), "{} names {line:?}, which is not below the prefix", path.display());
    }
    Ok(Some(text.lines().map(str::to_owned).collect()))
}

fn write_manifest(prefix: &Path, list: &BTreeSet<String>) -> Result<()> {
    let path = prefix.join(MANIFEST);
    let dir = path.parent().context("a manifest without a directory")?;
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let temp = path.with_extension("new");
    let text: String = list.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
    fs::write(&temp, text).with_context(|| format!("cannot write {}", temp.display()))?;
    fs::rename(&temp, &path).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::layout::Content;

    struct Dir(PathBuf);
    impl Drop for Dir {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    fn dir(name: &str) -> Dir {
        let dir = std::env::temp_dir().join(format!("kata-xtask-install-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("source"), "content").unwrap();
        Dir(dir)
    }

    fn pieces(dir: &Path, paths: &[&'static str]) -> Vec<Piece> {
        let file = |path: &'static str| Piece { path: path.into(), content: Content::File(dir.join("source"), 0o755) };
        let mut pieces: Vec<Piece> = paths.iter().map(|path| file(path)).collect();
        pieces.push(Piece { path: "bin/other-name".into(), content: Content::Link("kata") });
        pieces
    }

    #[test]
    fn what_was_installed_is_removed_and_nothing_else() {
        let dir = dir("both");
        let prefix = dir.0.join("deep/prefix");
        place(&prefix, &pieces(&dir.0, &["bin/kata", "share/a/b/c"])).unwrap();
        assert_eq!(fs::read_to_string(prefix.join("bin/other-name")).unwrap(), "content");
        fs::write(prefix.join("share/a/theirs"), "").unwrap();
        // An upgrade that lacks a file of the old installation.
        place(&prefix, &pieces(&dir.0, &["bin/kata", "share/x"])).unwrap();
        assert!(!prefix.join("share/a/b/c").exists());
        uninstall(&prefix).unwrap();
        assert!(!prefix.join("bin").exists() && !prefix.join("share/kata-containers").exists());
        assert!(prefix.join("share/a/theirs").exists());
        fs::remove_file(prefix.join("share/a/theirs")).unwrap();
        fs::remove_dir(prefix.join("share/a")).unwrap();
        fs::remove_dir(prefix.join("share")).unwrap();
        // The prefix itself was ours, too.
        fs::remove_dir(&prefix).unwrap();
        place(&prefix, &pieces(&dir.0, &["bin/kata"])).unwrap();
        uninstall(&prefix).unwrap();
        assert!(!prefix.exists());
        assert!(uninstall(&prefix).unwrap_err().to_string().contains("nothing is installed"));
    }

    #[test]
    fn directories_that_were_there_stay() {
        let dir = dir("stay");
        let prefix = dir.0.join("prefix");
        fs::create_dir_all(prefix.join("bin")).unwrap();
        place(&prefix, &pieces(&dir.0, &["bin/kata", "share/k/x"])).unwrap();
        uninstall(&prefix).unwrap();
        assert!(prefix.join("bin").exists() && !prefix.join("share").exists());
    }

    #[test]
    fn a_file_of_somebody_elses_stops_it_before_anything_is_written() {
        let dir = dir("foreign");
        let prefix = dir.0.join("prefix");
        fs::create_dir_all(prefix.join("bin")).unwrap();
        fs::write(prefix.join("bin/kata"), "theirs").unwrap();
        let err = place(&prefix, &pieces(&dir.0, &["bin/kata"])).unwrap_err().to_string();
        assert!(err.contains("bin/kata"), "{err}");
        assert!(!prefix.join("share").exists() && !prefix.join("bin/other-name").exists());
        assert_eq!(fs::read_to_string(prefix.join("bin/kata")).unwrap(), "theirs");
    }

    #[test]
    fn a_manifest_that_points_outside_is_refused() {
        let dir = dir("outside");
        let prefix = dir.0.join("prefix");
        fs::create_dir_all(prefix.join("share/kata-containers")).unwrap();
        fs::write(prefix.join(MANIFEST), "bin/kata\n../../etc/passwd\n").unwrap();
        assert!(uninstall(&prefix).unwrap_err().to_string().contains("not below the prefix"));
    }
}
