//! Running a program of the guest's. It gets no input; what is typed meanwhile, and the host's going, end it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt};

use crate::fdio::{FdIo, Kind};
use crate::reaper::{Exit, Reaper, ended};

/// Where programs are looked for.
const PATH: &str = "/bin:/sbin:/usr/bin:/usr/sbin";

/// Runs it and passes its output on, then its exit status if that is not 0.
pub async fn run<R, W>(reaper: &Reaper, words: Vec<String>, from: &mut R, to: &mut W) -> io::Result<()>
where
    R: AsyncBufRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (program, args) = words.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
    let (output, exit, pid) = match start(reaper, program, args) {
        Ok(started) => started,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return to.write_all(format!("{program}: there is no such program; try help\n").as_bytes()).await;
        }
        Err(e) => return to.write_all(format!("{program}: {e}\n").as_bytes()).await,
    };
    let group = Group(pid);
    let whole = async {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            match output.read(&mut buffer).await? {
                0 => return Ok(ended(&exit).await),
                n => to.write_all(&buffer[..n]).await?,
            }
            to.flush().await?;
        }
    };
    let status: io::Result<i32> = tokio::select! {
        status = whole => status,
        () = gone(from) => {
            drop(group);
            Ok(ended(&exit).await)
        }
    };
    match status? {
        0 => Ok(()),
        status => to.write_all(format!("{program}: exit status {status}\n").as_bytes()).await,
    }
}

/// Waits until the host sends no more. What is typed ahead stays in the buffer, as the next command.
async fn gone<R: AsyncBufRead + Unpin>(from: &mut R) {
    if from.fill_buf().await.is_ok_and(|typed| !typed.is_empty()) {
        std::future::pending::<()>().await;
    }
}

/// Kills a program with all it has started: what it leaves would be nobody's.
struct Group(i32);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.0) {
            // It may have ended.
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
    }
}

fn start(reaper: &Reaper, program: &str, args: &[String]) -> io::Result<(FdIo, Exit, i32)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    let errors: OwnedFd = write.try_clone()?;
    let hold = reaper.hold();
    let child = Command::new(program)
        .args(args)
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", "/")
        .env("TERM", "dumb")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(write)
        .stderr(errors)
        .process_group(0)
        .spawn()?;
    let pid = child.id().cast_signed();
    // The reaper waits for it.
    Ok((FdIo::new(read, Kind::Plain)?, hold.claim(pid), pid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::BufReader;

    fn output(input: &'static [u8], words: &[&str]) -> String {
        let _alone = crate::reaper::ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        rt.block_on(async {
            let reaper = Reaper::start().unwrap();
            let (mut from, mut to) = (BufReader::new(input), Vec::new());
            let words = words.iter().map(|w| (*w).to_owned()).collect();
            let ran = run(&reaper, words, &mut from, &mut to);
            tokio::time::timeout(std::time::Duration::from_secs(20), ran).await.expect("an end").unwrap();
            String::from_utf8(to).unwrap()
        })
    }

    #[test]
    fn a_host_that_goes_ends_what_it_has_started() {
        assert_eq!(output(b"", &["sleep", "1000"]), "sleep: exit status 137\n");
    }

    #[test]
    fn output_and_status_are_told_and_the_next_line_waits() {
        assert_eq!(output(b"next\n", &["sh", "-c", "echo out; echo err >&2; exit 3"]), "out\nerr\nsh: exit status 3\n");
    }
}
