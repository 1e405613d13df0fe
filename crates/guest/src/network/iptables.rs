//! The guest's packet filter, by the programs of iptables where the guest has them (iptables-save(8),
//! iptables-restore(8)). Upstream keeps them in its images; our initrd has none.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::{MemfdFlags, memfd_create};

use crate::failure::Failure;
use crate::reaper::{Reaper, ended};

/// Where they are looked for, in upstream's order.
const DIRECTORIES: &[&str] = &["/usr/sbin", "/sbin"];
/// One that works is done in a fraction of a second.
const LIMIT: Duration = Duration::from_secs(20);
/// How many seconds iptables-restore waits for another that is at work.
const WAIT: &str = "10";
/// What fits into an answer: ttrpc's messages have 4 MiB.
const OUTPUT: u64 = 4_000_000;

/// Reads all rules, as iptables-save writes them.
pub async fn save(reaper: &Reaper, v6: bool) -> Result<Vec<u8>, Failure> {
    run(reaper, &program(if v6 { "ip6tables-save" } else { "iptables-save" })?, &[], &[]).await
}

/// Replaces the rules of the tables that `rules` names, and returns what the program said.
pub async fn restore(reaper: &Reaper, v6: bool, rules: &[u8]) -> Result<Vec<u8>, Failure> {
    run(reaper, &program(if v6 { "ip6tables-restore" } else { "iptables-restore" })?, &["--wait", WAIT], rules).await
}

fn program(name: &str) -> Result<PathBuf, Failure> {
    let found = DIRECTORIES.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.exists());
    found.ok_or_else(|| {
        let places = DIRECTORIES.join(" or ");
        Failure::Unsupported(format!("iptables in the guest: its image has no {name} in {places}"))
    })
}

/// A file in memory: unlike a pipe it is never full, so nobody waits for anybody.
fn memory(name: &str) -> std::io::Result<File> {
    Ok(File::from(memfd_create(name, MemfdFlags::CLOEXEC)?))
}

async fn run(reaper: &Reaper, program: &Path, args: &[&str], input: &[u8]) -> Result<Vec<u8>, Failure> {
    let failed = |e: std::io::Error| Failure::io(format_args!("cannot run {}", program.display()), &e);
    let (mut stdin, mut stdout, mut stderr) =
        (memory("input").map_err(failed)?, memory("output").map_err(failed)?, memory("errors").map_err(failed)?);
    stdin.write_all(input).and_then(|()| stdin.rewind()).map_err(failed)?;
    let mut command = Command::new(program);
    command.args(args).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir("/");
    command.stdin(Stdio::from(stdin));
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
            log::warn!("cannot kill {}: {e}", program.display());
        }
        return Err(Failure::Internal(format!("{} was not done within {} s", program.display(), LIMIT.as_secs())));
    };
    if status != 0 {
        let text = String::from_utf8_lossy(&contents(&mut stderr, 4096).map_err(failed)?).trim().to_owned();
        return Err(Failure::Internal(format!("{} ended with {status}: {text}", program.display())));
    }
    let output = contents(&mut stdout, OUTPUT + 1).map_err(failed)?;
    if output.len() as u64 > OUTPUT {
        return Err(Failure::Internal(format!("{} says more than {OUTPUT} bytes", program.display())));
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
    fn a_guest_without_the_program_says_so() {
        let e = program("no-such-iptables-save").unwrap_err();
        assert!(matches!(e, Failure::Unsupported(_)), "{e}");
        assert!(e.to_string().contains("no-such-iptables-save in /usr/sbin or /sbin"), "{e}");
    }
}
