//! A container image without a registry: a docker-archive that ctr, docker and podman load.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::run;

/// Packs `rootfs` as the one layer of image `name`, whose default command is `sh`, into `archive`.
///
/// # Errors
/// tar's, or a place that cannot be written.
pub fn docker_archive(rootfs: &Path, name: &str, archive: &Path) -> Result<()> {
    let work = archive.with_extension("d");
    crate::kernel::remove_tree(&work)?;
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let layer = work.join("layer.tar");
    let mut tar = run::cmd("tar", ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "-cf"]);
    run::check(tar.arg(&layer).arg("-C").arg(rootfs).arg("."))?;
    let diff_id = format!("sha256:{}", hex::encode(Sha256::digest(fs::read(&layer)?)));
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": { "Env": ["PATH=/bin"], "Cmd": ["sh"] },
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    });
    fs::write(work.join("config.json"), config.to_string())?;
    let manifest = json!([{ "Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"] }]);
    fs::write(work.join("manifest.json"), manifest.to_string())?;
    run::check(run::cmd("tar", ["-cf"]).arg(archive).arg("-C").arg(&work).arg("."))?;
    crate::kernel::remove_tree(&work)
}
