//! Containers' logs, in the format that the runtime writes for the kubelet: a line of `TIME STREAM F|P TEXT` for each
//! line, or part of a long one.

use std::fs;
use std::path::Path;

/// What a container wrote, by stream, with partial lines joined.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Log {
    /// Its stdout.
    pub stdout: String,
    /// Its stderr.
    pub stderr: String,
}

impl Log {
    /// Of a file; empty if there is none yet.
    pub fn read(path: &Path) -> Log {
        Log::parse(&fs::read_to_string(path).unwrap_or_default())
    }

    /// # Panics
    /// On a line of another format.
    fn parse(text: &str) -> Log {
        let mut log = Log::default();
        // The last line may be half written.
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            let mut fields = line.splitn(4, ' ');
            let (Some(_time), Some(stream), Some(tag), Some(text)) =
                (fields.next(), fields.next(), fields.next(), fields.next())
            else {
                panic!("no line of a container's log: {line:?}");
            };
            let into = match stream {
                "stdout" => &mut log.stdout,
                "stderr" => &mut log.stderr,
                other => panic!("a stream {other:?} in a container's log: {line:?}"),
            };
            into.push_str(if tag == "P" { text.trim_end_matches('\n') } else { text });
        }
        log
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_joined_and_streams_told_apart() {
        let text = "2026-01-01T00:00:00.1Z stdout F one two\n2026-01-01T00:00:00.2Z stderr P half\n\
                    2026-01-01T00:00:00.2Z stderr F  a line\n2026-01-01T00:00:00.3Z stdout F \n2026-01-01T0";
        assert_eq!(Log::parse(text), Log { stdout: "one two\n\n".into(), stderr: "half a line\n".into() });
    }
}
