//! The tuned guest kernel: Debian's kernel source, our fragments, and nothing of the machine that builds it.
//!
//! It is kept under `<cache>/kernel/<key>/`, where the key is the sha256 of the fragments, the source's version and
//! [`RECIPE`]: `vmlinux`, the `config` it was built with, and `inputs`, which says what the key was made of.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::{deps, kconfig, paths, run};

/// The Debian package with the source.
const PACKAGE: &str = "linux-source-6.12";
/// Raised when the steps below change in a way that changes the kernel.
const RECIPE: &str = "1";

/// The kernel for `arch` (as `uname -m` names it): from the cache, or built now, which takes minutes.
///
/// # Errors
/// No fragment for `arch`, packages that cannot be had, an option that Kconfig drops (named), or the build's failure.
pub fn build(arch: &str) -> Result<PathBuf> {
    let fragments = Fragments::read(arch)?;
    // Without the packages, an earlier build of the same fragments will do.
    if source_version().is_none()
        && let Some(found) = newest_of(&fragments)
    {
        return Ok(found);
    }
    deps::ensure(&[PACKAGE])?;
    let version = source_version().with_context(|| format!("{PACKAGE} is installed and yet has no version"))?;
    let home = home();
    let kept = home.join(fragments.key(&version)).join("vmlinux");
    if kept.exists() {
        return Ok(kept);
    }
    deps::ensure(deps::KERNEL)?;
    fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
    let _lock = lock(&home.join("lock"))?;
    if kept.exists() {
        return Ok(kept); // somebody else built it while we waited
    }
    let work = home.join("work");
    remove_tree(&work)?;
    fs::create_dir_all(&work)?;
    make(&fragments, &version, &work)?;
    let done = home.join(fragments.key(&version));
    // A directory there without a vmlinux was not made by us whole.
    remove_tree(&done)?;
    fs::rename(work.join("done"), &done).with_context(|| format!("cannot put the kernel to {}", done.display()))?;
    remove_tree(&work)?;
    Ok(kept)
}

/// The kernel for `arch`, where it has been built from these fragments.
///
/// # Errors
/// No fragment for `arch`.
pub fn cached(arch: &str) -> Result<Option<PathBuf>> {
    let fragments = Fragments::read(arch)?;
    let exact = source_version().map(|version| home().join(fragments.key(&version)).join("vmlinux"));
    Ok(exact.filter(|path| path.exists()).or_else(|| newest_of(&fragments)))
}

/// Whether there are fragments for `arch`.
pub fn has_recipe(arch: &str) -> bool {
    fragment_dir().join(format!("{arch}.config")).exists()
}

fn home() -> PathBuf {
    paths::cache_dir().join("kernel")
}

fn fragment_dir() -> PathBuf {
    paths::repo_root().join("guest/kernel")
}

struct Fragments {
    arch: String,
    text: String,
    options: kconfig::Options,
}

impl Fragments {
    fn read(arch: &str) -> Result<Self> {
        let mut text = String::new();
        for name in ["common", arch] {
            let path = fragment_dir().join(format!("{name}.config"));
            let part = fs::read_to_string(&path)
                .with_context(|| format!("there is no kernel recipe for {arch}: cannot read {}", path.display()))?;
            // By itself first, so that a mistake is shown with its own file and line.
            kconfig::parse(&path.to_string_lossy(), &part)?;
            text.push_str(&part);
        }
        let options = kconfig::parse(&format!("common.config and {arch}.config together"), &text)?;
        Ok(Fragments { arch: arch.to_owned(), text, options })
    }

    /// Of the options rather than of the text, so that a comment builds no new kernel.
    fn digest(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(format!("{}\n{RECIPE}\n", self.arch));
        for (option, value) in &self.options {
            hash.update(format!("{option}={value}\n"));
        }
        hex::encode(hash.finalize())
    }

    fn key(&self, version: &str) -> String {
        hex::encode(Sha256::digest(format!("{}\n{PACKAGE} {version}\n", self.digest())))
    }
}

/// The version of the installed source package.
fn source_version() -> Option<String> {
    let mut query = run::cmd("dpkg-query", ["-W", "-f", "${db:Status-Abbrev} ${Version}", PACKAGE]);
    let text = query.stderr(Stdio::null()).output().ok()?.stdout;
    let text = String::from_utf8(text).ok()?;
    text.strip_prefix("ii").map(|v| v.trim().to_owned())
}

/// The newest kept kernel made from these fragments, whatever the version of the source.
fn newest_of(fragments: &Fragments) -> Option<PathBuf> {
    let digest = fragments.digest();
    paths::newest(&home(), "vmlinux", |dir| paths::made_of(dir, &digest)).map(|dir| dir.join("vmlinux"))
}

fn make(fragments: &Fragments, version: &str, work: &Path) -> Result<()> {
    let tarball = PathBuf::from(format!("/usr/src/{PACKAGE}.tar.xz"));
    run::step("unpacking the kernel's source", || {
        run::check(run::cmd("tar", ["-xf"]).arg(&tarball).arg("-C").arg(work))
    })?;
    let source = work.join(PACKAGE);
    ensure!(source.is_dir(), "{} has no directory {PACKAGE}", tarball.display());
    let out = work.join("out");
    let done = work.join("done");
    fs::create_dir_all(&out)?;
    fs::create_dir_all(&done)?;

    // Everything off but this, which is also how the kernel's own `tinyconfig` is made.
    let wanted = out.join("kata.config");
    fs::write(&wanted, &fragments.text)?;
    let make = |targets: &[&str]| -> Result<std::process::Command> {
        let mut command = run::cmd("nice", ["make", "-C"]);
        command.arg(&source).arg(format!("O={}", out.display())).arg(format!("ARCH={}", kernel_arch(&fragments.arch)?));
        command.arg(format!("-j{}", std::thread::available_parallelism().map_or(1, usize::from)));
        command.args(targets).env("KCONFIG_ALLCONFIG", &wanted).stdin(Stdio::null());
        // Nothing of this machine or of this day goes into the kernel.
        command.env("LC_ALL", "C").env("KBUILD_BUILD_USER", "kata").env("KBUILD_BUILD_HOST", "kata");
        command.env("KBUILD_BUILD_VERSION", "1").env("KBUILD_BUILD_TIMESTAMP", timestamp(&tarball)?);
        for name in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "CARGO_MAKEFLAGS", "ARCH", "CROSS_COMPILE", "KCFLAGS"] {
            command.env_remove(name);
        }
        Ok(command)
    };
    run::output(&mut make(&["-s", "allnoconfig"])?)?;
    let config = out.join(".config");
    let text = fs::read_to_string(&config).with_context(|| format!("cannot read {}", config.display()))?;
    let lost = kconfig::lost(&fragments.options, &kconfig::parse(".config", &text)?);
    if !lost.is_empty() {
        bail!("Kconfig did not take over what guest/kernel/*.config say:\n    {}", lost.join("\n    "));
    }

    let log = work.with_file_name("build.log");
    run::step(&format!("building the guest kernel {version} (log: {})", log.display()), || {
        counted(&mut make(&["vmlinux"])?, &log)
    })?;
    // The symbol table is a sixth of the file, and QEMU reads all of it.
    run::check(run::cmd("strip", ["--strip-all", "-o"]).arg(done.join("vmlinux")).arg(out.join("vmlinux")))?;
    fs::copy(&config, done.join("config"))?;
    fs::write(done.join("inputs"), format!("{}\n{PACKAGE} {version}\nrecipe {RECIPE}\n", fragments.digest()))?;
    let size = done.join("vmlinux").metadata()?.len();
    eprintln!("    {:.1} MB", size as f64 / 1e6);
    Ok(())
}

/// What the kernel calls an architecture.
fn kernel_arch(arch: &str) -> Result<&'static str> {
    match arch {
        "x86_64" => Ok("x86_64"),
        "aarch64" => Ok("arm64"),
        _ => bail!("the kernel's name for the architecture {arch} is not known here (xtask/src/kernel.rs)"),
    }
}

/// The day on which Debian packed the source, as `date` writes it.
fn timestamp(tarball: &Path) -> Result<String> {
    let packed = tarball.metadata().with_context(|| format!("cannot read {}", tarball.display()))?.modified()?;
    let seconds = packed.duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    Ok(run::output(run::cmd("date", ["-u", "-d", &format!("@{seconds}")]).env("LC_ALL", "C"))?.trim().to_owned())
}

/// Runs make with its output in `log`, telling every half minute how far it is; a failure shows the log's end.
fn counted(command: &mut std::process::Command, log: &Path) -> Result<()> {
    use std::io::Write;
    let shown = run::show(command);
    let mut file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    command.stdout(Stdio::piped()).stderr(file.try_clone()?);
    let mut child = command.spawn().with_context(|| format!("cannot start `{shown}`"))?;
    let (start, mut told, mut objects) = (Instant::now(), Instant::now(), 0u32);
    let stdout = child.stdout.take().context("a piped stdout")?;
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line?;
        file.write_all(&line)?;
        file.write_all(b"\n")?;
        let line = line.trim_ascii_start();
        objects += u32::from(line.starts_with(b"CC ") || line.starts_with(b"AS "));
        if told.elapsed() > Duration::from_secs(30) {
            eprintln!("    {objects} files compiled of about 1,900, {}", run::seconds(start.elapsed()));
            told = Instant::now();
        }
    }
    let status = child.wait()?;
    if !status.success() {
        let text = fs::read(log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        bail!("`{shown}` failed: {status}\n{}", lines[lines.len().saturating_sub(30)..].join("\n"));
    }
    Ok(())
}

/// Holds until the file is dropped; says so if it has to wait.
///
/// # Errors
/// A lock file that cannot be made.
pub fn lock(path: &Path) -> Result<File> {
    let file = File::options()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot open the lock {}", path.display()))?;
    if file.try_lock().is_err() {
        eprintln!("    another build holds {}; waiting for it", path.display());
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

/// Removes a directory with all in it, if it is there.
///
/// # Errors
/// Names the directory.
pub fn remove_tree(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
            Err(err).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_depends_on_options_and_source_but_not_on_comments() {
        let of = |text: &str| Fragments {
            arch: "x86_64".into(),
            text: text.into(),
            options: kconfig::parse("f", text).unwrap(),
        };
        assert_eq!(of("CONFIG_A=y\n").key("1"), of("# why\nCONFIG_A=y\n").key("1"));
        assert_ne!(of("CONFIG_A=y\n").key("1"), of("CONFIG_A=m\n").key("1"));
        assert_ne!(of("CONFIG_A=y\n").key("1"), of("CONFIG_A=y\n").key("2"));
        assert_eq!(of("CONFIG_A=y\n").digest(), of("CONFIG_A=y\n").digest());
    }

    #[test]
    fn an_architecture_without_fragments_is_an_error_that_names_the_file() {
        let err = format!("{:#}", cached("pdp11").unwrap_err());
        assert!(err.contains("pdp11.config"), "{err}");
        assert!(has_recipe("x86_64") && !has_recipe("pdp11"));
    }
}
