//! `sandbox_cgroup_only = false`, as upstream has it: the threads that run the guest's CPUs are in the spec's cgroup, and all other
//! processes of the sandbox in one of their own, whose use no limit of the engine's counts. Threads of one process can be in
//! several cgroups with version 1 alone (cgroup-v2.rst, "Threads").

use std::io;
use std::path::Path;

use super::{CgroupError, Hierarchy, HostCgroup, make_in, mounted, relative};

/// Where the others are, in every hierarchy.
const OVERHEAD: &str = "kata_overhead";
/// A sandbox that ends may remove the directory in which another makes its own.
const ATTEMPTS: u32 = 10;

impl HostCgroup {
    /// Makes both cgroups, and enters the one for what is not the guest, which `key` names. Without a cgroup in the spec there is none.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn make_split(cgroups_path: &str, key: &str) -> Result<HostCgroup, CgroupError> {
        let Some(pods) = relative(cgroups_path)? else { return Ok(HostCgroup::default()) };
        let all = mounted();
        let controllers: Vec<Hierarchy> = all.iter().filter(|h| !h.v2).cloned().collect();
        if controllers.is_empty() {
            return Err(CgroupError::Threads);
        }
        let threads = make_in(&controllers, &pods)?;
        let overhead = Path::new(OVERHEAD).join(key);
        let mut made = HostCgroup { dirs: Vec::new(), vcpus: threads };
        for attempt in 1.. {
            match make_in(&all, &overhead) {
                Ok(dirs) => made.dirs = dirs,
                Err(CgroupError::Io { source, .. })
                    if source.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS =>
                {
                    continue;
                }
                Err(err) => {
                    made.remove();
                    return Err(err);
                }
            }
            break;
        }
        made.enter();
        Ok(made)
    }

    /// Whether the guest's CPUs have a cgroup of their own.
    pub fn is_split(&self) -> bool {
        !self.vcpus.is_empty()
    }

    /// Moves threads into the guest's.
    ///
    /// # Errors
    /// [`CgroupError::Io`].
    pub fn join_vcpus(&self, threads: &[i32]) -> Result<(), CgroupError> {
        for dir in &self.vcpus {
            for thread in threads {
                let fail = |source| CgroupError::Io { what: "join", path: dir.clone(), source };
                std::fs::write(dir.join("tasks"), thread.to_string()).map_err(fail)?;
            }
        }
        Ok(())
    }
}

/// Removes the directory that overhead's cgroups are in, if this was the last of them.
pub(super) fn removed(dir: &Path) {
    if let Some(above) = dir.parent().filter(|above| above.ends_with(OVERHEAD)) {
        // Others may be in it.
        let _ = std::fs::remove_dir(above);
    }
}
