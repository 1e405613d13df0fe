//! Volumes as a kubelet prepares them, in the places where it has them: runtimes tell them by these.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::pod::Pod;

/// A ConfigMap, Secret, projected or downward volume: files that are links into `..data`, which is a link to a directory
/// of this moment. An update makes another directory and renames a new `..data` over the old.
pub struct Projected {
    dir: PathBuf,
    version: u32,
}

impl Projected {
    /// `kind`: `configmap`, `secret`, `projected`, or `downward-api`.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new(pod: &Pod<'_>, kind: &str, name: &str, files: &[(&str, &str)]) -> Projected {
        let dir = directory(pod, kind, name);
        let mut this = Projected { dir, version: 0 };
        this.write(files).unwrap_or_else(|e| panic!("{}: {e}", this.dir.display()));
        this
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Replaces all its files.
    ///
    /// # Panics
    /// When it cannot.
    pub fn update(&mut self, files: &[(&str, &str)]) {
        self.write(files).unwrap_or_else(|e| panic!("{}: {e}", self.dir.display()));
    }

    fn write(&mut self, files: &[(&str, &str)]) -> std::io::Result<()> {
        let data = self.dir.join("..data");
        let old = fs::read_link(&data).ok();
        self.version += 1;
        let moment = format!("..2026_01_01_00_00_00.{:09}", self.version);
        for (name, text) in files {
            let file = self.dir.join(&moment).join(name);
            fs::create_dir_all(file.parent().unwrap_or(&self.dir))?;
            fs::write(file, text)?;
        }
        let new = self.dir.join("..data_tmp");
        symlink(&moment, &new)?;
        fs::rename(&new, &data)?;
        // Links of the first level only: what is below a directory of the volume is reached through it.
        let first = |name: &str| name.split('/').next().unwrap_or_default().to_owned();
        for name in files.iter().map(|(name, _)| first(name)) {
            let link = self.dir.join(&name);
            if fs::symlink_metadata(&link).is_err() {
                symlink(Path::new("..data").join(&name), link)?;
            }
        }
        for entry in fs::read_dir(&self.dir)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with("..") && !files.iter().any(|(file, _)| first(file) == name) {
                fs::remove_file(entry.path())?;
            }
        }
        match old {
            Some(old) => fs::remove_dir_all(self.dir.join(old)),
            None => Ok(()),
        }
    }
}

/// An emptyDir on the node's disk.
///
/// # Panics
/// When it cannot be made.
pub fn empty_dir(pod: &Pod<'_>, name: &str) -> PathBuf {
    directory(pod, "empty-dir", name)
}

/// For every user: the kubelet does not know whose the container will be.
fn directory(pod: &Pod<'_>, kind: &str, name: &str) -> PathBuf {
    let dir = pod.dir().join("volumes").join(format!("kubernetes.io~{kind}")).join(name);
    let made = fs::create_dir_all(&dir).and_then(|()| fs::set_permissions(&dir, Permissions::from_mode(0o777)));
    made.unwrap_or_else(|e| panic!("cannot make {}: {e}", dir.display()));
    dir
}

/// Something mounted, until this is dropped.
pub struct Mounted(PathBuf);

impl Mounted {
    /// A tmpfs of this size in bytes: an emptyDir with `medium: Memory`.
    ///
    /// # Panics
    /// When it cannot be mounted.
    pub fn memory(pod: &Pod<'_>, name: &str, size: u64) -> Mounted {
        let dir = directory(pod, "empty-dir", name);
        Mounted::tmpfs(&dir, size)
    }

    /// A tmpfs of this size in bytes here.
    ///
    /// # Panics
    /// When it cannot be mounted.
    pub fn tmpfs(at: &Path, size: u64) -> Mounted {
        let options = format!("size={size}");
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
            .unwrap_or_else(|e| panic!("a tmpfs at {}: {e}", at.display()));
        Mounted(at.to_owned())
    }

    /// A directory as a mount of its own that passes on what is mounted in it.
    ///
    /// # Panics
    /// When it cannot be bound.
    pub fn shared(dir: &Path) -> Mounted {
        let bind = |flags| mount(Some(dir), dir, None::<&str>, flags, None::<&str>);
        bind(MsFlags::MS_BIND)
            .and_then(|()| bind(MsFlags::MS_SHARED))
            .unwrap_or_else(|e| panic!("cannot make {} a shared mount: {e}", dir.display()));
        Mounted(dir.to_owned())
    }

    /// A path inside a volume, bound where the kubelet binds it for a container's `subPath`.
    ///
    /// # Panics
    /// When it cannot be bound.
    pub fn sub_path(pod: &Pod<'_>, volume: &Path, path: &str, container: &str) -> Mounted {
        let name = volume.file_name().unwrap_or_default();
        let at = pod.dir().join("volume-subpaths").join(name).join(container).join("0");
        let from = volume.join(path);
        let made = fs::create_dir_all(at.parent().unwrap_or(&at))
            .and_then(|()| if from.is_dir() { fs::create_dir(&at) } else { fs::write(&at, "") });
        made.unwrap_or_else(|e| panic!("cannot make {}: {e}", at.display()));
        mount(Some(&from), &at, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .unwrap_or_else(|e| panic!("cannot bind {} to {}: {e}", from.display(), at.display()));
        Mounted(at)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(e) = umount2(&self.0, MntFlags::MNT_DETACH) {
            println!("cannot unmount {}: {e}", self.0.display());
        }
    }
}
