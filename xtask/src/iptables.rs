//! iptables for guests: Debian's, with its loader and libraries, so that the guest needs none of its own. It is lent to a guest
//! that is asked for its packet filter (`GUEST_IPTABLES_DIR` of kata-types says what lies where). Nothing is installed; the
//! packages are only downloaded.
//!
//! Kept under `<cache>/iptables/<key>/` as it is lent, with `packages.txt`, which says which packages it came from. The key
//! is made of those and of what is taken from them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::kernel::{lock, remove_tree};
use crate::layout::{Content, Piece};
use crate::{deps, paths, run};

/// Where it is below a prefix.
const PLACE: &str = "share/kata-containers/iptables";
/// What it is taken from.
const PACKAGES: [&str; 5] = ["iptables", "libc6", "libmnl0", "libnftnl11", "libxtables12"];
/// The program: that of nf_tables, which is what containers' iptables use too.
const PROGRAM: &str = "xtables-nft-multi";
/// Its libraries.
const LIBRARIES: [&str; 5] = ["libc.so.6", "libm.so.6", "libmnl.so.0", "libnftnl.so.11", "libxtables.so.12"];
/// The beginnings of the names of its extensions; the others are those of arptables and ebtables.
const EXTENSIONS: [&str; 3] = ["libip6t_", "libipt_", "libxt_"];
/// The extension that wants more libraries, for a match that our kernel has not.
const NOT: &str = "libxt_connlabel.so";
/// Named last of what is written, so that a directory with it is whole.
const DONE: &str = "packages.txt";

/// The pieces of an installation: from the cache, or downloaded now. Where that is not possible (no network, no Debian), and none is
/// kept, there are none, which is said: a guest that is asked for its packet filter then says that it has no iptables.
///
/// # Errors
/// A cache that cannot be used.
pub fn pieces() -> Result<Vec<Piece>> {
    let Some(dir) = get()? else { return Ok(Vec::new()) };
    let mut pieces = Vec::new();
    for below in ["", "lib", "xtables"] {
        let from = dir.join(below);
        for entry in fs::read_dir(&from).with_context(|| format!("cannot list {}", from.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                let path = Path::new(PLACE).join(below).join(entry.file_name());
                let mode = if ["ld.so", PROGRAM].iter().any(|name| path.ends_with(name)) { 0o755 } else { 0o644 };
                pieces.push(Piece {
                    path: path.display().to_string().into(),
                    content: Content::File(entry.path(), mode),
                });
            }
        }
    }
    Ok(pieces)
}

fn get() -> Result<Option<PathBuf>> {
    let home = paths::cache_dir().join("iptables");
    fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
    let _lock = lock(&home.join("lock"))?;
    // Old package lists name files that the mirror has no more.
    let found = newest(&home).or_else(|_| deps::update_lists().and_then(|()| newest(&home)));
    remove_tree(&home.join("work"))?;
    Ok(found.map_or_else(
        |err| {
            let kept = paths::newest(&home, DONE, |_| true);
            let instead =
                kept.as_ref().map_or("guests get none".to_owned(), |dir| format!("{} is used", dir.display()));
            eprintln!("    no iptables for guests: {err:#}; {instead}");
            kept
        },
        Some,
    ))
}

/// The one that apt offers: from the cache, or made now.
fn newest(home: &Path) -> Result<PathBuf> {
    let work = home.join("work");
    remove_tree(&work)?;
    fs::create_dir_all(&work)?;
    let packages = offered(&work)?;
    let dir = home.join(key(&packages));
    if !dir.join(DONE).exists() {
        run::step("getting iptables for guests", || make(&work, &packages))?;
        remove_tree(&dir)?;
        fs::rename(work.join("done"), &dir).with_context(|| format!("cannot keep {}", dir.display()))?;
    }
    Ok(dir)
}

/// What apt would download: the packages' names, versions and digests, a line each.
fn offered(work: &Path) -> Result<String> {
    let mut apt = run::cmd("apt-get", ["-q", "download", "--print-uris"]);
    // Where one of them lies already it would not be named.
    let text = run::output(apt.args(PACKAGES).current_dir(work)).context("apt has no iptables to download")?;
    let packages = parse(&text);
    ensure!(packages.lines().count() == PACKAGES.len(), "apt offers not all of the packages {}", PACKAGES.join(", "));
    Ok(packages)
}

/// File and digest of each line `'URI' FILE SIZE DIGEST`, in order.
fn parse(uris: &str) -> String {
    let words = uris.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut lines: Vec<String> = words
        .filter_map(|words| match words[..] {
            [_uri, file, _size, digest] => Some(format!("{file} {digest}\n")),
            _ => None,
        })
        .collect();
    lines.sort();
    lines.concat()
}

fn key(packages: &str) -> String {
    let rules = [&LIBRARIES[..], &EXTENSIONS[..], &[PROGRAM, NOT, loader()]].concat().join("\n");
    hex::encode(&Sha256::digest(format!("{packages}{rules}"))[..8])
}

/// The dynamic loader's name on this architecture.
fn loader() -> &'static str {
    if cfg!(target_arch = "aarch64") { "ld-linux-aarch64.so.1" } else { "ld-linux-x86-64.so.2" }
}

/// Downloads the packages and puts together what is lent, in `work`/done.
fn make(work: &Path, packages: &str) -> Result<()> {
    let root = work.join("root");
    // The download directory is ours alone, so apt's own user could not write there.
    let mut apt = run::cmd("apt-get", ["-q", "-o", "APT::Sandbox::User=root", "download"]);
    run::check(apt.args(PACKAGES).current_dir(work).stdout(std::io::stderr()))?;
    for entry in fs::read_dir(work)? {
        let path = entry?.path();
        if path.extension().is_some_and(|x| x == "deb") {
            run::check(run::cmd("dpkg-deb", ["-x"]).arg(&path).arg(&root))?;
        }
    }
    let done = work.join("done");
    let mut files = Vec::new();
    walk(&root, &mut files)?;
    let put = |name: &str, to: &Path| -> Result<()> {
        // A link in place of a file leads to somewhere on the system, or to a file beside it that has the longer name.
        let found = files.iter().find(|path| path.ends_with(name) && leads_to_a_file(path, &root));
        let found = found.with_context(|| format!("none of {} has {name}", PACKAGES.join(", ")))?;
        fs::copy(found, to).map(drop).with_context(|| format!("cannot copy {name} to {}", to.display()))
    };
    for dir in ["lib", "xtables"] {
        fs::create_dir_all(done.join(dir))?;
    }
    put(loader(), &done.join("ld.so"))?;
    put(PROGRAM, &done.join(PROGRAM))?;
    for library in LIBRARIES {
        put(library, &done.join("lib").join(library))?;
    }
    let names = files.iter().filter_map(|path| path.file_name()?.to_str());
    let wanted = |name: &&str| name.ends_with(".so") && *name != NOT && EXTENSIONS.iter().any(|e| name.starts_with(e));
    for name in names.filter(wanted) {
        put(name, &done.join("xtables").join(name))?;
    }
    check(&done)?;
    fs::write(done.join(DONE), packages)?;
    Ok(())
}

/// Every file and link below.
fn walk(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { walk(&entry.path(), files)? } else { files.push(entry.path()) }
    }
    Ok(())
}

fn leads_to_a_file(path: &Path, root: &Path) -> bool {
    fs::canonicalize(path).is_ok_and(|real| real.starts_with(root) && real.is_file())
}

/// That the program and its extensions find all of their libraries in what is lent, and that it runs.
fn check(done: &Path) -> Result<()> {
    let loader = done.join("ld.so").display().to_string();
    let with = |args: &[&str]| {
        let mut command = run::cmd(&loader, ["--inhibit-cache", "--library-path"]);
        run::output(command.arg(done.join("lib")).args(args))
    };
    let program = done.join(PROGRAM).display().to_string();
    let extensions = fs::read_dir(done.join("xtables"))?.flatten().map(|e| e.path().display().to_string());
    for file in extensions.chain([program.clone()]) {
        let list = with(&["--list", &file])?;
        let elsewhere =
            list.lines().filter_map(|line| line.split_once(" => ")).find(|(_, to)| !Path::new(to).starts_with(done));
        if let Some((library, to)) = elsewhere {
            // The loader is named by where it would be on a system.
            ensure!(library.trim().ends_with(self::loader()), "{file} wants {library} of {to}, which is not lent");
        }
    }
    let version = with(&["--argv0", "iptables-save", &program, "--version"])?;
    ensure!(version.contains("nf_tables"), "iptables for guests says {version:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_another_directory() {
        let uris = |version: &str| {
            parse(&format!(
                "Reading lists...\n'http://d/b_2.deb' b_2_amd64.deb 10 SHA256:bb\n'http://d/a.deb' a_{version}.deb 9 SHA256:aa\n"
            ))
        };
        assert_eq!(uris("1"), "a_1.deb SHA256:aa\nb_2_amd64.deb SHA256:bb\n");
        assert_ne!(key(&uris("1")), key(&uris("2")));
    }

    #[test]
    fn a_link_that_leads_out_of_the_packages_is_none_of_theirs() {
        let dir = std::env::temp_dir().join(format!("xtask-iptables-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let root = fs::canonicalize(&dir).unwrap();
        fs::write(root.join("lib.so.1.2"), "").unwrap();
        std::os::unix::fs::symlink("lib.so.1.2", root.join("lib.so.1")).unwrap();
        std::os::unix::fs::symlink("/bin/sh", root.join("out")).unwrap();
        let good = |name: &str| leads_to_a_file(&root.join(name), &root);
        assert!(good("lib.so.1.2") && good("lib.so.1") && !good("out") && !good("absent"));
        fs::remove_dir_all(&dir).unwrap();
    }
}
