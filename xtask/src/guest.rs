//! What the VM boots: a kernel and the initrd that goes with it.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::build::{self, Profile};
use crate::image::Module;
use crate::{deps, distro_kernel, image, kernel, paths, run};

/// A kernel, and the modules that its initrd must hold.
pub struct Kernel {
    /// An ELF `vmlinux` with PVH entry (or, where it could not be unpacked, a bzImage).
    pub path: PathBuf,
    /// In load order; none where all is built in.
    pub modules: Vec<Module>,
    /// Which one it is, for people.
    pub name: String,
}

/// Builds the tuned kernel, or finds it built.
///
/// # Errors
/// See [`kernel::build`].
pub fn tuned() -> Result<Kernel> {
    Ok(as_tuned(kernel::build(std::env::consts::ARCH)?))
}

/// Builds or gets a kernel and prints its path.
///
/// # Errors
/// As of [`tuned`] or [`distro`].
pub fn print_kernel(debian: bool) -> Result<()> {
    let kernel = if debian { distro()? } else { tuned()? };
    println!("{}", kernel.path.display());
    Ok(())
}

/// Debian's kernel.
///
/// # Errors
/// See [`distro_kernel::get`].
pub fn distro() -> Result<Kernel> {
    let found = distro_kernel::get(std::env::consts::ARCH)?;
    Ok(Kernel { path: found.vmlinux, modules: found.modules, name: format!("Debian's kernel ({})", found.name) })
}

/// The tuned kernel where it has been built, else Debian's.
///
/// # Errors
/// As of [`distro`].
pub fn at_hand() -> Result<Kernel> {
    let arch = std::env::consts::ARCH;
    if kernel::has_recipe(arch)
        && let Some(path) = kernel::cached(arch)?
    {
        return Ok(as_tuned(path));
    }
    eprintln!("    the tuned kernel has not been built here (`cargo xtask kernel` does it once); Debian's is used");
    distro()
}

fn as_tuned(path: PathBuf) -> Kernel {
    Kernel { path, modules: Vec::new(), name: "the tuned kernel".into() }
}

/// Writes the initrd for `kernel` to `out`, whole or not at all.
///
/// # Errors
/// See [`image::write()`].
pub fn write_initrd(kernel: &Kernel, agent: &Path, out: &Path) -> Result<()> {
    let dir = out.parent().context("an initrd without a directory")?;
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let temp = out.with_extension(format!("{}.new", std::process::id()));
    let file = File::create(&temp).with_context(|| format!("cannot write {}", temp.display()))?;
    image::write(BufWriter::new(file), agent, &kernel.modules)?;
    std::fs::rename(&temp, out).with_context(|| format!("cannot write {}", out.display()))
}

/// Builds the agent and the initrd, and prints the initrd's path.
///
/// # Errors
/// The agent's build, or as of [`at_hand`] and [`write_initrd`].
pub fn image_only(dev: bool) -> Result<()> {
    let profile = if dev { Profile::Dev } else { Profile::Release };
    deps::ensure(deps::BUILD)?;
    let kernel = at_hand()?;
    let agent = run::step("building the agent", || build::agent(profile))?;
    let out = paths::target_dir().join("kata").join(format!("initrd-{}.img", profile.dir()));
    write_initrd(&kernel, &agent, &out)?;
    eprintln!("    for {}, {} modules", kernel.name, kernel.modules.len());
    println!("{}", out.display());
    Ok(())
}
