//! The agent's log: JSON lines, kept in a bounded ring until the host takes them through a stream of its own, and
//! written to the guest's console, if they warn, while nobody does; errors go there always. Logging never blocks and never waits.

use std::collections::VecDeque;
use std::fs::File;
use std::future::Future;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use log::{LevelFilter, Log, Metadata, Record};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

use crate::json::push_string;
use crate::scope::{self, Scope};

/// Bytes of log kept for a host that is not there yet.
const RING_BYTES: usize = 64 * 1024;

static LOGGER: OnceLock<Logger> = OnceLock::new();

struct Logger {
    ring: Mutex<Ring>,
    more: Notify,
    console: Option<File>,
}

#[derive(Default)]
struct Ring {
    lines: VecDeque<String>,
    bytes: usize,
    /// Lines that the ring had to let go.
    lost: usize,
    /// How many streams are attached.
    readers: usize,
}

impl Ring {
    fn push(&mut self, line: String) {
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.bytes > RING_BYTES {
            let Some(old) = self.lines.pop_front() else { break };
            self.bytes -= old.len();
            self.lost += 1;
        }
    }

    fn take(&mut self) -> Option<String> {
        if self.lost > 0 {
            let lost = std::mem::take(&mut self.lost);
            return Some(line("warn", module_path!(), &format!("{lost} lines of this log were lost"), None));
        }
        let line = self.lines.pop_front()?;
        self.bytes -= line.len();
        Some(line)
    }
}

/// `scope`: on whose behalf.
fn line(level: &str, target: &str, msg: &str, scope: Option<&Scope>) -> String {
    let mut out = String::with_capacity(msg.len() + target.len() + 48);
    out.push_str("{\"level\":");
    push_string(&mut out, level);
    out.push_str(",\"target\":");
    push_string(&mut out, target);
    out.push_str(",\"msg\":");
    push_string(&mut out, msg);
    if let Some(scope) = scope {
        for (key, value) in [("container", &scope.container), ("exec", &scope.exec)] {
            // Ids: nothing in them needs to be escaped.
            if !value.is_empty() {
                for part in [",\"", key, "\":\"", value, "\""] {
                    out.push_str(part);
                }
            }
        }
    }
    out.push_str("}\n");
    out
}

impl Logger {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        // A panic while logging leaves the ring whole: each operation on it is one step.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The console is slow: a line costs milliseconds without KVM. What is only of interest waits for the host to take it, unless
/// somebody who debugs wants all of it.
fn to_console(level: log::Level, readers: usize) -> bool {
    let nobody_reads = readers == 0 && (level <= log::Level::Warn || log::max_level() > LevelFilter::Info);
    level == log::Level::Error || nobody_reads
}

impl Log for Logger {
    fn enabled(&self, m: &Metadata<'_>) -> bool {
        // The libraries' own chatter would describe the very stream that carries it.
        m.target().starts_with("kata") || m.level() <= log::Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = record.level().as_str().to_ascii_lowercase();
        let scope = scope::current();
        let text = line(&level, record.target(), &record.args().to_string(), scope.as_deref());
        let mut ring = self.ring();
        if to_console(record.level(), ring.readers)
            && let Some(mut console) = self.console.as_ref()
        {
            // The console is the last resort: there is nowhere to report that it failed.
            let _ = console.write_all(text.as_bytes());
        }
        ring.push(text);
        drop(ring);
        self.more.notify_one();
    }

    fn flush(&self) {}
}

/// Makes this the program's logger. `console`: where lines go while no stream is attached; it should not block.
/// A second call changes the level only.
pub fn init(level: LevelFilter, console: Option<File>) {
    let mut first = false;
    let logger = LOGGER.get_or_init(|| {
        first = true;
        Logger { ring: Mutex::default(), more: Notify::new(), console }
    });
    if first {
        // Fails only when a test harness has set a logger before: then that one serves.
        let _ = log::set_logger(logger);
    }
    log::set_max_level(level);
}

/// Puts a whole line, with its end, into the log: for what is no message.
pub fn push(line: String) {
    let Some(logger) = LOGGER.get() else { return };
    logger.ring().push(line);
    logger.more.notify_one();
}

/// One reader of the log; while it lives, lines do not go to the console.
struct Reader(&'static Logger);

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.ring().readers -= 1;
    }
}

/// Writes what the ring holds and all that follows into `out`, until it fails or `over` is ready.
pub async fn stream_to<W: AsyncWrite + Unpin>(mut out: W, over: impl Future<Output = ()>) {
    let Some(logger) = LOGGER.get() else { return };
    logger.ring().readers += 1;
    let reader = Reader(logger);
    let mut over = std::pin::pin!(over);
    loop {
        let next = reader.0.ring().take();
        let Some(text) = next else {
            tokio::select! {
                () = &mut over => return,
                () = logger.more.notified() => continue,
            }
        };
        let written = tokio::select! {
            () = &mut over => false,
            result = out.write_all(text.as_bytes()) => result.is_ok(),
        };
        if !written {
            // It may have arrived or not; twice is better than never.
            let mut ring = logger.ring();
            ring.bytes += text.len();
            ring.lines.push_front(text);
            drop(ring);
            logger.more.notify_one();
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_is_bounded_and_says_what_it_lost() {
        let mut ring = Ring::default();
        for _ in 0..3 {
            ring.push("x".repeat(RING_BYTES / 2));
        }
        assert!(ring.bytes <= RING_BYTES);
        let first = ring.take().unwrap();
        assert!(first.contains("1 lines of this log were lost"), "{first}");
        assert!(ring.take().is_some() && ring.take().is_some() && ring.take().is_none());
        assert_eq!(ring.bytes, 0);
    }

    #[test]
    fn a_line_is_one_json_object() {
        assert_eq!(
            line("info", "kata", "a \"b\"\n", None),
            "{\"level\":\"info\",\"target\":\"kata\",\"msg\":\"a \\\"b\\\"\\n\"}\n"
        );
        let scope = Scope { container: "c1".into(), exec: "e1".into(), recording: None };
        assert_eq!(
            line("info", "kata", "x", Some(&scope)),
            "{\"level\":\"info\",\"target\":\"kata\",\"msg\":\"x\",\"container\":\"c1\",\"exec\":\"e1\"}\n"
        );
    }
}
