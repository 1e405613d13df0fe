//! Where things are.

use std::fs;
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

/// Of the directories that are kept below `home` and `fit`, the one whose file `marker` is the newest; one without it is not whole.
pub fn newest(home: &Path, marker: &str, fits: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let dirs = fs::read_dir(home).ok()?.flatten().map(|e| e.path()).filter(|dir| fits(dir));
    dirs.filter_map(|dir| Some((dir.join(marker).metadata().ok()?.modified().ok()?, dir))).max().map(|(_, dir)| dir)
}

/// Whether the file `inputs` of a directory that is kept has this line.
pub fn made_of(dir: &Path, input: &str) -> bool {
    fs::read_to_string(dir.join("inputs")).is_ok_and(|text| text.lines().any(|line| line == input))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_that_is_whole_and_fits_is_found() {
        let home = std::env::temp_dir().join(format!("xtask-newest-{}", std::process::id()));
        let now = std::time::SystemTime::now();
        for (name, age) in [("a", Some(3)), ("b", Some(1)), ("other", Some(0)), ("part", None)] {
            fs::create_dir_all(home.join(name)).unwrap();
            let input = if name == "other" { "y" } else { "x" };
            fs::write(home.join(name).join("inputs"), format!("first\n{input}\n")).unwrap();
            if let Some(age) = age {
                let marker = fs::File::create(home.join(name).join("done")).unwrap();
                marker.set_modified(now - std::time::Duration::from_secs(age)).unwrap();
            }
        }
        assert_eq!(newest(&home, "done", |dir| made_of(dir, "x")), Some(home.join("b")));
        assert_eq!(newest(&home, "done", |_| true), Some(home.join("other")));
        assert_eq!(newest(&home, "absent", |_| true), None);
        fs::remove_dir_all(&home).unwrap();
        assert_eq!(newest(&home, "done", |_| true), None);
    }
}
