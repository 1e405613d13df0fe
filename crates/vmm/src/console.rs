//! The last lines that something printed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many lines are kept.
const MAX_LINES: usize = 200;
/// How many bytes of a line are kept; the rest of a longer line is dropped.
const MAX_LINE: usize = 512;

/// A bounded ring of the last lines of a console or of stderr. What a guest prints is untrusted: control characters
/// are taken out, so that a tail can be shown on a terminal.
#[derive(Debug, Default)]
pub struct ConsoleRing {
    lines: VecDeque<String>,
    /// The line that has not ended yet, raw.
    partial: Vec<u8>,
    /// Whether an ANSI escape sequence is being skipped, and how far it is.
    escape: Escape,
}

/// A guest's console: a ring that its reader fills, and that outlives the VM for whoever has to say why it ended.
#[derive(Debug, Clone, Default)]
pub struct Console(Arc<Mutex<ConsoleRing>>);

impl Console {
    fn ring(&self) -> MutexGuard<'_, ConsoleRing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`ConsoleRing::push_and`].
    pub fn push_and(&self, bytes: &[u8], seen: impl FnMut(&str)) {
        self.ring().push_and(bytes, seen);
    }

    /// The last lines until now, the oldest first.
    pub fn tail(&self) -> Vec<String> {
        self.ring().tail()
    }
}

/// Where in an ANSI escape sequence we are.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Escape {
    /// In none.
    #[default]
    None,
    /// After ESC.
    Start,
    /// Within `ESC [ ...`, until a letter.
    Csi,
}

impl ConsoleRing {
    /// An empty ring.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes what was printed next; lines may be cut anywhere.
    pub fn push(&mut self, bytes: &[u8]) {
        self.push_and(bytes, |_| {});
    }

    /// As [`ConsoleRing::push`], and shows each line that is complete to `seen`.
    pub fn push_and(&mut self, bytes: &[u8], mut seen: impl FnMut(&str)) {
        for &byte in bytes {
            match (self.escape, byte) {
                (Escape::Start, b'[') => self.escape = Escape::Csi,
                (Escape::Start, _) => self.escape = Escape::None,
                (Escape::Csi, b'@'..=b'~') => self.escape = Escape::None,
                (_, 0x1b) => self.escape = Escape::Start,
                (_, b'\n') => {
                    self.escape = Escape::None;
                    self.end_line(&mut seen);
                }
                (Escape::Csi, _) => {}
                (Escape::None, b'\t') => self.keep(b' '),
                (Escape::None, byte) if byte < 0x20 || byte == 0x7f => {}
                (Escape::None, byte) => self.keep(byte),
            }
        }
    }

    fn keep(&mut self, byte: u8) {
        if self.partial.len() < MAX_LINE {
            self.partial.push(byte);
        }
    }

    fn end_line(&mut self, seen: &mut impl FnMut(&str)) {
        if let Some(line) = printable(&self.partial) {
            seen(&line);
            if self.lines.len() == MAX_LINES {
                self.lines.pop_front();
            }
            self.lines.push_back(line);
        }
        self.partial.clear();
    }

    /// The lines kept, oldest first, with the unfinished one at the end. Empty lines are left out.
    pub fn tail(&self) -> Vec<String> {
        self.lines.iter().cloned().chain(printable(&self.partial)).collect()
    }

    /// The last `n` lines as one text.
    pub fn text(&self, n: usize) -> String {
        let tail = self.tail();
        tail[tail.len().saturating_sub(n)..].join("\n")
    }
}

/// The line as text without the control characters that UTF-8 encodes in two bytes; none if nothing is left.
fn printable(raw: &[u8]) -> Option<String> {
    let line: String = String::from_utf8_lossy(raw).chars().filter(|c| !c.is_control()).collect();
    let line = line.trim_end();
    (!line.is_empty()).then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_last_lines_and_the_unfinished_one() {
        let mut ring = ConsoleRing::new();
        for i in 0..MAX_LINES + 50 {
            ring.push(format!("line {i}\r\n").as_bytes());
        }
        ring.push(b"half");
        let tail = ring.tail();
        assert_eq!(tail.len(), MAX_LINES + 1);
        assert_eq!(tail[0], "line 50");
        assert_eq!(tail[MAX_LINES], "half");
        assert_eq!(ring.text(2), format!("line {}\nhalf", MAX_LINES + 49));
    }

    #[test]
    fn lines_are_bounded() {
        let mut ring = ConsoleRing::new();
        ring.push(&vec![b'x'; 1 << 20]);
        let mut seen = Vec::new();
        ring.push_and(b"\nnext\nhalf", |line| seen.push(line.len()));
        assert_eq!(seen, [MAX_LINE, 4]);
        assert_eq!(ring.tail()[0].len(), MAX_LINE);
        assert_eq!(ring.tail()[1], "next");
    }

    #[test]
    fn control_characters_and_escapes_are_taken_out_wherever_the_cut_is() {
        let mut ring = ConsoleRing::new();
        for byte in b"\x1b[1;31mred\x1b[0m\x07 a\tb\x1bcz\n\n\xc2\x9bx\n" {
            ring.push(&[*byte]);
        }
        assert_eq!(ring.tail(), ["red a bz", "x"]);
    }
}
