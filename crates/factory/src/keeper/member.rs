//! A sandbox that waits, as its keeper sees it: a child that says two words on its stdout, and ends when its stdin does.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{ChildStdin, Command};
use tokio::sync::mpsc;

use crate::pool::{Pool, READY_WORD, TAKEN_WORD};

/// What becomes of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// It can be taken.
    Ready,
    /// It has a name: it is no member any more.
    Taken,
    /// It is gone.
    Ended,
}

/// One member.
pub(super) struct Member {
    pub number: u64,
    /// Its directory while it is being made.
    pub dir: PathBuf,
    pub ready: bool,
    /// Since when its directory is not in the pool any more, though it has not said that it was named.
    pub gone_since: Option<Instant>,
    /// Its end tells the sandbox to end.
    pipe: Option<ChildStdin>,
}

impl Member {
    /// Starts one.
    pub(super) fn start(
        pool: &Pool,
        number: u64,
        config: Option<&Path>,
        news: mpsc::UnboundedSender<(u64, News)>,
    ) -> io::Result<Member> {
        // The keeper's pid: two keepers, one after the other, never make the same name.
        let dir = pool.dir().join(format!(".{}-{number}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&dir)?;
        let log = File::options().create(true).append(true).open(dir.join("daemon.log"))?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("kata-sandbox").args(["sandbox-daemon", "--pool", "--run-dir"]).arg(&dir);
        if let Some(config) = config {
            command.arg("--config").arg(config);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn()?;
        let pipe = child.stdin.take();
        let said = child.stdout.take();
        tokio::spawn(async move {
            let mut taken = false;
            if let Some(said) = said {
                let mut lines = BufReader::new(said).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    let word = match line.as_str() {
                        READY_WORD => News::Ready,
                        TAKEN_WORD => News::Taken,
                        other => {
                            tracing::warn!(number, "a sandbox that is to wait says: {other}");
                            continue;
                        }
                    };
                    taken |= word == News::Taken;
                    // Its keeper may be on its way out.
                    let _ = news.send((number, word));
                }
            }
            // One that was taken goes on for long; this is its parent, and has to reap it.
            drop(child.wait().await);
            if !taken {
                let _ = news.send((number, News::Ended));
            }
        });
        Ok(Member { number, dir, ready: false, gone_since: None, pipe })
    }

    /// Whether it can be taken, or soon.
    pub(super) fn waits(&self) -> bool {
        self.gone_since.is_none()
    }

    /// Its directory when it can be taken.
    pub(super) fn ready_dir(&self) -> PathBuf {
        let name = self.dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.dir.with_file_name(name.trim_start_matches('.'))
    }

    /// Tells it to end.
    pub(super) fn let_end(&mut self) {
        self.pipe = None;
    }
}
