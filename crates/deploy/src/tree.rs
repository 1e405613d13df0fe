//! The installation to copy, and its copy on the node: a directory named by its content.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{DeployError, io};
use crate::files;

/// What of a prefix is ours. A prefix such as /usr/local holds other things beside.
const TREES: [&str; 3] = ["libexec/kata-containers", "share/kata-containers", "share/defaults/kata-containers"];
/// What must be there.
const NEEDED: [&str; 3] =
    ["bin/kata-runtime", "bin/containerd-shim-kata-v2", "share/defaults/kata-containers/configuration.toml"];
/// It says what is where below another prefix.
const MANIFEST: &str = "share/kata-containers/manifest";

#[derive(Debug)]
enum Piece {
    File { mode: u32, digest: String },
    Link(PathBuf),
}

/// An installation, read.
#[derive(Debug)]
pub struct Tree {
    from: PathBuf,
    pieces: BTreeMap<PathBuf, Piece>,
}

impl Tree {
    /// Reads the installation with this prefix.
    ///
    /// # Errors
    /// None there, or a file that cannot be read.
    pub fn read(from: &Path) -> Result<Tree, DeployError> {
        for missing in NEEDED {
            if !from.join(missing).exists() {
                return Err(DeployError::NotAnInstallation { source_dir: from.to_owned(), missing });
            }
        }
        let mut tree = Tree { from: from.to_owned(), pieces: BTreeMap::new() };
        for name in names(&from.join("bin"))? {
            let text = name.to_string_lossy();
            if text == "kata" || text.starts_with("kata-") || text == "containerd-shim-kata-v2" {
                tree.add(&Path::new("bin").join(&name))?;
            }
        }
        for dir in TREES.into_iter().filter(|dir| from.join(dir).exists()) {
            tree.add(Path::new(dir))?;
        }
        tree.pieces.remove(Path::new(MANIFEST));
        Ok(tree)
    }

    fn add(&mut self, path: &Path) -> Result<(), DeployError> {
        let here = self.from.join(path);
        let meta = fs::symlink_metadata(&here).map_err(io("read", &here))?;
        if meta.is_dir() {
            for name in names(&here)? {
                self.add(&path.join(name))?;
            }
        } else if meta.is_symlink() {
            let target = fs::read_link(&here).map_err(io("read", &here))?;
            self.pieces.insert(path.to_owned(), Piece::Link(target));
        } else {
            let mut hash = Sha256::new();
            let mut file = File::open(&here).map_err(io("read", &here))?;
            std::io::copy(&mut file, &mut hash).map_err(io("read", &here))?;
            let digest = hex::encode(hash.finalize());
            self.pieces.insert(path.to_owned(), Piece::File { mode: meta.permissions().mode() & 0o755, digest });
        }
        Ok(())
    }

    /// What its content is called: the same content, the same name.
    pub fn name(&self) -> String {
        let mut hash = Sha256::new();
        for (path, piece) in &self.pieces {
            let what = match piece {
                Piece::File { mode, digest } => format!("{mode:o} {digest}"),
                Piece::Link(target) => format!("link {}", target.display()),
            };
            hash.update(format!("{}\0{what}\0", path.display()));
        }
        let mut name = hex::encode(hash.finalize());
        name.truncate(12);
        name
    }

    /// Copies it to `to`, which appears when all of it is there and on the disk.
    ///
    /// # Errors
    /// Names the file.
    pub fn copy(&self, to: &Path) -> Result<(), DeployError> {
        if to.exists() {
            return Ok(());
        }
        let name = to.file_name().unwrap_or_default().to_string_lossy();
        // What a crash has left of an earlier try goes first.
        let temp = to.with_file_name(format!(".{name}"));
        files::remove_tree(&temp)?;
        for (path, piece) in &self.pieces {
            let there = temp.join(path);
            if let Some(dir) = there.parent() {
                fs::create_dir_all(dir).map_err(io("make", dir))?;
            }
            match piece {
                Piece::Link(target) => {
                    std::os::unix::fs::symlink(target, &there).map_err(io("make the link", &there))?;
                }
                Piece::File { mode, .. } => {
                    let copy = || -> std::io::Result<()> {
                        fs::copy(self.from.join(path), &there)?;
                        fs::set_permissions(&there, Permissions::from_mode(*mode))?;
                        File::open(&there)?.sync_all()
                    };
                    copy().map_err(io("copy to", &there))?;
                }
            }
        }
        fs::rename(&temp, to).and_then(|()| files::sync_parent(to)).map_err(io("make", to))
    }
}

/// The names in a directory, sorted.
///
/// # Errors
/// Names it.
pub fn names(dir: &Path) -> Result<Vec<std::ffi::OsString>, DeployError> {
    let entries = fs::read_dir(dir).and_then(|entries| entries.map(|e| Ok(e?.file_name())).collect());
    let mut names: Vec<std::ffi::OsString> = entries.map_err(io("read", dir))?;
    names.sort();
    Ok(names)
}
