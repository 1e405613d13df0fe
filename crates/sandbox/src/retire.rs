//! The last moments of a sandbox's directory: it gives its name up at once, so that the id can be used again, and goes when
//! the VMM has gone.

use std::fs;
use std::path::{Path, PathBuf};

/// How the name begins of a directory that is about to go; the daemon's pid follows, or the key of one that was swept.
pub(crate) const ENDING: &str = ".ending-";

/// Gives a run directory another name; returns its path from now on, which is the old one if it could not be renamed.
pub fn retire(run_dir: &Path) -> PathBuf {
    let to = retired(run_dir, std::process::id().cast_signed());
    match fs::rename(run_dir, &to) {
        Ok(()) => to,
        Err(e) => {
            tracing::debug!("{} keeps its name until it goes: {e}", run_dir.display());
            run_dir.to_owned()
        }
    }
}

/// The name that the daemon of this pid gives to its run directory.
pub(crate) fn retired(run_dir: &Path, daemon: i32) -> PathBuf {
    run_dir.with_file_name(format!("{ENDING}{daemon}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::StateFile;

    #[test]
    fn a_name_is_free_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        fs::create_dir(&run).unwrap();
        StateFile::new("x").save(&run).unwrap();
        let ending = retire(&run);
        assert!(!run.exists() && StateFile::load(&ending).unwrap().is_some());
        assert_eq!(retire(&run), run, "nothing to rename");
    }
}
