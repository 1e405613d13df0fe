//! The minimal QEMU: Debian's source package, only the machine and devices we use, one static file with its firmware.
//!
//! It is kept under `<cache>/qemu/<key>/` as it is installed below a prefix, with `inputs`, which says what the key was
//! made of: the recipe (`packaging/qemu`), the source's version, and the versions of what is linked into the binary.

mod check;
mod deb;
mod make;
mod measure;
mod recipe;
mod source;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::kernel::{lock, remove_tree};
use crate::layout::{Content, Piece};
use crate::{deps, paths, run};
use recipe::{Inputs, Recipe, Version};

/// Where the binary is below a prefix, but for the architecture that ends it.
const BINARY: &str = "libexec/kata-containers/qemu-system-";
/// Where its firmware is below a prefix.
const DATA: &str = "share/kata-containers/qemu";

/// What to build, or to measure instead.
#[derive(clap::Args)]
pub struct Options {
    /// Which of Debian's QEMUs.
    #[arg(long, value_enum, default_value_t = recipe::DEFAULT)]
    version: Version,
    /// Another architecture's guests, without KVM; to see that its device list builds.
    #[arg(long, default_value = std::env::consts::ARCH)]
    arch: String,
    /// Make a Debian package of it, and print that one's path.
    #[arg(long, conflicts_with = "measure")]
    deb: bool,
    /// Build nothing; measure these QEMU binaries in turn.
    #[arg(long, num_args = 1.., value_name = "BINARY")]
    measure: Vec<PathBuf>,
    /// Rounds of measuring; one more is run first and not counted.
    #[arg(long, default_value_t = 20)]
    rounds: usize,
}

/// Builds (or finds built) and prints the path.
///
/// # Errors
/// Packages or a source that cannot be had, the build's failure, or a QEMU that lacks what the driver needs.
pub fn run(options: &Options) -> Result<()> {
    if !options.measure.is_empty() {
        return measure::run(&options.measure, options.rounds);
    }
    let recipe = Recipe::read(&options.arch)?;
    let built = build(&recipe, options.version)?;
    let result = if options.deb { deb::pack(&recipe, &built)? } else { built.join(binary(&recipe.arch)) };
    println!("{}", result.display());
    Ok(())
}

/// Builds this machine's default one, or finds it built.
///
/// # Errors
/// As of [`run()`].
pub fn ensure_built() -> Result<()> {
    build(&Recipe::read(std::env::consts::ARCH)?, recipe::DEFAULT).map(drop)
}

/// Whether there is a recipe for this machine.
pub fn has_recipe() -> bool {
    recipe::exists(std::env::consts::ARCH)
}

/// The pieces of the QEMU that has been built here from this recipe; none where there is none.
///
/// # Errors
/// A recipe that cannot be read.
pub fn pieces() -> Result<Vec<Piece>> {
    let arch = std::env::consts::ARCH;
    if !recipe::exists(arch) {
        return Ok(Vec::new());
    }
    let recipe = Recipe::read(arch)?;
    let Some(built) = cached(&recipe) else { return Ok(Vec::new()) };
    Ok(files(arch)
        .into_iter()
        .map(|(path, mode)| {
            let from = built.join(&path);
            Piece { path: path.into(), content: Content::File(from, mode) }
        })
        .collect())
}

/// The default version's newest, else the newest of another.
fn cached(recipe: &Recipe) -> Option<PathBuf> {
    std::iter::once(recipe::DEFAULT).chain(Version::ALL).find_map(|version| newest_of(recipe, version))
}

/// The binary's path below a prefix.
fn binary(arch: &str) -> String {
    format!("{BINARY}{arch}")
}

/// All files below a prefix, with their modes.
fn files(arch: &str) -> Vec<(String, u32)> {
    let firmware = make::firmware(arch).iter().map(|name| (format!("{DATA}/{name}"), 0o644));
    std::iter::once((binary(arch), 0o755)).chain(firmware).collect()
}

fn home() -> PathBuf {
    paths::cache_dir().join("qemu")
}

/// The directory that holds it as below a prefix: from the cache, or built now, which takes minutes.
fn build(recipe: &Recipe, version: Version) -> Result<PathBuf> {
    deps::ensure(deps::QEMU)?;
    fs::create_dir_all(home()).with_context(|| format!("cannot make {}", home().display()))?;
    let found = {
        // Not the build's: what is there already need not wait for a build of another.
        let _lock = lock(&home().join("apt.lock"))?;
        source::find(version, &home().join("apt"))
    };
    let source = match found {
        Ok(source) => source,
        // Without the mirror, an earlier build of the same recipe will do.
        Err(err) => match newest_of(recipe, version) {
            Some(found) => {
                eprintln!("    {err:#}; an earlier build of the same recipe is used");
                return Ok(found);
            }
            None => return Err(err),
        },
    };
    let inputs = Inputs { recipe: recipe.digest(version), source: source.version.clone(), linked: linked()? };
    let kept = home().join(inputs.key());
    let whole = || files(&recipe.arch).iter().all(|(path, _)| kept.join(path).exists());
    if whole() {
        return Ok(kept);
    }
    let _lock = lock(&home().join("lock"))?;
    if whole() {
        return Ok(kept); // somebody else built it while we waited
    }
    let work = home().join("work");
    remove_tree(&work)?;
    fs::create_dir_all(&work)?;
    let done = make::make(recipe, &source, &work)?;
    run::step("checking it", || check::check(recipe, &done))?;
    fs::write(done.join("inputs"), inputs.to_string())?;
    // A directory there that lacks a file was not made by us whole.
    remove_tree(&kept)?;
    fs::rename(&done, &kept).with_context(|| format!("cannot put QEMU to {}", kept.display()))?;
    remove_tree(&work)?;
    Ok(kept)
}

/// The newest that is kept of this recipe, whatever the versions of source and libraries.
fn newest_of(recipe: &Recipe, version: Version) -> Option<PathBuf> {
    let digest = recipe.digest(version);
    paths::newest(&home(), "inputs", |dir| paths::made_of(dir, &digest))
}

/// What ends up inside the binary, for the key and for the package's `Built-Using`: binary package, its version,
/// its source package with version.
fn linked() -> Result<Vec<String>> {
    deps::QEMU_LINKED
        .iter()
        .map(|package| {
            let format = "${Package} ${Version} ${source:Package} (= ${source:Version})\n";
            let line = run::output(&mut run::cmd("dpkg-query", ["-W", "-f", format, package]))?;
            // With two architectures installed there are two lines, of one version.
            let line = line.lines().next().unwrap_or_default().to_owned();
            ensure!(!line.is_empty(), "{package} is installed and yet has no version");
            Ok(line)
        })
        .collect()
}

/// The line of `inputs` in a directory of the cache that begins so, without that beginning.
fn input(built: &Path, beginning: &str) -> Result<String> {
    let path = built.join("inputs");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let line = text.lines().find_map(|line| line.strip_prefix(beginning));
    Ok(line.with_context(|| format!("{} has no line {beginning}", path.display()))?.to_owned())
}
