//! A container image without a registry: a docker-archive, which ctr, docker and podman all load.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::cmd::Cmd;
use crate::rootfs;

/// The image's name, the same to every engine.
pub const BUSYBOX: &str = "localhost/kata-busybox:1";

/// The name of the image that holds a pod's namespaces.
pub const PAUSE: &str = "localhost/kata-pause:1";

/// The archive of an image of busybox whose default command is `sh`; made once and kept.
///
/// # Panics
/// When it cannot be made.
pub fn busybox() -> PathBuf {
    let program = rootfs::busybox_program();
    let read = fs::read(&program).unwrap_or_else(|e| panic!("{}: {e}", program.display()));
    let version = &sha256(&read)[..16];
    let dir = rootfs::cache_dir().join("images");
    // The 1: of this recipe.
    let archive = dir.join(format!("busybox-{version}-1.tar"));
    if !archive.exists() {
        let fill = |tree: &Path| {
            rootfs::busybox(tree);
            Ok(())
        };
        let config = json!({ "Env": ["PATH=/bin"], "Cmd": ["sh"] });
        make(BUSYBOX, &dir, &archive, fill, &config).unwrap_or_else(|e| panic!("the image {}: {e}", archive.display()));
    }
    archive
}

/// The archive of an image whose one program sleeps until it is told to end, and reaps; made once and kept.
///
/// # Panics
/// When it cannot be made, without catatonit for instance.
pub fn pause() -> PathBuf {
    let program = Path::new("/usr/bin/catatonit");
    let read = fs::read(program).unwrap_or_else(|e| panic!("{} (Debian package catatonit): {e}", program.display()));
    let version = &sha256(&read)[..16];
    let dir = rootfs::cache_dir().join("images");
    let archive = dir.join(format!("pause-{version}-1.tar"));
    if !archive.exists() {
        let fill = |tree: &Path| {
            fs::create_dir_all(tree)?;
            fs::copy(program, tree.join("pause")).map(drop)
        };
        let config = json!({ "Entrypoint": ["/pause", "-P"] });
        make(PAUSE, &dir, &archive, fill, &config).unwrap_or_else(|e| panic!("the image {}: {e}", archive.display()));
    }
    archive
}

fn make(
    name: &str,
    dir: &Path,
    archive: &Path,
    fill: impl FnOnce(&Path) -> std::io::Result<()>,
    config: &Value,
) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    let work = tempfile::tempdir_in(dir)?;
    let (tree, out) = (work.path().join("rootfs"), work.path().join("image"));
    fill(&tree)?;
    fs::create_dir(&out)?;
    let tar = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "-cf"];
    Cmd::new("tar").args(tar).arg(out.join("layer.tar")).arg("-C").arg(&tree).arg(".").ok();
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", sha256(&fs::read(out.join("layer.tar"))?))] },
    });
    fs::write(out.join("config.json"), config.to_string())?;
    let manifest = json!([{ "Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"] }]);
    fs::write(out.join("manifest.json"), manifest.to_string())?;
    let new = work.path().join("archive.tar");
    Cmd::new("tar").arg("-cf").arg(&new).arg("-C").arg(&out).args(["manifest.json", "config.json", "layer.tar"]).ok();
    fs::rename(&new, archive)
}

/// Go's name of this machine's architecture, which image specifications use.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// In hex.
pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}
