//! Volumes in directories that look like the kubelet's: runtimes tell them by these.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

/// The directory of a plugin's volume (`configmap`, `empty-dir`, ...) below a test's own.
///
/// # Panics
/// When it cannot be made.
pub fn volume(below: &Path, plugin: &str, name: &str) -> PathBuf {
    let dir = below.join(format!("kubelet/pods/u/volumes/kubernetes.io~{plugin}/{name}"));
    fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("cannot make {}: {e}", dir.display()));
    dir
}

/// As the kubelet writes a volume: a directory, one renaming of `..data`, links to what is in it. Files that are no more keep
/// their links. All of it is of root's and of this group's.
///
/// # Panics
/// When it cannot.
pub fn publish(volume: &Path, version: &str, files: &[(&str, &str)], group: u32) {
    let written = || -> std::io::Result<()> {
        let data = volume.join(format!("..{version}"));
        fs::create_dir(&data)?;
        for (name, content) in files {
            let file = data.join(name);
            fs::write(&file, content)?;
            fs::set_permissions(&file, Permissions::from_mode(0o440))?;
            chown(&file, Some(0), Some(group))?;
        }
        let old = fs::read_link(volume.join("..data")).ok();
        symlink(format!("..{version}"), volume.join("..data_tmp"))?;
        fs::rename(volume.join("..data_tmp"), volume.join("..data"))?;
        for (name, _) in files {
            // Most are there already.
            drop(symlink(format!("..data/{name}"), volume.join(name)));
        }
        old.map_or(Ok(()), |old| fs::remove_dir_all(volume.join(old)))
    };
    written().unwrap_or_else(|e| panic!("cannot write the volume {}: {e}", volume.display()));
}
