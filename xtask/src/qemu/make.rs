//! From the source to a directory as below a prefix.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::recipe::Recipe;
use super::source::Source;
use super::{BINARY, DATA};
use crate::run;

/// The firmware of one architecture's machine: on x86_64 the quick one that our driver boots with, and the option ROMs
/// that start a kernel (PVH, bzImage) and help KVM. On aarch64 QEMU starts the kernel itself.
pub fn firmware(arch: &str) -> &'static [&'static str] {
    match arch {
        "x86_64" => &["qboot.rom", "pvh.bin", "linuxboot_dma.bin", "kvmvapic.bin"],
        _ => &[],
    }
}

/// Where a build happens, with an environment in which nothing of the user's takes part.
struct Place<'a> {
    work: &'a Path,
    meson: PathBuf,
}

/// Builds it below `work` and returns the directory with the result.
///
/// # Errors
/// The step that failed, with the end of its log.
pub fn make(recipe: &Recipe, source: &Source, work: &Path) -> Result<PathBuf> {
    let (tree, meson) = run::step(&format!("fetching QEMU's source {}", source.version), || {
        Ok((source.unpack(work)?, source.meson(work)?))
    })?;
    let place = Place { work, meson };
    let (out, done) = (work.join("out"), work.join("done"));
    for dir in [&out, &done.join("libexec/kata-containers"), &done.join(DATA)] {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let target = format!("{}-softmmu", recipe.arch);
    let list = tree.join(format!("configs/devices/{target}/kata.mak"));
    fs::write(&list, recipe.devices.join("\n") + "\n").with_context(|| format!("cannot write {}", list.display()))?;

    let binary = format!("qemu-system-{}", recipe.arch);
    run::step("configuring QEMU", || {
        let mut configure = place.command(&tree.join("configure"), &out);
        configure.args(configuration(recipe, &target));
        // Where it was built is nobody's business, and must not make it another file.
        configure.arg(format!("--extra-cflags=-ffile-prefix-map={}=.", tree.display()));
        place.logged(configure, "configure")
    })?;
    run::step("building QEMU, which takes a few minutes", || {
        let mut ninja = place.command(Path::new("nice"), &out);
        ninja.args(["ninja", &binary]);
        place.logged(ninja, "ninja")
    })?;
    let kept = done.join(format!("{BINARY}{}", recipe.arch));
    run::check(run::cmd("strip", ["--strip-all", "-o"]).arg(&kept).arg(out.join(&binary)))?;
    if !firmware(&recipe.arch).is_empty() {
        run::step("building its firmware", || build_firmware(&place, &tree, recipe, &done.join(DATA)))?;
    }
    // For the package: who holds the rights to what is in it.
    fs::copy(tree.join("debian/copyright"), done.join("copyright"))?;
    // And of when its files are, so that the same QEMU makes the same package.
    let mut date = run::cmd("dpkg-parsechangelog", ["-S", "Timestamp", "-l"]);
    fs::write(done.join("timestamp"), run::output(date.arg(tree.join("debian/changelog")))?)?;
    fs::copy(out.join(format!("{target}-config-devices.mak")), done.join("devices.mak"))?;
    Ok(done)
}

/// What configure is told. The binary finds its firmware from where it is itself, so any prefix will do.
fn configuration(recipe: &Recipe, target: &str) -> Vec<String> {
    let mut args = vec![
        format!("--target-list={target}"),
        format!("--with-devices-{}=kata", recipe.arch),
        "--prefix=/usr".to_owned(),
        "--bindir=/usr/libexec/kata-containers".to_owned(),
        "--datadir=/usr/share/kata-containers".to_owned(),
        "--with-pkgversion=Kata Containers".to_owned(),
    ];
    // KVM is of the machine's own architecture only, and configure takes no option that it cannot follow.
    let foreign = recipe.arch != std::env::consts::ARCH;
    args.extend(recipe.options.iter().filter(|option| !(foreign && *option == "--enable-kvm")).cloned());
    args
}

fn build_firmware(place: &Place, tree: &Path, recipe: &Recipe, to: &Path) -> Result<()> {
    let qboot = place.work.join("qboot");
    let mut setup = place.command(&place.meson.join("usr/bin/meson"), place.work);
    setup.arg("setup").arg(tree.join("roms/qboot")).arg(&qboot);
    place.logged(setup, "qboot-setup")?;
    place.logged(place.command(Path::new("ninja"), &qboot), "qboot")?;

    let roms = place.work.join("optionrom");
    fs::create_dir_all(&roms)?;
    let source = tree.display();
    let config = format!("TOPSRC_DIR={source}\nTARGET_DIR=\nCC=gcc\nOBJCOPY=objcopy\nPYTHON=python3\n");
    fs::write(roms.join("config.mak"), config)?;
    let mut make = place.command(Path::new("make"), &roms);
    make.arg("-f").arg(tree.join("pc-bios/optionrom/Makefile")).arg("all");
    place.logged(make, "optionrom")?;

    for name in firmware(&recipe.arch) {
        let from = if *name == "qboot.rom" { qboot.join("bios.bin") } else { roms.join(name) };
        fs::copy(&from, to.join(name)).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    Ok(())
}

impl Place<'_> {
    /// A program that runs in `dir`, with Debian's tools and our Meson.
    fn command(&self, program: &Path, dir: &Path) -> Command {
        let mut path = OsString::from(self.meson.join("usr/bin"));
        path.push(":/usr/bin:/bin");
        let mut command = Command::new(program);
        command.current_dir(dir).stdin(Stdio::null()).env("PATH", path).env("LC_ALL", "C");
        command.env("PYTHONPATH", self.meson.join("usr/lib/python3/dist-packages"));
        for name in ["CC", "CFLAGS", "CPPFLAGS", "LDFLAGS", "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "CARGO_MAKEFLAGS"] {
            command.env_remove(name);
        }
        command
    }

    /// Runs it with its output in a log, whose end a failure shows.
    fn logged(&self, mut command: Command, name: &str) -> Result<()> {
        let shown = run::show(&command);
        let log = self.work.join(format!("{name}.log"));
        let file = fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let status = command.stdout(file.try_clone()?).stderr(file).status();
        let status = status.with_context(|| format!("cannot start `{shown}`"))?;
        if !status.success() {
            let text = String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
            let lines: Vec<&str> = text.lines().collect();
            let end = lines[lines.len().saturating_sub(30)..].join("\n");
            bail!("`{shown}` failed: {status}; the end of {}:\n{end}", log.display());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configure_is_told_the_recipe() {
        let recipe = Recipe::read(std::env::consts::ARCH).unwrap();
        let args = configuration(&recipe, "x-softmmu");
        for word in
            ["--target-list=x-softmmu", "--without-default-devices", "--enable-seccomp", "--static", "--enable-kvm"]
        {
            assert!(args.iter().any(|arg| arg == word), "{word}: {args:?}");
        }
        let foreign = Recipe { arch: "other".into(), ..recipe };
        assert!(!configuration(&foreign, "other-softmmu").iter().any(|arg| arg == "--enable-kvm"));
    }
}
