//! The debug console: a few commands for looking around in a guest whose initrd has no shell, one line each. Off unless the
//! host's configuration wants it (`agent.debug_console` on the kernel's command line).

mod look;
mod program;

use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::Semaphore;

use crate::reaper::Reaper;
use crate::transport::HostStream;

/// A line is a command and its arguments.
const MAX_LINE: u64 = 4096;
/// Consoles at once.
const AT_ONCE: usize = 4;
const PROMPT: &str = "guest# ";

const HELP: &str = "\
ps               processes of the whole guest
ls [DIRECTORY]   files
cat FILE         a file, up to 1 MiB of it
mounts           mounts of the agent
dmesg            the kernel's messages
net              interfaces, addresses and routes
PROGRAM [ARG...] any program of the guest's, by path or in /bin:/sbin:/usr/bin:/usr/sbin, without input
help
exit
";

/// What serves consoles. Clones share it.
#[derive(Clone)]
pub struct Console {
    enabled: bool,
    reaper: Reaper,
    room: Arc<Semaphore>,
}

impl Console {
    /// `enabled`: as the configuration says.
    pub fn new(enabled: bool, reaper: Reaper) -> Console {
        Console { enabled, reaper, room: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Serves one until the host ends it; with a command, until that is done.
    pub async fn serve(&self, stream: HostStream, command: &str) {
        let (from, mut to) = tokio::io::split(stream);
        let refusal = if self.enabled {
            None
        } else {
            Some("the debug console is off (debug_console_enabled in [agent.kata])\n")
        };
        let place = self.room.try_acquire();
        let refusal = refusal.or_else(|| place.is_err().then_some("there are too many debug consoles already\n"));
        let served = match refusal {
            Some(text) => to.write_all(text.as_bytes()).await,
            None => {
                log::warn!("a debug console is open");
                let mut from = BufReader::new(from);
                let served = if command.trim().is_empty() {
                    self.commands(&mut from, &mut to).await
                } else {
                    self.command(command, &mut from, &mut to).await.map(drop)
                };
                log::warn!("a debug console is closed");
                served
            }
        };
        if let Err(e) = served {
            log::debug!("a debug console has ended: {e}");
        }
        // The host may be gone.
        let _ = to.shutdown().await;
    }

    async fn commands<R, W>(&self, from: &mut BufReader<R>, to: &mut W) -> std::io::Result<()>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut line = Vec::new();
        loop {
            to.write_all(PROMPT.as_bytes()).await?;
            to.flush().await?;
            line.clear();
            let n = (&mut *from).take(MAX_LINE).read_until(b'\n', &mut line).await?;
            if n == 0 {
                return Ok(());
            }
            if line.last() != Some(&b'\n') && n as u64 == MAX_LINE {
                return to.write_all(b"the line is too long\n").await;
            }
            if !self.command(&String::from_utf8_lossy(&line), from, to).await? {
                return Ok(());
            }
        }
    }

    /// One command; whether more may follow.
    async fn command<R, W>(&self, line: &str, from: &mut BufReader<R>, to: &mut W) -> std::io::Result<bool>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let words: Vec<&str> = line.split_whitespace().collect();
        let Some((command, args)) = words.split_first() else { return Ok(true) };
        match *command {
            "exit" | "quit" => return Ok(false),
            "help" | "?" => to.write_all(HELP.as_bytes()).await?,
            command => match look::command(command, args) {
                Some(work) => to.write_all(&look::done(work).await).await?,
                None => {
                    let words = words.iter().map(|w| (*w).to_owned()).collect();
                    program::run(&self.reaper, words, from, to).await?;
                }
            },
        }
        to.flush().await?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talk(enabled: bool, input: &str) -> String {
        session(enabled, "", input)
    }

    fn session(enabled: bool, command: &'static str, input: &str) -> String {
        let _alone = crate::reaper::ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        rt.block_on(async {
            let console = Console::new(enabled, Reaper::start().unwrap());
            let (host, guest) = tokio::io::duplex(64 * 1024);
            let served = tokio::spawn(async move { console.serve(Box::new(guest), command).await });
            let (mut from, mut to) = tokio::io::split(host);
            to.write_all(input.as_bytes()).await.unwrap();
            let mut text = String::new();
            let all = async {
                from.read_to_string(&mut text).await.unwrap();
                served.await.unwrap();
            };
            tokio::time::timeout(std::time::Duration::from_secs(20), all).await.expect("the console ends");
            text
        })
    }

    #[test]
    fn one_that_is_off_says_how_to_have_it() {
        let said = talk(false, "ps\n");
        assert!(said.contains("debug_console_enabled") && !said.contains(PROMPT), "{said}");
    }

    #[test]
    fn commands_look_around_and_a_wrong_one_does_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a file"), "words").unwrap();
        std::fs::write(dir.path().join("other"), "within\n").unwrap();
        let at = dir.path().display();
        let said =
            talk(true, &format!("help\nls {at}\ncat {at}/other\ncat {at}/none\nmounts\nps\nnet\nfrobnicate\nexit\n"));
        for part in [
            "the kernel's messages",
            "a file",
            "within\n",
            "No such file",
            " / ",
            "PID",
            "lo",
            "frobnicate: there is no such program",
        ] {
            assert!(said.contains(part), "{part} is not in:\n{said}");
        }
    }

    #[test]
    fn one_command_is_answered_without_prompts() {
        assert_eq!(session(true, "echo one two", ""), "one two\n");
        assert!(session(true, "mounts", "").contains(" / "));
        assert_eq!(session(true, "exit", ""), "");
    }

    #[test]
    fn a_line_has_a_bound() {
        assert!(talk(true, &"x".repeat(2 * MAX_LINE as usize)).ends_with("the line is too long\n"));
    }
}
