//! What the agent holds in the guest: asked by a container that shares the guest's pid namespace, where the agent is
//! process 1.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::run;

/// KiB, by proportional set size. The agent's file counts: the initrd is memory.
///
/// # Errors
/// The bundle's, the run's, or an answer without the number.
pub fn pss_kib(stage: &Path, rootfs: &Path, work: &Path) -> Result<u64> {
    let runtime = stage.join("bin/kata-runtime");
    let bundle = work.join("agent-bundle");
    fs::create_dir_all(&bundle)?;
    run::check(run::cmd(&runtime.to_string_lossy(), ["spec", "--bundle"]).arg(&bundle))?;
    let config = bundle.join("config.json");
    let mut spec: Value = serde_json::from_str(&fs::read_to_string(&config)?)?;
    spec["root"]["path"] = json!(rootfs);
    spec["process"]["terminal"] = json!(false);
    spec["process"]["args"] = json!(["cat", "/proc/1/smaps_rollup"]);
    spec["process"]["env"] = json!(["PATH=/bin"]);
    spec["linux"]["maskedPaths"] = json!([]);
    // The kernel shows a process's memory to those who may trace it.
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set] = json!(["CAP_SYS_PTRACE"]);
    }
    let namespaces = spec["linux"]["namespaces"].as_array_mut().context("a spec without namespaces")?;
    namespaces.retain(|namespace| namespace["type"] != "pid");
    fs::write(&config, spec.to_string())?;
    let id = format!("bench-agent-{}", std::process::id());
    let mut command = run::cmd("timeout", ["120"]);
    let text = run::output(command.arg(&runtime).args(["run", "--bundle"]).arg(&bundle).arg(id))?;
    let pss = text.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.parse().ok());
    pss.with_context(|| format!("no Pss in what the guest said: {text:?}"))
}
