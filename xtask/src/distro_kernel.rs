//! Debian's own cloud kernel: its image unpacked, and the modules that the guest loads. Nothing is installed; the
//! package is only downloaded.
//!
//! Kept under `<cache>/kernel/<package>_<version>/`: `vmlinux`, `modules/*.ko`, and `modules.txt` with their names in
//! load order.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::image::Module;
use crate::kernel::{lock, remove_tree};
use crate::modules::Tree;
use crate::{bzimage, deps, paths, run};

/// A kernel and what it needs in its initrd.
pub struct DistroKernel {
    /// The ELF kernel.
    pub vmlinux: PathBuf,
    /// In load order.
    pub modules: Vec<Module>,
    /// Package and version, for people.
    pub name: String,
}

/// Debian's cloud kernel for `arch`: from the cache, or downloaded now.
///
/// # Errors
/// No such package for `arch`, no network, or a package that is not as expected.
pub fn get(arch: &str) -> Result<DistroKernel> {
    let meta = match arch {
        "x86_64" => "linux-image-cloud-amd64",
        "aarch64" => "linux-image-cloud-arm64",
        _ => bail!("Debian has no cloud kernel for {arch} that is known here"),
    };
    let home = paths::cache_dir().join("kernel");
    fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
    let package = match resolve(meta) {
        Ok(package) => package,
        Err(err) => match newest_kept(&home) {
            Some(dir) => {
                eprintln!("    {err:#}; the cached {} is used", dir.display());
                return load(&dir);
            }
            None => return Err(err),
        },
    };
    let dir = home.join(&package);
    if !dir.exists() {
        let _lock = lock(&home.join("lock-debian"))?;
        if !dir.exists() {
            run::step(&format!("getting Debian's kernel {package}"), || download(&package, &dir, &home))?;
        }
    }
    load(&dir)
}

/// The package that the meta package stands for, as `<name>_<version>`.
fn resolve(meta: &str) -> Result<String> {
    let find = || -> Result<String> {
        let depends = run::output(&mut run::cmd("apt-cache", ["depends", "--important", meta]))?;
        let name = depends
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends:"))
            .map(str::trim)
            .find(|name| name.starts_with("linux-image-"))
            .with_context(|| format!("apt does not know what {meta} stands for"))?;
        let shown = run::output(&mut run::cmd("apt-cache", ["show", "--no-all-versions", name]))?;
        let version = shown.lines().find_map(|line| line.strip_prefix("Version: "));
        let version = version.with_context(|| format!("apt does not know a version of {name}"))?;
        Ok(format!("{name}_{version}"))
    };
    if let Ok(found) = find() {
        return Ok(found);
    }
    deps::update_lists()?;
    find()
}

fn newest_kept(home: &Path) -> Option<PathBuf> {
    let is_one = |dir: &Path| dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with("linux-image-"));
    paths::newest(home, "modules.txt", is_one)
}

fn download(package: &str, dir: &Path, home: &Path) -> Result<()> {
    deps::ensure(&["xz-utils"])?;
    let work = home.join("work-debian");
    remove_tree(&work)?;
    fs::create_dir_all(&work)?;
    let (name, version) = package.split_once('_').context("a package without a version")?;
    // The download directory is ours alone, so apt's own user could not write there.
    let mut get = run::cmd("apt-get", ["-q", "-o", "APT::Sandbox::User=root", "download"]);
    get.arg(format!("{name}={version}")).current_dir(&work).stdout(std::io::stderr());
    run::check(&mut get)?;
    let deb = fs::read_dir(&work)?.flatten().map(|e| e.path()).find(|p| p.extension().is_some_and(|x| x == "deb"));
    let deb = deb.with_context(|| format!("apt-get download {name} left no .deb"))?;
    let root = work.join("root");
    run::check(run::cmd("dpkg-deb", ["-x"]).arg(&deb).arg(&root))?;

    let done = work.join("done");
    fs::create_dir_all(done.join("modules"))?;
    let boot = root.join("boot");
    let bzimage = only(&boot, "vmlinuz-")?;
    let image = fs::read(&bzimage).with_context(|| format!("cannot read {}", bzimage.display()))?;
    match bzimage::vmlinux(&image) {
        Ok(elf) => fs::write(done.join("vmlinux"), elf)?,
        Err(err) => {
            eprintln!("    the kernel cannot be unpacked ({err:#}); QEMU gets it as it is, and boots slower");
            fs::write(done.join("vmlinux"), image)?;
        }
    }
    // Debian 13 has it under usr/.
    let libs = [root.join("lib/modules"), root.join("usr/lib/modules")];
    let lib = libs.iter().find(|dir| dir.is_dir()).with_context(|| format!("{package} has no modules"))?;
    let mut list = String::new();
    for (name, content) in Tree::read(&only(lib, "")?)?.for_guest()? {
        fs::write(done.join("modules").join(format!("{name}.ko")), content)?;
        list.push_str(&name);
        list.push('\n');
    }
    fs::write(done.join("modules.txt"), list)?;
    fs::rename(&done, dir).with_context(|| format!("cannot put the kernel to {}", dir.display()))?;
    remove_tree(&work)
}

/// The one entry of a directory whose name begins so.
fn only(dir: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let found: Vec<PathBuf> =
        entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with(prefix)).map(|e| e.path()).collect();
    ensure!(found.len() == 1, "{} has {} entries {prefix}*, not one", dir.display(), found.len());
    Ok(found[0].clone())
}

fn load(dir: &Path) -> Result<DistroKernel> {
    let list = dir.join("modules.txt");
    let list = fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let modules = list
        .lines()
        .map(|name| Module {
            guest_path: format!("/lib/modules/{name}.ko"),
            file: dir.join("modules").join(format!("{name}.ko")),
        })
        .collect();
    let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(DistroKernel { vmlinux: dir.join("vmlinux"), modules, name })
}
