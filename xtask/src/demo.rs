//! A first container in a virtual machine, from nothing.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::build::Profile;
use crate::{deps, guest, layout, paths, run};

/// What the container runs: what a stranger would like to see first.
const SCRIPT: &str = r#"
echo
echo "    hello from a container in its own virtual machine"
echo "    kernel here:     $(uname -r)"
echo "    kernel outside:  $HOST_KERNEL"
echo "    processes here:  $(ls -d /proc/[0-9]* | wc -l)"
echo
"#;

/// Packages, kernel, build, bundle, `kata-runtime run`; and how long each took.
///
/// # Errors
/// Of the first step that fails, named.
pub fn run() -> Result<()> {
    ensure!(deps::am_root(), "a VM with its mounts and devices takes root: run `cargo xtask demo` as root");
    let start = Instant::now();
    run::step("Debian packages", || deps::ensure(&[deps::BUILD, deps::RUN, deps::DEMO].concat()))?;
    let kernel = run::step("the guest kernel", guest::at_hand)?;
    eprintln!("    it is {}", kernel.name);
    let stage = layout::stage(Profile::Dev, &kernel)?;
    let runtime = stage.join("bin/kata-runtime");
    let bundle = paths::target_dir().join("kata/demo");
    run::step("making a bundle from busybox", || make_bundle(&runtime, &bundle))?;
    run::step("kata-runtime run", || {
        let id = format!("demo-{}", std::process::id());
        run::check(run::cmd("timeout", ["120"]).arg(&runtime).args(["run", "--bundle"]).arg(&bundle).arg(id))
    })?;
    eprintln!();
    for (name, took) in run::steps() {
        eprintln!("    {:>9}  {name}", run::seconds(took));
    }
    eprintln!("    {:>9}  altogether, with {}", run::seconds(start.elapsed()), kernel.name);
    Ok(())
}

fn make_bundle(runtime: &Path, bundle: &Path) -> Result<()> {
    crate::kernel::remove_tree(bundle)?;
    busybox_rootfs(&bundle.join("rootfs"))?;
    run::check(run::cmd(&runtime.to_string_lossy(), ["spec", "--bundle"]).arg(bundle))?;
    let config = bundle.join("config.json");
    let text =
        fs::read_to_string(&config).with_context(|| format!("kata-runtime spec left no {}", config.display()))?;
    let mut spec: Value = serde_json::from_str(&text)?;
    let host = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let process = spec.get_mut("process").and_then(Value::as_object_mut).context("a spec without a process")?;
    process.insert("terminal".into(), json!(false));
    process.insert("args".into(), json!(["sh", "-c", SCRIPT]));
    process.insert("env".into(), json!(["PATH=/bin", format!("HOST_KERNEL={}", host.trim())]));
    fs::write(&config, serde_json::to_vec_pretty(&spec)?)?;
    Ok(())
}

/// A root file system of Debian's static busybox under all its names.
///
/// # Errors
/// No busybox, or a place that cannot be written.
pub fn busybox_rootfs(rootfs: &Path) -> Result<()> {
    let bin = rootfs.join("bin");
    for dir in ["bin", "dev", "etc", "proc", "root", "sys", "tmp"] {
        let dir = rootfs.join(dir);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new).into_iter().find(|p| p.exists());
    let busybox = busybox.context("no busybox here (Debian package busybox-static)")?;
    fs::copy(busybox, bin.join("busybox"))?;
    let names = run::output(&mut run::cmd(&busybox.to_string_lossy(), ["--list"]))?;
    for name in names.lines().filter(|name| *name != "busybox") {
        std::os::unix::fs::symlink("busybox", bin.join(name)).with_context(|| format!("cannot link {name}"))?;
    }
    fs::write(rootfs.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(rootfs.join("etc/group"), "root:x:0:\n")?;
    Ok(())
}
