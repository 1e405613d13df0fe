//! A node in a directory, and an installation to put there.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use kata_deploy::args::{self, Args, Verb};
use kata_deploy::error::DeployError;
use kata_deploy::install::{self, Installed};
use kata_deploy::remove::{self, Removed};
use kata_deploy::status::{self, Installation};
use tempfile::TempDir;

pub const CONTAINERD: &str = "etc/containerd/config.toml";
pub const DROP_IN: &str = "etc/crio/crio.conf.d/99-kata.conf";

pub fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    fs::read_to_string(path).unwrap()
}

pub struct Node {
    pub dir: TempDir,
}

/// What a tree looks like: type, mode, owner, content of each path.
pub type Picture = BTreeMap<PathBuf, (u32, u32, u32, Vec<u8>)>;

impl Node {
    /// With these files.
    pub fn with(files: &[(&str, &str)]) -> Node {
        let node = Node { dir: tempfile::tempdir().unwrap() };
        for (path, text) in files {
            node.write(path, text);
        }
        node.source("one");
        fs::create_dir_all(node.path("")).unwrap();
        symlink("/proc", node.path("proc")).unwrap();
        node
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join("node").join(path)
    }

    pub fn write(&self, path: &str, text: &str) {
        fs::create_dir_all(self.path(path).parent().unwrap()).unwrap();
        fs::write(self.path(path), text).unwrap();
    }

    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    /// Makes the installation to copy; another `word` is another version. Its program sleeps.
    pub fn source(&self, word: &str) {
        let source = self.dir.path().join("source");
        drop(fs::remove_dir_all(&source));
        for dir in ["bin", "libexec/kata-containers", "share/kata-containers", "share/defaults/kata-containers"] {
            fs::create_dir_all(source.join(dir)).unwrap();
        }
        fs::copy("/bin/sleep", source.join("bin/kata")).unwrap();
        for name in ["kata-runtime", "containerd-shim-kata-v2", "kata-deploy"] {
            symlink("kata", source.join("bin").join(name)).unwrap();
        }
        fs::write(source.join("bin/somebody-elses"), "").unwrap();
        fs::write(source.join("share/kata-containers/vmlinux.elf"), word).unwrap();
        fs::write(source.join("share/kata-containers/manifest"), "of another prefix").unwrap();
        fs::write(source.join("share/defaults/kata-containers/configuration.toml"), "").unwrap();
        fs::write(source.join("libexec/kata-containers/qemu"), "").unwrap();
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(source.join("libexec/kata-containers/qemu"), mode).unwrap();
    }

    fn parse(&self, verb: &str, more: &[&str]) -> Verb {
        use clap::Parser;
        let root = self.path("");
        fs::create_dir_all(&root).unwrap();
        let root = root.display().to_string();
        let words = ["kata-deploy", verb, "--host-root", root.as_str()];
        Args::parse_from(words.into_iter().chain(more.iter().copied())).verb
    }

    pub fn install(&self, more: &[&str]) -> Result<Installed, DeployError> {
        let Verb::Install(args) = self.parse("install", more) else { panic!() };
        install::install(&args, &self.dir.path().join("source"))
    }

    /// For containerd.
    pub fn containerd(&self, more: &[&str]) -> Result<Installed, DeployError> {
        self.install(&[&["--engine", "containerd"], more].concat())
    }

    pub fn remove(&self) -> Result<Removed, DeployError> {
        let Verb::Remove(args) = self.parse("remove", &[]) else { panic!() };
        remove::remove(&args)
    }

    pub fn removed(&self) {
        let removed = self.remove().unwrap();
        assert!(matches!(removed, Removed::All { .. }), "{removed:?}");
    }

    pub fn status(&self) -> Option<Installation> {
        let Verb::Status(args) = self.parse("status", &[]) else { panic!() };
        let args: args::Status = args;
        status::status(&args).unwrap().installation
    }

    /// A process that runs from the current version, under one of its names.
    pub fn runs(&self, name: &str, argv: &[&str]) -> Running {
        use std::os::unix::process::CommandExt;
        let program = self.path("opt/kata/current/bin").join(name);
        Running(Command::new(program).arg0(name).args(argv).spawn().unwrap())
    }

    /// Everything on the node.
    pub fn picture(&self) -> Picture {
        fn add(dir: &Path, base: &Path, out: &mut Picture) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.ends_with("node/proc") {
                    continue;
                }
                let meta = fs::symlink_metadata(&path).unwrap();
                let content = if meta.is_dir() {
                    add(&path, base, out);
                    Vec::new()
                } else if meta.is_symlink() {
                    fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
                } else {
                    fs::read(&path).unwrap()
                };
                let name = path.strip_prefix(base).unwrap().to_owned();
                out.insert(name, (meta.mode(), meta.uid(), meta.gid(), content));
            }
        }
        let mut out = Picture::new();
        add(&self.path(""), &self.path(""), &mut out);
        out
    }
}

pub struct Running(pub Child);

impl Running {
    pub fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }

    pub fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
