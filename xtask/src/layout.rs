//! What an installation consists of, and where each piece of it lies below the prefix.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::build::{self, Profile};
use crate::guest::{self, Kernel};
use crate::{iptables, paths, qemu, run};

/// The guest's kernel, below the prefix.
pub const KERNEL: &str = "share/kata-containers/vmlinux.elf";
/// The guest's initrd.
pub const INITRD: &str = "share/kata-containers/kata-containers-initrd.img";
/// The agent by itself, for images of the user's own.
pub const AGENT: &str = "share/kata-containers/agent";
/// The configuration.
pub const CONFIG: &str = "share/defaults/kata-containers/configuration.toml";
/// The host program.
pub const HOST: &str = "bin/kata";
/// Its other names, links to it in the same directory.
const NAMES: &[&str] =
    &["bin/kata-runtime", "bin/containerd-shim-kata-v2", "bin/kata-shim", "bin/kata-monitor", "bin/kata-deploy"];

/// What goes to one place.
pub enum Content {
    /// A copy of this file, with this mode.
    File(PathBuf, u32),
    /// A symbolic link to a name in the same directory.
    Link(&'static str),
}

/// One piece: its path below the prefix, and what it is.
pub struct Piece {
    /// Below the prefix.
    pub path: Cow<'static, str>,
    /// What is there.
    pub content: Content,
}

/// Builds everything and returns the pieces of an installation that boots `kernel`.
///
/// # Errors
/// The builds'.
pub fn pieces(profile: Profile, kernel: &Kernel) -> Result<Vec<Piece>> {
    let host = run::step("building the host program", || build::host(profile))?;
    let agent = run::step("building the agent", || build::agent(profile))?;
    // Named by its kernel, because the initrd holds that kernel's modules.
    let name = if kernel.modules.is_empty() { "initrd.img" } else { "initrd-debian.img" };
    let initrd = paths::target_dir().join("kata/pieces").join(profile.dir()).join(name);
    run::step("writing the initrd", || guest::write_initrd(kernel, &agent, &initrd))?;
    let file =
        |path: &'static str, from: PathBuf, mode| Piece { path: path.into(), content: Content::File(from, mode) };
    let mut pieces = vec![
        file(HOST, host, 0o755),
        file(KERNEL, kernel.path.clone(), 0o644),
        file(INITRD, initrd, 0o644),
        file(AGENT, agent, 0o755),
        file(CONFIG, paths::repo_root().join("packaging/configuration.toml"), 0o644),
    ];
    pieces.extend(iptables::pieces()?);
    pieces.extend(NAMES.iter().map(|path| Piece { path: (*path).into(), content: Content::Link("kata") }));
    Ok(pieces)
}

impl Piece {
    /// Puts it below `prefix`, replacing what is there atomically.
    ///
    /// # Errors
    /// Names the path.
    pub fn put(&self, prefix: &Path) -> Result<()> {
        let to = prefix.join(self.path.as_ref());
        match &self.content {
            Content::File(from, mode) => run::replace_file(from, &to, *mode),
            Content::Link(target) => {
                let temp = to.with_file_name(format!(".{target}.{}.new", std::process::id()));
                let put = std::os::unix::fs::symlink(target, &temp).and_then(|()| fs::rename(&temp, &to));
                put.with_context(|| format!("cannot make the link {}", to.display()))
            }
        }
    }
}

/// An installation inside the target directory, for tests and the demo.
///
/// # Errors
/// As of [`pieces`] and [`Piece::put`].
pub fn stage(profile: Profile, kernel: &Kernel) -> Result<PathBuf> {
    let flavour = if kernel.modules.is_empty() { "" } else { "-debian" };
    let dir = paths::target_dir().join("kata").join(format!("{}{flavour}", profile.dir()));
    // Our own QEMU if it has been built, as `install` does.
    for piece in pieces(profile, kernel)?.into_iter().chain(qemu::pieces()?) {
        piece.put(&dir)?;
    }
    Ok(dir)
}
