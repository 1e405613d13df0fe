//! The guest's initrd: a newc archive written without root, the same bytes for the same inputs.
//!
//! ```text
//! /init                 the agent
//! /dev/console          5:1, so that the agent has its stdio before it mounts /dev
//! /etc/kata-modules     modules to load, one guest path a line, in order (only with a modular kernel)
//! /lib/modules/*.ko     those
//! /proc /sys /run /tmp ...  mount points
//! ```
//! It is not compressed: without KVM, unpacking costs the guest more than reading.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use cpio::newc::{self, ModeFileType};

/// A kernel module to pack.
#[derive(Debug, Clone)]
pub struct Module {
    /// Its path in the guest.
    pub guest_path: String,
    /// Its file here.
    pub file: PathBuf,
}

const DIRS: &[(&str, u32)] =
    &[("dev", 0o755), ("etc", 0o755), ("proc", 0o555), ("run", 0o755), ("sys", 0o555), ("tmp", 0o1777), ("var", 0o755)];

/// Writes the archive to `out`.
///
/// # Errors
/// A file that cannot be read, a module path that is not absolute or leaves the root, or `out`'s.
pub fn write(out: impl Write, agent: &Path, modules: &[Module]) -> Result<()> {
    write_with(out, agent, &[], modules)
}

/// The same with some more programs: their path in the guest without its first '/', and their file here.
///
/// # Errors
/// As of [`write()`].
pub fn write_with(out: impl Write, init: &Path, programs: &[(&str, &Path)], modules: &[Module]) -> Result<()> {
    let mut archive = Archive { out, ino: 0, dirs: BTreeSet::new() };
    for (dir, mode) in DIRS {
        archive.dir(dir, *mode)?;
    }
    archive.char_device("dev/console", 0o600, (5, 1))?;
    archive.char_device("dev/null", 0o666, (1, 3))?;
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    archive.file("init", 0o755, &read(init)?)?;
    for (path, file) in programs {
        archive.parents(path)?;
        archive.file(path, 0o755, &read(file)?)?;
    }
    if !modules.is_empty() {
        let mut list = String::new();
        for module in modules {
            let path = module.guest_path.strip_prefix('/').context("a module's guest path must be absolute")?;
            ensure!(!path.split('/').any(|part| part.is_empty() || part == ".."), "bad module path {path}");
            archive.parents(path)?;
            let bytes = std::fs::read(&module.file)
                .with_context(|| format!("cannot read the kernel module {}", module.file.display()))?;
            archive.file(path, 0o644, &bytes)?;
            list.push_str(&module.guest_path);
            list.push('\n');
        }
        archive.file("etc/kata-modules", 0o644, list.as_bytes())?;
    }
    newc::trailer(archive.out)?.flush()?;
    Ok(())
}

struct Archive<W: Write> {
    out: W,
    ino: u32,
    dirs: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    /// Inode numbers count up from 1, owner is root, the time is 0: nothing of the build machine gets in.
    fn entry(&mut self, name: &str, kind: ModeFileType, mode: u32) -> newc::Builder {
        self.ino += 1;
        newc::Builder::new(name).ino(self.ino).mode(mode).set_mode_file_type(kind)
    }

    /// The directories above `path` that are not there yet.
    fn parents(&mut self, path: &str) -> Result<()> {
        for (at, _) in path.match_indices('/') {
            if !self.dirs.contains(&path[..at]) {
                self.dir(&path[..at], 0o755)?;
            }
        }
        Ok(())
    }

    fn dir(&mut self, name: &str, mode: u32) -> Result<()> {
        self.dirs.insert(name.to_owned());
        self.entry(name, ModeFileType::Directory, mode).nlink(2).write(&mut self.out, 0).finish()?;
        Ok(())
    }

    fn char_device(&mut self, name: &str, mode: u32, (major, minor): (u32, u32)) -> Result<()> {
        let entry = self.entry(name, ModeFileType::Char, mode).rdev_major(major).rdev_minor(minor);
        entry.write(&mut self.out, 0).finish()?;
        Ok(())
    }

    fn file(&mut self, name: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        let size = u32::try_from(bytes.len()).with_context(|| format!("{name} is over 4 GiB"))?;
        let mut writer = self.entry(name, ModeFileType::Regular, mode).write(&mut self.out, size);
        writer.write_all(bytes)?;
        writer.finish()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(dir: &Path) -> (PathBuf, Vec<Module>) {
        let agent = dir.join("agent");
        std::fs::write(&agent, b"agent!").unwrap();
        let modules = ["/lib/modules/b.ko", "/lib/modules/a.ko"].map(|guest| {
            let file = dir.join(guest.rsplit('/').next().unwrap());
            std::fs::write(&file, guest).unwrap();
            Module { guest_path: guest.into(), file }
        });
        (agent, modules.to_vec())
    }

    fn entries(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut rest = bytes;
        let mut found = Vec::new();
        loop {
            let reader = newc::Reader::new(rest).unwrap();
            let entry = reader.entry().clone();
            if entry.is_trailer() {
                return found;
            }
            let mut data = Vec::new();
            rest = reader.to_writer(&mut data).unwrap();
            found.push((entry.name().to_owned(), entry.mode(), data));
        }
    }

    #[test]
    fn same_inputs_give_the_same_bytes() {
        let dir = std::env::temp_dir().join(format!("kata-xtask-image-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (agent, modules) = sample(&dir);
        let mut first = Vec::new();
        write(&mut first, &agent, &modules).unwrap();
        // A later copy of the same files: other inodes, other times.
        std::fs::remove_file(&agent).unwrap();
        let (agent, modules) = sample(&dir);
        let mut second = Vec::new();
        write(&mut second, &agent, &modules).unwrap();
        assert!(first == second);

        let found = entries(&first);
        let get = |name: &str| found.iter().find(|e| e.0 == name).unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(get("init").1, 0o100_755);
        assert_eq!(get("init").2, b"agent!");
        assert_eq!(get("dev/console").1, 0o020_600);
        assert_eq!(get("etc/kata-modules").2, b"/lib/modules/b.ko\n/lib/modules/a.ko\n");
        let at = |name: &str| found.iter().position(|e| e.0 == name).unwrap();
        assert!(at("lib") < at("lib/modules") && at("lib/modules") < at("lib/modules/b.ko"));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_module_path_that_leaves_the_root_is_refused() {
        let dir = std::env::temp_dir().join(format!("kata-xtask-image-bad-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (agent, mut modules) = sample(&dir);
        modules[0].guest_path = "/../x.ko".into();
        assert!(write(Vec::new(), &agent, &modules).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
