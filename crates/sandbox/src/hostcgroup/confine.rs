//! The cgroup's CPUs and memory nodes.

use std::path::{Path, PathBuf};

use super::{CgroupError, HostCgroup};
use crate::cpuset::{Cpuset, Ids};

impl HostCgroup {
    /// Lets its processes use these alone.
    ///
    /// # Errors
    /// [`CgroupError::Confine`] with what the kernel says of them; [`CgroupError::NoCpuset`] where there is nothing to say it to.
    pub fn confine(&self, to: &Cpuset) -> Result<(), CgroupError> {
        for (name, ids) in [("cpuset.cpus", &to.cpus), ("cpuset.mems", &to.mems)] {
            let mut files: Vec<PathBuf> = self.with(name);
            if files.is_empty() && !ids.is_all() {
                self.confined().iter().filter(|dir| is_v2(dir)).for_each(|dir| enable(dir));
                files = self.with(name);
            }
            if files.is_empty() && !ids.is_all() {
                return Err(CgroupError::NoCpuset { file: name, ids: ids.to_string() });
            }
            for path in files {
                write(&path, ids)?;
            }
        }
        Ok(())
    }

    /// Whose limits they are.
    fn confined(&self) -> &[PathBuf] {
        if self.is_split() { &self.vcpus } else { &self.dirs }
    }

    fn with(&self, name: &str) -> Vec<PathBuf> {
        self.confined().iter().map(|dir| dir.join(name)).filter(|path| path.exists()).collect()
    }
}

fn write(path: &Path, ids: &Ids) -> Result<(), CgroupError> {
    let dir = path.parent().unwrap_or(path);
    let value = match (ids.is_all(), dir.parent(), path.file_name()) {
        // v1 takes no empty list while there are processes: all that there are is what the parent has.
        (true, Some(parent), Some(name)) if !is_v2(dir) => std::fs::read_to_string(parent.join(name)),
        _ => Ok(ids.to_string()),
    };
    let fail = |source| CgroupError::Confine { path: path.to_owned(), ids: ids.to_string(), source };
    let value = value.map_err(fail)?;
    // An empty write is none.
    std::fs::write(path, format!("{}\n", value.trim())).map_err(fail)
}

fn is_v2(dir: &Path) -> bool {
    dir.join("cgroup.controllers").exists()
}

/// Hands the controller down to a v2 cgroup from the root on. A level that refuses is found out by its missing file.
fn enable(dir: &Path) {
    let above: Vec<&Path> = dir.ancestors().skip(1).take_while(|dir| is_v2(dir)).collect();
    for dir in above.into_iter().rev() {
        if let Err(e) = std::fs::write(dir.join("cgroup.subtree_control"), "+cpuset") {
            tracing::debug!("no cpusets below {}: {e}", dir.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn cpuset(cpus: &str) -> Cpuset {
        let resources = serde_json::json!({ "cpu": { "cpus": cpus } });
        Cpuset::of(&serde_json::from_value(resources).unwrap()).unwrap()
    }

    /// Files of a cgroup and its parent; v2's have a list of controllers.
    fn tree(v2: bool, has: bool) -> (tempfile::TempDir, HostCgroup) {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("own");
        fs::create_dir(&own).unwrap();
        for (dir, cpus) in [(dir.path(), "0-7\n"), (&own, "0-7\n")] {
            if v2 {
                fs::write(dir.join("cgroup.controllers"), "cpuset").unwrap();
            }
            if has {
                fs::write(dir.join("cpuset.cpus"), cpus).unwrap();
                fs::write(dir.join("cpuset.mems"), "0\n").unwrap();
            }
        }
        (dir, HostCgroup { dirs: vec![own], vcpus: Vec::new() })
    }

    #[test]
    fn a_set_is_written_and_taken_back() {
        for (v2, all) in [(false, "0-7\n"), (true, "\n")] {
            let (dir, cgroup) = tree(v2, true);
            let cpus = || fs::read_to_string(dir.path().join("own/cpuset.cpus")).unwrap();
            cgroup.confine(&cpuset("4,5")).unwrap();
            assert_eq!(cpus(), "4-5\n");
            cgroup.confine(&Cpuset::default()).unwrap();
            assert_eq!(cpus(), all);
        }
    }

    #[test]
    fn a_set_that_nobody_takes_is_an_error_and_none_is_not() {
        for v2 in [false, true] {
            let (dir, cgroup) = tree(v2, false);
            cgroup.confine(&Cpuset::default()).unwrap();
            let err = cgroup.confine(&cpuset("4,5")).unwrap_err().to_string();
            assert!(err.contains("4-5") && err.contains("cpuset.cpus"), "{err}");
            let asked = fs::read_to_string(dir.path().join("cgroup.subtree_control"));
            assert_eq!(asked.ok().as_deref(), v2.then_some("+cpuset"));
        }
        assert!(HostCgroup::default().confine(&cpuset("0")).is_err());
    }
}
