//! What `packaging/qemu` says, and the key that comes of it.

use std::fmt;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::paths;

/// Raised when xtask's steps change in a way that changes the result.
const RECIPE: &str = "1";

/// A QEMU of Debian's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Version {
    /// Bookworm's.
    #[value(name = "7.2")]
    V7_2,
    /// Trixie's.
    #[value(name = "10.0")]
    V10_0,
}

/// Without KVM it boots quicker than the newer one and takes less memory (packaging/qemu/README.md).
pub const DEFAULT: Version = Version::V7_2;

impl Version {
    /// All there are.
    pub const ALL: [Version; 2] = [Version::V7_2, Version::V10_0];

    /// QEMU's own number.
    pub fn number(self) -> &'static str {
        match self {
            Version::V7_2 => "7.2",
            Version::V10_0 => "10.0",
        }
    }

    /// Debian's release with it.
    pub fn suite(self) -> &'static str {
        match self {
            Version::V7_2 => "bookworm",
            Version::V10_0 => "trixie",
        }
    }
}

/// For one architecture of guests.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// As `uname -m` names it.
    pub arch: String,
    /// What configure is told.
    pub options: Vec<String>,
    /// The lines of the device list.
    pub devices: Vec<String>,
    /// The devices that must be there.
    pub required: Vec<String>,
}

fn dir() -> PathBuf {
    paths::repo_root().join("packaging/qemu")
}

/// Whether there is a device list for `arch`.
pub fn exists(arch: &str) -> bool {
    dir().join(format!("devices/{arch}.mak")).exists()
}

impl Recipe {
    /// Reads it.
    ///
    /// # Errors
    /// A file that is not there; names it.
    pub fn read(arch: &str) -> Result<Self> {
        let lines = |name: &str| -> Result<Vec<String>> {
            let path = dir().join(name);
            let text = fs::read_to_string(&path)
                .with_context(|| format!("there is no QEMU recipe for {arch}: cannot read {}", path.display()))?;
            Ok(lines(&text))
        };
        let recipe = Recipe {
            arch: arch.to_owned(),
            options: lines("configure.options")?,
            devices: lines(&format!("devices/{arch}.mak"))?,
            required: lines("required.txt")?,
        };
        for option in &recipe.options {
            ensure!(option.starts_with("--"), "packaging/qemu/configure.options: {option:?} is no option");
        }
        Ok(recipe)
    }

    /// Of what the files say rather than of their text, so that a comment builds no new QEMU.
    pub fn digest(&self, version: Version) -> String {
        let mut hash = Sha256::new();
        hash.update(format!("{} {}\nrecipe {RECIPE}\n", self.arch, version.number()));
        for (kind, lines) in [("option", &self.options), ("device", &self.devices)] {
            for line in lines {
                hash.update(format!("{kind} {line}\n"));
            }
        }
        hex::encode(hash.finalize())
    }
}

/// The lines that say something.
fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::to_owned).collect()
}

/// What one build is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inputs {
    /// [`Recipe::digest`].
    pub recipe: String,
    /// The source package's version.
    pub source: String,
    /// What is linked into it and what compiled it, with versions.
    pub linked: Vec<String>,
}

impl Inputs {
    /// The name in the cache.
    pub fn key(&self) -> String {
        hex::encode(Sha256::digest(self.to_string()))
    }
}

impl fmt::Display for Inputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\nsource {}", self.recipe, self.source)?;
        self.linked.iter().try_for_each(|line| writeln!(f, "linked {line}"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn recipe(options: &str, devices: &str) -> Recipe {
        Recipe { arch: "x86_64".into(), options: lines(options), devices: lines(devices), required: vec![] }
    }

    #[test]
    fn the_key_depends_on_what_is_built_and_not_on_comments() {
        let key = |options, devices, version, source: &str, linked: &str| {
            let recipe = recipe(options, devices).digest(version);
            Inputs { recipe, source: source.to_owned(), linked: vec![linked.to_owned()] }.key()
        };
        let base = key("--a\n", "A=y\n", Version::V7_2, "1", "libc 1");
        assert_eq!(base, key("# why\n--a\n\n", "  A=y\n# B=y\n", Version::V7_2, "1", "libc 1"));
        let others = [
            key("--b\n", "A=y\n", Version::V7_2, "1", "libc 1"),
            key("--a\n", "A=n\n", Version::V7_2, "1", "libc 1"),
            key("--a\n", "A=y\n", Version::V10_0, "1", "libc 1"),
            key("--a\n", "A=y\n", Version::V7_2, "2", "libc 1"),
            key("--a\n", "A=y\n", Version::V7_2, "1", "libc 2"),
            // An option is not a device.
            key("--a\nA=y\n", "", Version::V7_2, "1", "libc 1"),
        ];
        let different: BTreeSet<&String> = others.iter().chain([&base]).collect();
        assert_eq!(different.len(), 7);
    }

    #[test]
    fn an_architecture_without_a_list_is_an_error_that_names_the_file() {
        let err = format!("{:#}", Recipe::read("pdp11").unwrap_err());
        assert!(err.contains("devices/pdp11.mak"), "{err}");
        assert!(exists("x86_64") && exists("aarch64") && !exists("pdp11"));
    }

    /// The devices that the driver's source names: the words after `"-device"` and `"driver":`.
    fn plugged_by_the_driver() -> BTreeSet<String> {
        let source = paths::repo_root().join("crates/vmm-qemu/src");
        let mut found = BTreeSet::new();
        let files = [source.clone(), source.join("vm")].map(|dir| fs::read_dir(dir).unwrap().flatten());
        for file in files.into_iter().flatten().filter(|e| e.path().extension().is_some_and(|x| x == "rs")) {
            let text = fs::read_to_string(file.path()).unwrap();
            for mark in ["\"-device\"", "\"driver\":"] {
                for (at, _) in text.match_indices(mark) {
                    let rest =
                        text[at + mark.len()..].trim_start_matches(|c: char| c.is_whitespace() || ",&".contains(c));
                    // A literal that follows at once, perhaps in a format!.
                    let Some(name) = rest.trim_start_matches("format!(").strip_prefix('"') else { continue };
                    let name = name.split(['"', ',']).next().unwrap_or_default();
                    // Not those of block nodes.
                    if !["raw", "file", "host_device"].contains(&name) {
                        found.insert(name.to_owned());
                    }
                }
            }
        }
        found
    }

    #[test]
    fn every_device_that_the_driver_plugs_is_required_of_the_build() {
        let required = Recipe::read("x86_64").unwrap().required;
        let plugged = plugged_by_the_driver();
        for known in ["virtio-serial-pci", "virtserialport", "pcie-root-port", "virtio-mem-pci", "virtio-blk-pci"] {
            assert!(plugged.contains(known), "this test no longer finds {known} in the driver: {plugged:?}");
        }
        for device in plugged {
            assert!(required.contains(&device), "packaging/qemu/required.txt lacks {device}");
        }
    }

    #[test]
    fn the_lists_of_the_architectures_differ_in_the_machine_only() {
        let of = |arch: &str| -> BTreeSet<String> { Recipe::read(arch).unwrap().devices.into_iter().collect() };
        let (x86, arm) = (of("x86_64"), of("aarch64"));
        let only = |a: &BTreeSet<String>, b: &BTreeSet<String>| a.difference(b).cloned().collect::<Vec<_>>();
        assert_eq!(only(&x86, &arm), ["CONFIG_Q35=y", "CONFIG_SERIAL_ISA=y"]);
        assert_eq!(only(&arm, &x86), ["CONFIG_ARM_V7M=y", "CONFIG_ARM_VIRT=y"]);
    }
}
