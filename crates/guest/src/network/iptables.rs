//! The guest's packet filter, by the programs of iptables (iptables-save(8), iptables-restore(8)): the guest's own where its
//! image has them, as upstream's; else those that the host lends with their loader and libraries, for our initrd has neither.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use kata_types::GUEST_IPTABLES_DIR;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::{MemfdFlags, memfd_create};

use crate::failure::Failure;
use crate::reaper::{Reaper, ended};

/// Where the image's own are looked for, in upstream's order.
const DIRECTORIES: &[&str] = &["/usr/sbin", "/sbin"];
/// One that works is done in a fraction of a second.
const LIMIT: Duration = Duration::from_secs(20);
/// What is lent: all of them in one, which goes by the name that it is called by.
const MULTI: &str = "xtables-nft-multi";
/// How many seconds iptables-restore waits for another that is at work.
const WAIT: &str = "10";
/// What fits into an answer: ttrpc's messages have 4 MiB.
const OUTPUT: u64 = 4_000_000;

/// Reads all rules, as iptables-save writes them.
pub async fn save(reaper: &Reaper, v6: bool) -> Result<Vec<u8>, Failure> {
    let program = Program::find(if v6 { "ip6tables-save" } else { "iptables-save" })?;
    run(reaper, &program, &[], &[]).await
}

/// Replaces the rules of the tables that `rules` names, and returns what the program said.
pub async fn restore(reaper: &Reaper, v6: bool, rules: &[u8]) -> Result<Vec<u8>, Failure> {
    let program = Program::find(if v6 { "ip6tables-restore" } else { "iptables-restore" })?;
    run(reaper, &program, &["--wait", WAIT], rules).await
}

/// One of iptables' programs.
struct Program {
    name: &'static str,
    /// Its own path, or the directory of what the host lends.
    path: PathBuf,
    lent: bool,
}

impl Program {
    fn find(name: &'static str) -> Result<Program, Failure> {
        Program::find_in(name, DIRECTORIES, Path::new(GUEST_IPTABLES_DIR))
    }

    fn find_in(name: &'static str, own: &[&str], lent: &Path) -> Result<Program, Failure> {
        if let Some(path) = own.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.exists()) {
            return Ok(Program { name, path, lent: false });
        }
        if lent.join(MULTI).exists() {
            return Ok(Program { name, path: lent.to_owned(), lent: true });
        }
        let places = own.join(" or ");
        Err(Failure::Unsupported(format!(
            "iptables in the guest: its image has no {name} in {places}, and the host lends none (its log says why)"
        )))
    }

    fn command(&self) -> Command {
        let mut command = if self.lent {
            let file = |name: &str| self.path.join(name);
            let mut command = Command::new(file("ld.so"));
            // One program with many names. Of libraries it shall see no others than those that it came with.
            command.arg("--inhibit-cache").arg("--library-path").arg(file("lib"));
            command.args(["--argv0", self.name]).arg(file(MULTI)).env_clear().env("XTABLES_LIBDIR", file("xtables"));
            command
        } else {
            let mut command = Command::new(&self.path);
            command.env_clear();
            command
        };
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir("/");
        command
    }
}

/// A file in memory: unlike a pipe it is never full, so nobody waits for anybody.
fn memory(name: &str) -> std::io::Result<File> {
    Ok(File::from(memfd_create(name, MemfdFlags::CLOEXEC)?))
}

async fn run(reaper: &Reaper, program: &Program, args: &[&str], input: &[u8]) -> Result<Vec<u8>, Failure> {
    let failed = |e: std::io::Error| Failure::io(format_args!("cannot run {}", program.name), &e);
    let (mut stdin, mut stdout, mut stderr) =
        (memory("input").map_err(failed)?, memory("output").map_err(failed)?, memory("errors").map_err(failed)?);
    stdin.write_all(input).and_then(|()| stdin.rewind()).map_err(failed)?;
    let mut command = program.command();
    command.args(args).stdin(Stdio::from(stdin));
    command.stdout(Stdio::from(stdout.try_clone().map_err(failed)?));
    command.stderr(Stdio::from(stderr.try_clone().map_err(failed)?));
    let hold = reaper.hold();
    // The reaper waits for it, and the handle does not.
    let pid = command.spawn().map_err(failed)?.id() as i32;
    let exit = hold.claim(pid);
    drop(hold);
    let Ok(status) = tokio::time::timeout(LIMIT, ended(&exit)).await else {
        // Nobody has waited for it, so the number is still its own.
        if let Err(e) = kill(Pid::from_raw(pid), Signal::SIGKILL) {
            log::warn!("cannot kill {}: {e}", program.name);
        }
        return Err(Failure::Internal(format!("{} was not done within {} s", program.name, LIMIT.as_secs())));
    };
    if status != 0 {
        let text = String::from_utf8_lossy(&contents(&mut stderr, 4096).map_err(failed)?).trim().to_owned();
        return Err(Failure::Internal(format!("{} ended with {status}: {text}", program.name)));
    }
    let output = contents(&mut stdout, OUTPUT + 1).map_err(failed)?;
    if output.len() as u64 > OUTPUT {
        return Err(Failure::Internal(format!("{} says more than {OUTPUT} bytes", program.name)));
    }
    Ok(output)
}

fn contents(file: &mut File, limit: u64) -> std::io::Result<Vec<u8>> {
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_images_own_come_before_those_that_are_lent_and_without_either_it_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let (own, lent) = (dir.path().join("sbin"), dir.path().join("lent"));
        std::fs::create_dir_all(&own).unwrap();
        std::fs::create_dir_all(&lent).unwrap();
        let find = || Program::find_in("iptables-save", &[own.to_str().unwrap()], &lent);
        let e = find().err().unwrap();
        assert!(matches!(e, Failure::Unsupported(_)), "{e}");
        assert!(e.to_string().contains(&format!("no iptables-save in {}", own.display())), "{e}");
        std::fs::write(lent.join(MULTI), "").unwrap();
        let found = find().unwrap();
        let command = found.command();
        assert!(found.lent && command.get_program() == lent.join("ld.so"), "{command:?}");
        let args: Vec<_> = command.get_args().collect();
        assert!(
            args.ends_with(&["--argv0".as_ref(), "iptables-save".as_ref(), lent.join(MULTI).as_os_str()]),
            "{args:?}"
        );
        std::fs::write(own.join("iptables-save"), "").unwrap();
        assert_eq!(find().unwrap().command().get_program(), own.join("iptables-save"));
    }
}
