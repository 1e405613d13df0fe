//! Which kernel modules a guest needs, in the order in which they load.
//!
//! Dependencies are read from the modules themselves (`depends=` in `.modinfo`), because Debian makes `modules.dep`
//! only when the package is installed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::bzimage::through;

/// Without these no container runs.
const NEEDED: &[&str] = &["virtio_pci", "virtio_console", "virtiofs", "virtio_mem"];
/// With these it runs better, or finds more devices; a kernel may lack them.
const WANTED: &[&str] = &[
    "virtio_balloon",
    "virtio_rng",
    "vmw_vsock_virtio_transport",
    "virtio_blk",
    "virtio_scsi",
    "sd_mod",
    "virtio_net",
    "overlay",
];

/// The modules of one kernel.
pub struct Tree {
    /// Module name (with underscores) to file.
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
}

impl Tree {
    /// Reads `lib/modules/<release>`.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn read(dir: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        collect(&dir.join("kernel"), &mut files)?;
        let list = dir.join("modules.builtin");
        let text = fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
        let built_in = text.lines().filter_map(|line| name_of(Path::new(line))).collect();
        Ok(Tree { files, built_in })
    }

    /// What the guest loads, dependencies before dependents: name and content.
    ///
    /// # Errors
    /// A module that is needed is neither there nor built in, or a file cannot be read.
    pub fn for_guest(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let mut loaded = Vec::new();
        let mut seen = BTreeSet::new();
        for name in NEEDED {
            self.add(name, &mut seen, &mut loaded)?;
        }
        for name in WANTED {
            if self.files.contains_key(*name) {
                self.add(name, &mut seen, &mut loaded)?;
            }
        }
        Ok(loaded)
    }

    fn add(&self, name: &str, seen: &mut BTreeSet<String>, loaded: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
        if self.built_in.contains(name) || !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let file = self.files.get(name).with_context(|| format!("this kernel has no module {name}"))?;
        let content = unpacked(file)?;
        for dependency in depends(&content).with_context(|| format!("in {}", file.display()))? {
            self.add(&dependency, seen, loaded)?;
        }
        loaded.push((name.to_owned(), content));
        Ok(())
    }
}

fn collect(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), files)?;
        } else if let Some(name) = name_of(&entry.path()) {
            files.insert(name, entry.path());
        }
    }
    Ok(())
}

/// "a/virtio-rng.ko.xz" is `virtio_rng`: files have dashes where the kernel has underscores.
fn name_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let (stem, _) = name.split_once(".ko").filter(|(_, rest)| ["", ".xz", ".zst", ".gz"].contains(rest))?;
    Some(stem.replace('-', "_"))
}

fn unpacked(file: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let elf = match file.extension().and_then(|e| e.to_str()) {
        Some("xz") => through("xz", &["-dc"], &bytes)?,
        Some("zst") => through("zstd", &["-dc"], &bytes)?,
        Some("gz") => through("gzip", &["-dc"], &bytes)?,
        _ => bytes,
    };
    ensure!(elf.starts_with(b"\x7fELF"), "{} is not a kernel module", file.display());
    Ok(elf)
}

/// The `depends=` of a module's `.modinfo`: strings that end in NUL, this one always among them.
fn depends(elf: &[u8]) -> Result<Vec<String>> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = elf.windows(KEY.len()).position(|w| w == KEY) else {
        bail!("a kernel module that does not say what it depends on");
    };
    let value = &elf[at + KEY.len()..];
    let end = value.iter().position(|b| *b == 0).context("a .modinfo that does not end")?;
    let value = std::str::from_utf8(&value[..end])?;
    Ok(value.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(dir: &Path, modules: &[(&str, &str)], built_in: &str) -> Tree {
        fs::create_dir_all(dir.join("kernel/drivers")).unwrap();
        for (file, depends) in modules {
            fs::write(dir.join("kernel/drivers").join(file), format!("\x7fELF..\0depends={depends}\0name=x\0"))
                .unwrap();
        }
        fs::write(dir.join("modules.builtin"), built_in).unwrap();
        Tree::read(dir).unwrap()
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let dir = std::env::temp_dir().join(format!("kata-xtask-modules-{}", std::process::id()));
        let modules = [
            ("virtio_pci.ko", "virtio,virtio-ring"),
            ("virtio.ko", ""),
            ("virtio_ring.ko", "virtio"),
            ("virtio_console.ko", "virtio,virtio_ring"),
            ("virtiofs.ko", "fuse,virtio"),
            ("fuse.ko", ""),
            ("virtio-rng.ko", "virtio_ring"),
            ("unrelated.ko", ""),
        ];
        let tree = tree(&dir, &modules, "kernel/drivers/virtio/virtio_mem.ko\n");
        let names: Vec<String> = tree.for_guest().unwrap().into_iter().map(|(name, _)| name).collect();
        let want = ["virtio", "virtio_ring", "virtio_pci", "virtio_console", "fuse", "virtiofs", "virtio_rng"];
        assert_eq!(names, want);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_needed_module_that_is_missing_is_named() {
        let dir = std::env::temp_dir().join(format!("kata-xtask-modules-none-{}", std::process::id()));
        let err = tree(&dir, &[("virtio_pci.ko", "")], "").for_guest().unwrap_err().to_string();
        assert!(err.contains("virtio_console"), "{err}");
        fs::remove_dir_all(&dir).unwrap();
    }
}
