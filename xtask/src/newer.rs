//! Engines newer than this Debian's, for tests only: Debian's packages of a later suite, unpacked into the cache. Nothing is
//! installed, and apt's own lists are left alone.
//!
//! Kept under `<cache>/engines/<key>/`, as in the packages (`usr/bin`, `usr/sbin`, ...), with the packages' names in
//! `packages.txt`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::kernel::{lock, remove_tree};
use crate::{deps, paths, run};

/// What is unpacked.
const PACKAGES: [&str; 4] = ["containerd", "docker-cli", "docker-compose", "docker.io"];
/// What must run here, for a later suite's programs may want a later libc.
const PROGRAMS: [&str; 5] = [
    "usr/bin/containerd",
    "usr/bin/ctr",
    "usr/bin/docker",
    "usr/sbin/dockerd",
    "usr/libexec/docker/cli-plugins/docker-compose",
];
/// Where they are looked for, newest first.
const SUITES: [&str; 2] = ["sid", "trixie"];

/// The directory with those engines: from the cache, or downloaded now.
///
/// # Errors
/// No suite has packages whose programs run here; the reasons of each.
pub fn engines() -> Result<PathBuf> {
    let home = paths::cache_dir().join("engines");
    fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
    let dir = home.join(key());
    let _lock = lock(&home.join("lock"))?;
    if dir.join("packages.txt").exists() {
        return Ok(dir);
    }
    deps::ensure(&["dpkg"])?;
    let mut reasons = Vec::new();
    for suite in SUITES {
        let work = home.join(format!("work-{suite}"));
        remove_tree(&work)?;
        match get(suite, &work) {
            Ok(()) => {
                remove_tree(&dir)?;
                fs::rename(work.join("root"), &dir).with_context(|| format!("cannot keep {}", dir.display()))?;
                remove_tree(&work)?;
                return Ok(dir);
            }
            Err(err) => reasons.push(format!("{suite}: {err:#}")),
        }
        remove_tree(&work)?;
    }
    bail!("no newer engines: {}", reasons.join("; "))
}

/// What they are asked for by, so that another list is another directory.
fn key() -> String {
    let words = [&SUITES[..], &PACKAGES[..], &PROGRAMS[..], &[std::env::consts::ARCH]].concat().join("\n");
    hex::encode(&Sha256::digest(words)[..8])
}

/// Downloads, unpacks and tries the packages of a suite, into `work`/root.
fn get(suite: &str, work: &Path) -> Result<()> {
    let lists = work.join("lists");
    for dir in ["state/lists/partial", "cache/archives/partial", "debs", "root"] {
        let dir = work.join(dir);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    fs::write(&lists, format!("{} {suite} main\n", mirror()?))?;
    let apt = |words: &[&str]| {
        let mut apt = run::cmd("apt-get", ["-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none"]);
        for (option, path) in [
            ("Dir::State", work.join("state")),
            ("Dir::Cache", work.join("cache")),
            ("Dir::Etc::sourcelist", lists.clone()),
            ("Dir::Etc::sourceparts", PathBuf::from("-")),
        ] {
            apt.arg("-o").arg(format!("{option}={}", path.display()));
        }
        apt.args(words).current_dir(work.join("debs")).stdout(std::io::stderr());
        run::check(&mut apt)
    };
    apt(&["update"])?;
    apt(&[&["download"], &PACKAGES[..]].concat())?;
    let root = work.join("root");
    let mut names = Vec::new();
    for entry in fs::read_dir(work.join("debs"))? {
        let deb = entry?.path();
        run::check(run::cmd("dpkg-deb", ["-x"]).arg(&deb).arg(&root))?;
        names.push(deb.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default());
    }
    ensure!(names.len() == PACKAGES.len(), "apt left {} packages, not {}", names.len(), PACKAGES.len());
    for program in PROGRAMS {
        // A plugin of docker's wants a verb of its own.
        let arg = if program.contains("plugins") { "docker-cli-plugin-metadata" } else { "--version" };
        let path = root.join(program).display().to_string();
        run::output(&mut run::cmd(&path, [arg])).with_context(|| format!("{program} does not run here"))?;
    }
    names.sort();
    fs::write(root.join("packages.txt"), names.join("\n") + "\n")?;
    Ok(())
}

/// The start of a line of sources for the Debian archive that this system already uses.
fn mirror() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let codename = codename.context("/etc/os-release names no VERSION_CODENAME")?;
    let format = "$(CODENAME) $(COMPONENT) $(REPO_URI)";
    let archives = run::output(&mut run::cmd("apt-get", ["indextargets", "--format", format, "Created-By: Packages"]))?;
    let uri = archives.lines().find_map(|line| line.strip_prefix(&format!("{codename} main ")));
    let uri = uri.with_context(|| format!("apt has no source for {codename} main"))?;
    // Signed by Debian's keys, of which each release has those of its time and some of the next.
    Ok(format!("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {uri}"))
}
