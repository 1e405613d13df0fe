//! Files that are replaced whole or not at all.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use rustix::io::Errno;

use crate::error::{DeployError, io};

/// The label of SELinux, which a replaced file keeps.
const LABEL: &str = "security.selinux";

/// Reads a file; `None` when it is not there.
///
/// # Errors
/// Any other than that; also what is no UTF-8.
pub fn read(path: &Path) -> Result<Option<String>, DeployError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(io("read", path)(err)),
    }
}

/// Replaces a file atomically and durably. What is there keeps its mode, owner and label; a new one gets `mode`.
///
/// # Errors
/// Names the file.
pub fn replace(path: &Path, content: &str, mode: u32) -> Result<(), DeployError> {
    let temp = beside(path);
    let put = || -> std::io::Result<()> {
        let mut file = File::create(&temp)?;
        match fs::metadata(path) {
            Ok(old) => {
                chown(&temp, Some(old.uid()), Some(old.gid()))?;
                file.set_permissions(Permissions::from_mode(old.mode() & 0o7777))?;
                label(path, &temp)?;
            }
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => {
                file.set_permissions(Permissions::from_mode(mode))?;
            }
            Err(err) => return Err(err),
        }
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temp, path)?;
        sync_parent(path)
    };
    put().map_err(|err| {
        drop(fs::remove_file(&temp));
        io("replace", path)(err)
    })
}

fn label(from: &Path, to: &Path) -> std::io::Result<()> {
    let mut label = vec![0_u8; 1024];
    match rustix::fs::getxattr(from, LABEL, label.as_mut_slice()) {
        Ok(len) => Ok(rustix::fs::setxattr(to, LABEL, &label[..len], rustix::fs::XattrFlags::empty())?),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        Err(err) => Err(err.into()),
    }
}

/// Makes or replaces a symbolic link atomically.
///
/// # Errors
/// Names the link.
pub fn replace_link(path: &Path, target: &Path) -> Result<(), DeployError> {
    let temp = beside(path);
    drop(fs::remove_file(&temp));
    let put = std::os::unix::fs::symlink(target, &temp).and_then(|()| fs::rename(&temp, path));
    put.and_then(|()| sync_parent(path)).map_err(io("make the link", path))
}

/// Removes a file or link, if it is there.
///
/// # Errors
/// Names it.
pub fn remove(path: &Path) -> Result<(), DeployError> {
    match fs::remove_file(path) {
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => Err(io("remove", path)(err)),
        _ => Ok(()),
    }
}

/// Removes a directory with all that is in it, if it is there.
///
/// # Errors
/// Names it.
pub fn remove_tree(path: &Path) -> Result<(), DeployError> {
    match fs::remove_dir_all(path) {
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => Err(io("remove", path)(err)),
        _ => Ok(()),
    }
}

/// Makes what is in this file's directory survive a power cut.
pub fn sync_parent(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

/// A hidden name in the same directory. Not of a pid: what a crash has left is found and replaced by the next try.
fn beside(path: &Path) -> std::path::PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.kata-deploy"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_replaced_keeps_its_mode_and_owner_and_leaves_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        replace(&path, "one", 0o640).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        fs::set_permissions(&path, Permissions::from_mode(0o604)).unwrap();
        if rustix::process::geteuid().is_root() {
            chown(&path, Some(12), Some(34)).unwrap();
        }
        let before = fs::metadata(&path).unwrap();
        replace(&path, "two", 0o600).unwrap();
        let after = fs::metadata(&path).unwrap();
        assert_eq!((after.mode(), after.uid(), after.gid()), (before.mode(), before.uid(), before.gid()));
        assert_ne!(after.ino(), before.ino(), "whoever has it open sees the old one whole");
        assert_eq!(read(&path).unwrap().as_deref(), Some("two"));
        replace_link(&dir.path().join("link"), Path::new("a")).unwrap();
        replace_link(&dir.path().join("link"), Path::new("b")).unwrap();
        assert_eq!(fs::read_link(dir.path().join("link")).unwrap(), Path::new("b"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
