//! Removing what nobody else removes: at each launch, what is left of sandboxes whose daemon was killed in its last moments, or
//! whose engine never asks for the clean-up. (containerd 1.6 forgets a shim that dies between telling its address and the first
//! connection to it: it removes the bundle, and never calls `delete`.)

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::cleanup::{cleanup, is_at, turn};
use crate::found::is_key;
use crate::retire::ENDING;
use crate::state::StateFile;

/// Looks through the directory of run directories. A living sandbox costs a read of its state file and one stat(2).
pub fn sweep() {
    below(Path::new(kata_types::HOST_RUN_DIR));
}

fn below(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(ENDING.as_bytes()) {
            end(&entry.path());
        } else if let Some(key) = name.to_str().filter(|name| is_key(name)) {
            forget(&entry.path(), key);
        }
    }
}

/// Of a daemon that was killed in its last moments, or of a sweep that was.
fn end(dir: &Path) {
    let is_dead = || load(dir).and_then(|state| state.daemon).is_some_and(|daemon| !daemon.alive());
    if !is_dead() {
        return;
    }
    // Somebody else may be at it.
    let Ok(Some(_turn)) = turn(dir, Duration::ZERO) else { return };
    if is_dead() {
        remove(dir);
    }
}

/// Of a daemon that is dead, and of which nobody knows any more. One that is being launched has no state file yet, or its daemon
/// lives, or its bundle is there: whoever launches it cleans up.
fn forget(dir: &Path, key: &str) {
    if !is_forgotten(dir) {
        return;
    }
    let Ok(Some(turn)) = turn(dir, Duration::ZERO) else { return };
    // Others have removed it since, or what is here now is another's of the same name.
    if !is_forgotten(dir) {
        return;
    }
    // Nobody makes a sandbox under the name that it has from here on. If this process is killed too, the next sweep ends it.
    let ending = dir.with_file_name(format!("{ENDING}{key}"));
    if let Err(e) = renameat_with(CWD, dir, CWD, &ending, RenameFlags::NOREPLACE) {
        return tracing::debug!("{} is left for the next sweep: {e}", dir.display());
    }
    if is_at(turn.as_fd(), &ending) {
        tracing::warn!("{} is removed: its daemon is dead, and its bundle is gone", dir.display());
        remove(&ending);
    } else if let Err(e) = renameat_with(CWD, &ending, CWD, dir, RenameFlags::NOREPLACE) {
        tracing::error!("{} is not what it was and cannot have its name back: {e}", ending.display());
    }
}

fn is_forgotten(dir: &Path) -> bool {
    load(dir).is_some_and(|state| {
        let forgotten = state.origin.as_ref().is_some_and(|origin| origin.is_forgotten(&state.id, &state.containers));
        forgotten && state.daemon.is_some_and(|daemon| !daemon.alive())
    })
}

/// One that is damaged is told by whoever deletes it.
fn load(dir: &Path) -> Option<StateFile> {
    StateFile::load(dir).ok().flatten()
}

fn remove(dir: &Path) {
    if let Err(err) = cleanup(dir, None) {
        tracing::warn!("{err}");
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use kata_storage::View;

    use super::*;
    use crate::key::{Owner, key};
    use crate::origin::Origin;
    use crate::state::ProcessRecord;

    fn me() -> ProcessRecord {
        ProcessRecord::of(std::process::id().cast_signed()).unwrap()
    }

    /// A process of the same pid that was before this one.
    fn dead() -> ProcessRecord {
        ProcessRecord { start_time: 1, ..me() }
    }

    /// A sandbox's directory below `parent`, with a cgroup of its own there.
    fn sandbox(parent: &Path, id: &str, daemon: ProcessRecord, bundle: &Path) -> PathBuf {
        let owner = Owner::Containerd("k8s.io".into());
        let dir = parent.join(key(&owner, id));
        fs::create_dir(&dir).unwrap();
        fs::create_dir(parent.join(id)).unwrap();
        let mut state = StateFile::new(id);
        state.daemon = Some(daemon);
        state.origin = Some(Origin::of(&owner, bundle, &View::current().unwrap()));
        state.cgroups.push(parent.join(id));
        state.save(&dir).unwrap();
        dir
    }

    #[test]
    fn what_daemons_left_in_their_last_moments_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        let ending = parent.path().join(format!("{ENDING}7"));
        fs::create_dir(&ending).unwrap();
        below(parent.path());
        assert!(ending.exists(), "nobody knows whose it is");
        let mut state = StateFile::new("x");
        state.save(&ending).unwrap();
        below(parent.path());
        assert!(ending.exists(), "its daemon, this process, is alive");
        state.daemon = Some(dead());
        state.save(&ending).unwrap();
        let turn = turn(&ending, Duration::ZERO).unwrap();
        below(parent.path());
        assert!(ending.exists(), "somebody else cleans up there");
        drop(turn);
        below(parent.path());
        assert!(!ending.exists());
    }

    #[test]
    fn only_dead_sandboxes_that_nobody_knows_are_swept_with_all_that_is_theirs() {
        let parent = tempfile::tempdir().unwrap();
        let (there, gone) = (parent.path().to_owned(), parent.path().join("gone"));
        let living = sandbox(parent.path(), "living", me(), &gone);
        let known = sandbox(parent.path(), "known", dead(), &there);
        let forgotten = sandbox(parent.path(), "forgotten", dead(), &gone);
        let old = sandbox(parent.path(), "old", dead(), &gone);
        let mut state = StateFile::load(&old).unwrap().unwrap();
        state.origin = None;
        state.save(&old).unwrap();
        let begun = parent.path().join("a".repeat(32));
        fs::create_dir(&begun).unwrap();
        let damaged = sandbox(parent.path(), "damaged", dead(), &gone);
        fs::write(damaged.join("state.json"), "{").unwrap();
        // What is in the pool, say, is none of ours.
        let other = parent.path().join("pool");
        fs::rename(sandbox(parent.path(), "other", dead(), &gone), &other).unwrap();
        below(parent.path());
        assert!(!forgotten.exists() && !parent.path().join("forgotten").exists());
        for (dir, why) in [
            (living, "its daemon lives"),
            (known, "its bundle is there"),
            (old, "nobody knows what it was made for"),
            (begun, "it is being launched"),
            (damaged, "it cannot be read"),
            (other, "it has no key for a name"),
        ] {
            assert!(dir.exists(), "{why}");
        }
        let left = fs::read_dir(parent.path()).unwrap().flatten();
        assert_eq!(left.filter(|e| e.file_name().as_encoded_bytes().starts_with(b".")).count(), 0);
    }

    #[test]
    fn whoever_deletes_goes_first_and_a_sandbox_of_the_same_name_is_not_touched() {
        let parent = tempfile::tempdir().unwrap();
        let gone = parent.path().join("gone");
        let dir = sandbox(parent.path(), "x", dead(), &gone);
        let turn = turn(&dir, Duration::ZERO).unwrap().unwrap();
        below(parent.path());
        assert!(dir.exists(), "somebody deletes it");
        // What was looked at is not what is there.
        fs::rename(&dir, parent.path().join("elsewhere")).unwrap();
        fs::create_dir(&dir).unwrap();
        assert!(!is_at(turn.as_fd(), &dir) && is_at(turn.as_fd(), &parent.path().join("elsewhere")));
        below(parent.path());
        assert!(dir.exists(), "it is being launched");
    }

    #[test]
    fn a_sweep_that_was_killed_is_ended_by_the_next() {
        let parent = tempfile::tempdir().unwrap();
        let dir = sandbox(parent.path(), "x", dead(), &parent.path().join("gone"));
        let ending = dir.with_file_name(format!("{ENDING}{}", dir.file_name().unwrap().to_string_lossy()));
        fs::rename(&dir, &ending).unwrap();
        // And another of the same id was forgotten as well: one of the two stands in the other's way for one sweep at most.
        fs::remove_dir(parent.path().join("x")).unwrap();
        let again = sandbox(parent.path(), "x", dead(), &parent.path().join("gone"));
        below(parent.path());
        below(parent.path());
        assert!(!ending.exists() && !again.exists());
    }

    #[test]
    fn many_launches_at_once_sweep_and_leave_nothing_but_what_lives() {
        let parent = tempfile::tempdir().unwrap();
        let gone = parent.path().join("gone");
        for round in 0..10 {
            let id = |kind: &str, n: i32| format!("{kind}-{round}-{n}");
            let forgotten: Vec<PathBuf> =
                (0..4).map(|n| sandbox(parent.path(), &id("dead", n), dead(), &gone)).collect();
            let living = sandbox(parent.path(), &id("living", 0), me(), &gone);
            std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(|| below(parent.path())))));
            assert!(forgotten.iter().all(|dir| !dir.exists()));
            assert!((0..4).all(|n| !parent.path().join(id("dead", n)).exists()), "cgroups");
            assert!(living.exists());
            let left = fs::read_dir(parent.path()).unwrap().flatten();
            assert_eq!(left.filter(|e| e.file_name().as_encoded_bytes().starts_with(b".")).count(), 0);
        }
    }
}
