//! The Debian package.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::recipe::Recipe;
use super::{files, home, input};
use crate::kernel::remove_tree;
use crate::run;

/// Its name.
const NAME: &str = "kata-containers-qemu";

/// Packs what was built and returns the package's path, in the cache.
///
/// # Errors
/// Files that cannot be copied, or dpkg-deb's failure.
pub fn pack(recipe: &Recipe, built: &Path) -> Result<PathBuf> {
    let version = format!("{}+kata1", input(built, "source ")?);
    let architecture = debian_arch(&recipe.arch)?;
    let tree = home().join("work-deb");
    remove_tree(&tree)?;
    let mut size = 0;
    let mut copy = |from: &Path, to: &str, mode: u32| -> Result<()> {
        let to = tree.join(to);
        make_dirs(&tree, &to)?;
        size += fs::copy(from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        Ok(fs::set_permissions(&to, fs::Permissions::from_mode(mode))?)
    };
    for (path, mode) in files(&recipe.arch) {
        copy(&built.join(&path), &format!("usr/{path}"), mode)?;
    }
    copy(&built.join("copyright"), &format!("usr/share/doc/{NAME}/copyright"), 0o644)?;
    copy(&built.join("inputs"), &format!("usr/share/doc/{NAME}/inputs"), 0o644)?;

    let text = control(&version, architecture, size.div_ceil(1024), &built_using(built)?);
    let path = tree.join("DEBIAN/control");
    make_dirs(&tree, &path)?;
    fs::write(&path, text)?;
    // An epoch is no part of a package's file name.
    let plain = version.split_once(':').map_or(version.as_str(), |(_, rest)| rest);
    let deb = built.join(format!("{NAME}_{plain}_{architecture}.deb"));
    let mut build = run::cmd("dpkg-deb", ["--root-owner-group", "--build"]);
    let date = fs::read_to_string(built.join("timestamp")).context("cannot read when QEMU's source was packed")?;
    build.env("SOURCE_DATE_EPOCH", date.trim());
    run::check(build.arg(&tree).arg(&deb).stdout(std::io::stderr()))?;
    remove_tree(&tree)?;
    Ok(deb)
}

/// Makes the directories of a file below `tree`, for everybody to read whatever our umask is.
fn make_dirs(tree: &Path, file: &Path) -> Result<()> {
    let dir = file.parent().context("a file without a directory")?;
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    for dir in dir.ancestors().take_while(|dir| dir.starts_with(tree)) {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

fn debian_arch(arch: &str) -> Result<&'static str> {
    match arch {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        _ => bail!("Debian's name for the architecture {arch} is not known here (xtask/src/qemu/deb.rs)"),
    }
}

/// The source packages with versions whose code is inside, as the field takes them.
fn built_using(built: &Path) -> Result<BTreeSet<String>> {
    let text = fs::read_to_string(built.join("inputs")).context("cannot read what QEMU was built of")?;
    let mut sources: BTreeSet<String> = BTreeSet::from([format!("qemu (= {})", input(built, "source ")?)]);
    // "linked PACKAGE VERSION SOURCE (= VERSION)". Of the compiler nothing is in it that had to be told.
    let linked = text.lines().filter_map(|l| l.strip_prefix("linked ")?.splitn(3, ' ').nth(2));
    sources.extend(linked.filter(|source| !source.starts_with("gcc-defaults ")).map(str::to_owned));
    Ok(sources)
}

/// The package's description of itself. It depends on nothing: the binary is static.
fn control(version: &str, architecture: &str, kib: u64, built_using: &BTreeSet<String>) -> String {
    let built_using = built_using.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    format!(
        "Package: {NAME}\n\
         Version: {version}\n\
         Architecture: {architecture}\n\
         Maintainer: Kata Containers <kata-containers@localhost>\n\
         Section: admin\n\
         Priority: optional\n\
         Installed-Size: {kib}\n\
         Built-Using: {built_using}\n\
         Description: QEMU with only what Kata Containers uses\n \
         A static QEMU of one machine type and its virtio devices, with its firmware,\n \
         for containers in lightweight virtual machines. It does not replace the\n \
         distribution's QEMU and lies beside it.\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_file_is_one_that_dpkg_takes() {
        let sources = BTreeSet::from(["qemu (= 1:7.2-1)".to_owned(), "glibc (= 2.36-9)".to_owned()]);
        let text = control("1:7.2-1+kata1", "amd64", 10_000, &sources);
        assert!(text.contains("\nVersion: 1:7.2-1+kata1\nArchitecture: amd64\n"), "{text}");
        assert!(text.contains("\nBuilt-Using: glibc (= 2.36-9), qemu (= 1:7.2-1)\n"), "{text}");
        // Every line is a field, or continues one.
        for line in text.lines() {
            let field = line.split_once(": ").is_some_and(|(name, _)| !name.contains(' '));
            assert!(field || line.starts_with(' '), "{line:?}");
        }
        assert!(text.ends_with(".\n") && !text.contains("\n\n"), "{text:?}");
        assert!(!text.contains("Depends"), "a static binary depends on nothing");
    }

    #[test]
    fn the_sources_are_read_from_the_inputs() {
        let dir = std::env::temp_dir().join(format!("kata-xtask-deb-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(
            dir.join("inputs"),
            "abc\nsource 1:7.2-1\nlinked gcc 4:12 gcc-defaults (= 1)\nlinked libc6-dev 2.36 glibc (= 2.36)\n",
        )
        .unwrap();
        let found = built_using(&dir);
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(found.unwrap(), BTreeSet::from(["glibc (= 2.36)".to_owned(), "qemu (= 1:7.2-1)".to_owned()]));
    }
}
