//! The last moments of a sandbox's directory: it gives its name up at once, so that the id can be used again, and goes when
//! the VMM has gone.

use std::fs;
use std::path::{Path, PathBuf};

use crate::state::StateFile;

/// How the name begins of a directory that is about to go; the daemon's pid follows.
const ENDING: &str = ".ending-";

/// Gives a run directory another name; returns its path from now on, which is the old one if it could not be renamed.
pub fn retire(run_dir: &Path) -> PathBuf {
    let to = run_dir.with_file_name(format!("{ENDING}{}", std::process::id()));
    match fs::rename(run_dir, &to) {
        Ok(()) => to,
        Err(e) => {
            tracing::debug!("{} keeps its name until it goes: {e}", run_dir.display());
            run_dir.to_owned()
        }
    }
}

/// Removes what daemons have left that were killed in their last moments. `parent` is the directory of run directories.
pub fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if !entry.file_name().as_encoded_bytes().starts_with(ENDING.as_bytes()) {
            continue;
        }
        let daemon = StateFile::load(&entry.path()).ok().flatten().and_then(|state| state.daemon);
        if daemon.is_some_and(|daemon| !daemon.alive())
            && let Err(err) = crate::cleanup(&entry.path(), None)
        {
            tracing::warn!("{err}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::ProcessRecord;

    #[test]
    fn a_name_is_free_at_once_and_only_what_is_left_of_dead_daemons_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        fs::create_dir(&run).unwrap();
        StateFile::new("x").save(&run).unwrap();
        let ending = retire(&run);
        assert!(!run.exists() && ending.exists());
        sweep(dir.path());
        assert!(ending.exists(), "its daemon, this process, is alive");
        let mut state = StateFile::new("x");
        state.daemon = Some(ProcessRecord { pid: std::process::id().cast_signed(), start_time: 1 });
        state.save(&ending).unwrap();
        sweep(dir.path());
        assert!(!ending.exists());
        assert_eq!(retire(&run), run, "nothing to rename");
    }
}
