//! Why there is no machine, with what its console said last.

use kata_agent_client::{CallError, ConnectError};
use kata_storage::{FsDaemonError, ShareError};
use kata_vmm::{DeviceError, LaunchError, VmExit};
use thiserror::Error;

/// Why there is no machine. Each names its stage.
#[derive(Debug, Error)]
pub enum BootError {
    /// The share's directory.
    #[error("preparing the shared directory failed: {0}")]
    Share(#[from] ShareError),
    /// The file daemon.
    #[error("starting the file daemon failed: {}", chain(.0))]
    Fs(#[from] FsDaemonError),
    /// The VMM.
    #[error("starting the virtual machine failed: {}", chain(.0))]
    Launch(#[from] LaunchError),
    /// It ended while it booted.
    #[error("the virtual machine {exit} while the guest booted{}", last_words(.console))]
    Died {
        /// How.
        exit: VmExit,
        /// The guest's last words.
        console: Vec<String>,
    },
    /// The agent did not answer.
    #[error("the guest did not boot as far as its agent: {}{}", chain(.source), last_words(.console))]
    Agent {
        /// What happened.
        source: ConnectError,
        /// The guest's last words.
        console: Vec<String>,
    },
    /// The file system device.
    #[error("plugging the file system into the guest failed: {}", chain(.0))]
    Plug(#[from] DeviceError),
    /// The first instruction.
    #[error("the virtual machine could not be let run: {}", chain(.0))]
    Run(DeviceError),
    /// The file daemon's socket.
    #[error("the file daemon cannot be reached: {0}")]
    FsSocket(std::io::Error),
    /// The agent refused.
    #[error("the agent could not prepare the guest: {source}{}", last_words(.console))]
    Prepare {
        /// Its words.
        source: CallError,
        /// The guest's last words.
        console: Vec<String>,
    },
}

/// An error with its causes.
pub fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut at = err.source();
    while let Some(cause) = at {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        at = cause.source();
    }
    text
}

/// How many lines of a console are shown.
const LAST_WORDS: usize = 12;

/// The end of a console; of a kernel's panic its beginning, because a long trace follows it.
pub(super) fn last_words(lines: &[String]) -> String {
    if lines.is_empty() {
        return "; its console said nothing".into();
    }
    let end = lines.len().saturating_sub(LAST_WORDS);
    let from = match lines.iter().rposition(|line| line.contains("Kernel panic")) {
        Some(panic) => end.min(panic.saturating_sub(LAST_WORDS / 3)),
        None => end,
    };
    let mut text = String::from("; its console's last lines:");
    for line in lines[from..].iter().take(LAST_WORDS) {
        text.push_str("\n  ");
        text.push_str(line);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_shown_from_its_beginning_and_anything_else_to_its_end() {
        let lines = |n: usize| (0..n).map(|n| format!("line {n}")).collect::<Vec<_>>();
        let text = last_words(&lines(50));
        assert!(text.ends_with("line 49") && !text.contains("line 37") && text.lines().count() == LAST_WORDS + 1);
        let mut panicked = lines(20);
        panicked.push("Kernel panic - not syncing: no init".into());
        panicked.extend(lines(40));
        let text = last_words(&panicked);
        assert!(text.contains("Kernel panic") && text.contains("line 19") && text.lines().count() == LAST_WORDS + 1);
        assert_eq!(last_words(&[]), "; its console said nothing");
    }
}
