//! Debian's source package of QEMU, with package lists of our own: the system's are not touched, and its releases need
//! not hold the version. The mirror is the one that the system uses.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::recipe::Version;
use crate::run;

/// The source package.
const PACKAGE: &str = "qemu";
/// QEMU's build system, of which 10.0 wants a newer one than bookworm has. It is a Python program for all machines.
const MESON: &str = "meson";
/// The release that Meson comes from.
const MESON_SUITE: &str = "trixie";
/// With the keys of all Debian's releases; a package that every Debian has.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// For so long package lists are taken as they are.
const LISTS_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// A version that can be fetched.
pub struct Source {
    /// Debian's version.
    pub version: String,
    apt: Apt,
}

/// The newest of this version that the mirror has. `dir` keeps the package lists.
///
/// # Errors
/// Not Debian, a mirror that cannot be reached, or one that has not got it.
pub fn find(version: Version, dir: &Path) -> Result<Source> {
    let apt = Apt::new(&dir.join(version.number()), &lists_of(version, &repositories()?)?)?;
    let text = run::output(apt.command("apt-cache").args(["showsrc", "--only-source", PACKAGE]))?;
    let newest = versions(&text, version.number())
        .into_iter()
        .reduce(|a, b| if is_newer(&b, &a) { b } else { a })
        .with_context(|| format!("the mirror has no source of {PACKAGE} {}", version.number()))?;
    Ok(Source { version: newest, apt })
}

impl Source {
    /// Fetches and unpacks it (apt checks the signatures), and returns the directory.
    ///
    /// # Errors
    /// apt's.
    pub fn unpack(&self, work: &Path) -> Result<PathBuf> {
        let package = format!("{PACKAGE}={}", self.version);
        let mut get = self.apt.command("apt-get");
        // A line for each of Debian's patches; what goes wrong is said on stderr.
        let log = fs::File::create(work.join("source.log"))?;
        run::check(get.args(["-q", "source", "--only-source", &package]).current_dir(work).stdout(log))?;
        only(work, |name, is_dir| is_dir && name.starts_with("qemu-"))
    }

    /// Fetches and unpacks Meson; returns the directory that is its root.
    ///
    /// # Errors
    /// apt's.
    pub fn meson(&self, work: &Path) -> Result<PathBuf> {
        let mut get = self.apt.command("apt-get");
        let package = format!("{MESON}/{MESON_SUITE}");
        run::check(get.args(["-q", "download", &package]).current_dir(work).stdout(std::io::stderr()))?;
        let deb = only(work, |name, _| name.starts_with("meson_") && name.ends_with(".deb"))?;
        let root = work.join("meson");
        run::check(run::cmd("dpkg", ["-x"]).arg(deb).arg(&root))?;
        Ok(root)
    }
}

/// The one entry of `dir` that is wanted.
fn only(dir: &Path, wanted: impl Fn(&str, bool) -> bool) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?.flatten();
    let mut found: Vec<PathBuf> = entries
        .map(|e| e.path())
        .filter(|path| path.file_name().is_some_and(|name| wanted(&name.to_string_lossy(), path.is_dir())))
        .collect();
    ensure!(found.len() == 1, "there are {} where one was expected in {}: {found:?}", found.len(), dir.display());
    Ok(found.remove(0))
}

/// apt with lists and a cache in a directory of ours.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    /// With lists that are not older than a week.
    fn new(dir: &Path, sources: &str) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial", "parts"] {
            let path = dir.join(part);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        let apt = Apt { dir: dir.to_owned() };
        let file = dir.join("sources.list");
        // Holds what was fetched, and since when.
        let done = dir.join("updated");
        let same = fs::read_to_string(&done).is_ok_and(|old| old == sources);
        let age = done.metadata().and_then(|m| m.modified()).ok().and_then(|at| at.elapsed().ok());
        if same && age.is_some_and(|age| age < LISTS_KEPT) {
            return Ok(apt);
        }
        fs::write(&file, sources).with_context(|| format!("cannot write {}", file.display()))?;
        run::step("fetching the package lists with QEMU's source", || {
            run::check(apt.command("apt-get").args(["-q", "update"]).stdout(std::io::stderr()))
        })?;
        fs::write(&done, sources)?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let option = |name: &str, path: &str| format!("{name}={}", self.dir.join(path).display());
        let mut command = run::cmd(program, ["-o", &option("Dir::Etc::SourceList", "sources.list")]);
        command.args(["-o", &option("Dir::Etc::SourceParts", "parts")]);
        command.args(["-o", &option("Dir::State::Lists", "lists"), "-o", &option("Dir::Cache", "cache")]);
        // An `update` that could fetch only some of the lists is a failure.
        command.args(["-o", "APT::Update::Error-Mode=any"]);
        // apt's own user may not be able to reach our directory.
        command.args(["-o", "APT::Sandbox::User=root"]).env("LC_ALL", "C");
        command
    }
}

/// Where the system gets Debian and Debian's security updates from.
#[derive(Debug, PartialEq, Eq)]
struct Repositories {
    main: String,
    security: Option<String>,
}

fn repositories() -> Result<Repositories> {
    if !run::succeeds("apt-get", &["--version"]) {
        bail!("this is not a Debian system (no apt-get), and QEMU is built from Debian's source package");
    }
    let format = "$(LABEL) $(REPO_URI)";
    parse(&run::output(&mut run::cmd("apt-get", ["indextargets", "--format", format, "Created-By: Packages"]))?)
        .context("apt knows no repository of Debian's; `apt-get update` may help")
}

fn parse(targets: &str) -> Option<Repositories> {
    let of = |label: &str| targets.lines().find_map(|l| l.strip_prefix(label)?.strip_prefix(' ')).map(str::to_owned);
    Some(Repositories { main: of("Debian")?, security: of("Debian-Security") })
}

/// The `sources.list` for this version.
fn lists_of(version: Version, from: &Repositories) -> Result<String> {
    ensure!(Path::new(KEYS).exists(), "{KEYS} is missing; install debian-archive-keyring");
    let suite = version.suite();
    let mut text = format!("deb-src [signed-by={KEYS}] {} {suite} main\n", from.main);
    if let Some(security) = &from.security {
        text += &format!("deb-src [signed-by={KEYS}] {security} {suite}-security main\n");
    }
    text += &format!("deb [signed-by={KEYS}] {} {MESON_SUITE} main\n", from.main);
    Ok(text)
}

/// The versions in `apt-cache showsrc`'s answer whose upstream part begins so.
fn versions(showsrc: &str, upstream: &str) -> Vec<String> {
    let all = showsrc.lines().filter_map(|line| line.strip_prefix("Version: ")).map(str::trim);
    all.filter(|v| {
        let number = v.split_once(':').map_or(*v, |(_, rest)| rest);
        // "7.2+dfsg-7", "10.0.2+ds-2": a point release or none.
        number.strip_prefix(upstream).is_some_and(|rest| rest.starts_with(['+', '.']))
    })
    .map(str::to_owned)
    .collect()
}

fn is_newer(a: &str, b: &str) -> bool {
    run::succeeds("dpkg", &["--compare-versions", a, "gt", b])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_one_release_are_found() {
        let text = "Package: qemu\nVersion: 1:7.2+dfsg-7+deb12u18\n\nPackage: qemu\nVersion: 1:10.0.13+ds-0+deb13u1\n\
                    Version: 1:7.20+dfsg-1\n";
        assert_eq!(versions(text, "7.2"), ["1:7.2+dfsg-7+deb12u18"]);
        assert_eq!(versions(text, "10.0"), ["1:10.0.13+ds-0+deb13u1"]);
    }

    #[test]
    fn the_systems_mirror_is_used_for_the_versions_own_release() {
        let found = parse("Other http://o/\nDebian http://d/debian/\nDebian-Security http://s/\nDebian http://e/\n");
        let found = found.unwrap();
        assert_eq!((found.main.as_str(), found.security.as_deref()), ("http://d/debian/", Some("http://s/")));
        assert!(parse("Ubuntu http://u/\n").is_none());
        if Path::new(KEYS).exists() {
            let list = lists_of(Version::V7_2, &found).unwrap();
            assert!(list.contains("http://d/debian/ bookworm main\n"), "{list}");
            assert!(list.contains("http://s/ bookworm-security main\n"), "{list}");
        }
    }
}
