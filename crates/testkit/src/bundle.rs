//! OCI bundles: a root file system, and a `config.json` made by the runtime's own `spec` and changed from there.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::rootfs;
use crate::runtime::{Runtime, json, scratch};

/// A bundle in a directory of its own, which goes with it.
pub struct Bundle {
    dir: TempDir,
    spec: Value,
    /// The rootfs is a mount.
    mounted: bool,
}

impl Bundle {
    /// busybox, with what `kata-runtime spec` writes, without a terminal.
    pub fn busybox(runtime: &Runtime) -> Bundle {
        let bundle = Bundle::empty(runtime);
        rootfs::busybox(&bundle.rootfs());
        bundle
    }

    /// Over a root file system that stays as it is: writes go to the bundle.
    ///
    /// # Panics
    /// When the overlay cannot be mounted.
    pub fn over(runtime: &Runtime, lower: &Path) -> Bundle {
        let mut bundle = Bundle::empty(runtime);
        let (upper, work) = (bundle.path().join("upper"), bundle.path().join("work"));
        for dir in [&upper, &work, &bundle.rootfs()] {
            fs::create_dir(dir).unwrap_or_else(|e| panic!("cannot make {}: {e}", dir.display()));
        }
        let data = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        mount(Some("overlay"), &bundle.rootfs(), Some("overlay"), MsFlags::empty(), Some(data.as_str()))
            .unwrap_or_else(|e| panic!("cannot mount an overlay ({data}): {e}"));
        bundle.mounted = true;
        bundle
    }

    fn empty(runtime: &Runtime) -> Bundle {
        let dir = scratch();
        runtime.cmd(["spec", "--bundle"]).arg(dir.path()).ok();
        let path = dir.path().join("config.json");
        let text = fs::read(&path).unwrap_or_else(|e| panic!("spec left no {}: {e}", path.display()));
        let spec = serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut bundle = Bundle { dir, spec, mounted: false };
        bundle.spec["process"]["terminal"] = json!(false);
        bundle
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The root file system.
    pub fn rootfs(&self) -> PathBuf {
        self.path().join("rootfs")
    }

    /// The `config.json` that is, or will be, written.
    pub fn spec(&mut self) -> &mut Value {
        &mut self.spec
    }

    /// Changes it.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Value)) -> Bundle {
        change(&mut self.spec);
        self
    }

    /// The command.
    #[must_use]
    pub fn args<S: AsRef<str>>(self, args: impl IntoIterator<Item = S>) -> Bundle {
        let args: Vec<String> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        self.with(|spec| spec["process"]["args"] = json!(args))
    }

    /// A shell command line as the command.
    #[must_use]
    pub fn sh(self, script: &str) -> Bundle {
        self.args(["sh", "-c", script])
    }

    /// A root file system that can be written to.
    #[must_use]
    pub fn writable(self) -> Bundle {
        self.with(|spec| spec["root"]["readonly"] = json!(false))
    }

    /// Adds a mount.
    ///
    /// # Panics
    /// On a spec without a list of mounts.
    #[must_use]
    pub fn mount(self, destination: &str, kind: &str, source: impl AsRef<Path>, options: &[&str]) -> Bundle {
        let mount = json!({
            "destination": destination,
            "type": kind,
            "source": source.as_ref().to_string_lossy(),
            "options": options,
        });
        self.with(|spec| spec["mounts"].as_array_mut().expect("a list of mounts").push(mount))
    }

    /// Adds hooks of this stage, each an absolute path and a shell script for it.
    #[must_use]
    pub fn hook(self, stage: &str, script: &str) -> Bundle {
        let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", script] });
        self.with(|spec| match spec["hooks"][stage].as_array_mut() {
            Some(hooks) => hooks.push(hook),
            None => spec["hooks"][stage] = json!([hook]),
        })
    }

    /// Writes `config.json` and returns the bundle's directory.
    ///
    /// # Panics
    /// When it cannot.
    pub fn write(&self) -> &Path {
        let path = self.path().join("config.json");
        let text = serde_json::to_vec_pretty(&self.spec).unwrap_or_default();
        fs::write(&path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        self.path()
    }

    /// Whether the runtime's `spec` and runc's have the same shape is asked with this: runc's own template.
    ///
    /// # Panics
    /// Without runc.
    #[must_use]
    pub fn with_runc_spec(mut self) -> Bundle {
        let dir = scratch();
        crate::cmd::Cmd::new("runc").args(["spec", "--bundle"]).arg(dir.path()).ok();
        let out = crate::cmd::Cmd::new("cat").arg(dir.path().join("config.json")).ok();
        self.spec = json(&out);
        self.spec["process"]["terminal"] = json!(false);
        self
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if self.mounted
            && let Err(e) = umount2(&self.rootfs(), MntFlags::MNT_DETACH)
        {
            println!("cannot unmount {}: {e}", self.rootfs().display());
        }
    }
}
