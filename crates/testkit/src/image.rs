//! A container image without a registry: a docker-archive, which ctr, docker and podman all load.

use std::fs;
use std::path::PathBuf;

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::cmd::Cmd;
use crate::rootfs;

/// The image's name, the same to every engine.
pub const BUSYBOX: &str = "localhost/kata-busybox:1";

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
        make(&dir, &archive).unwrap_or_else(|e| panic!("the image {}: {e}", archive.display()));
    }
    archive
}

fn make(dir: &std::path::Path, archive: &std::path::Path) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    let work = tempfile::tempdir_in(dir)?;
    let (tree, out) = (work.path().join("rootfs"), work.path().join("image"));
    rootfs::busybox(&tree);
    fs::create_dir(&out)?;
    let tar = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "-cf"];
    Cmd::new("tar").args(tar).arg(out.join("layer.tar")).arg("-C").arg(&tree).arg(".").ok();
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": { "Env": ["PATH=/bin"], "Cmd": ["sh"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", sha256(&fs::read(out.join("layer.tar"))?))] },
    });
    fs::write(out.join("config.json"), config.to_string())?;
    let manifest = json!([{ "Config": "config.json", "RepoTags": [BUSYBOX], "Layers": ["layer.tar"] }]);
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
