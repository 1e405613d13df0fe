//! What can go wrong, in the words that users of container engines know, and the way such an error travels from the
//! helper process to the agent.

use nix::errno::Errno;
use thiserror::Error;

/// Why a container or a process in it could not be made or managed. The texts about the program and its directory are
/// those of runc: engines derive exit statuses 126 and 127 from them.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum JailError {
    /// A program named without a slash is in no directory of the container's PATH.
    #[error("exec: {name:?}: executable file not found in $PATH")]
    NotInPath {
        /// The first of the process's args.
        name: String,
    },
    /// The path of the program leads nowhere.
    #[error("exec: {name:?}: stat {name}: {}", reason(*.source))]
    Stat {
        /// The first of the process's args.
        name: String,
        /// Why it cannot be looked at.
        source: Errno,
    },
    /// The program may not be executed by the container's user, or is a directory.
    #[error("exec: {name:?}: permission denied")]
    NotExecutable {
        /// The first of the process's args.
        name: String,
    },
    /// The program was found, but the kernel refused to run it.
    #[error("exec {path}: {}", reason(*.source))]
    Execve {
        /// The path that was tried.
        path: String,
        /// Why the kernel refused.
        source: Errno,
    },
    /// The working directory cannot be entered.
    #[error("chdir to cwd ({cwd:?}) set in config.json failed: {}", reason(*.source))]
    Cwd {
        /// The directory.
        cwd: String,
        /// Why not.
        source: Errno,
    },
    /// The spec asks for something that this engine does not do.
    #[error("not supported in the guest: {what}")]
    Unsupported {
        /// What was asked for.
        what: String,
    },
    /// The spec contradicts itself or has a value that means nothing.
    #[error("invalid container spec: {what}")]
    InvalidSpec {
        /// What is wrong, with the value.
        what: String,
    },
    /// The container is not in a state for this.
    #[error("container {id}: {what}")]
    State {
        /// The container.
        id: String,
        /// What cannot be done, and why.
        what: String,
    },
    /// A step failed with an error of the system.
    #[error("{step}: {}", reason(*.source))]
    Step {
        /// What was tried, with the path or name it was about.
        step: String,
        /// What the system said.
        source: Errno,
    },
    /// The helper process ended, or said something that makes no sense, before its work was done.
    #[error("the container's helper process {what}")]
    Helper {
        /// What happened.
        what: String,
    },
}

/// An errno in the wording of Go's standard library, which users of container engines know: the C library's text
/// beginning with a small letter.
pub(crate) fn reason(errno: Errno) -> String {
    let text = match errno {
        Errno::ELOOP => "too many levels of symbolic links",
        other => other.desc(),
    };
    let mut chars = text.chars();
    match chars.next() {
        Some(first) if !text.starts_with("I/O") => first.to_lowercase().chain(chars).collect(),
        _ => text.to_owned(),
    }
}

impl JailError {
    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        JailError::InvalidSpec { what: what.into() }
    }

    pub(crate) fn unsupported(what: impl Into<String>) -> Self {
        JailError::Unsupported { what: what.into() }
    }

    pub(crate) fn helper(what: impl Into<String>) -> Self {
        JailError::Helper { what: what.into() }
    }

    /// As bytes for the helper's socket: a letter for the kind, the errno, the text.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (kind, errno, texts) = match self {
            JailError::NotInPath { name } => (b'p', 0, [name.as_str(), ""]),
            JailError::Stat { name, source } => (b's', *source as i32, [name.as_str(), ""]),
            JailError::NotExecutable { name } => (b'x', 0, [name.as_str(), ""]),
            JailError::Execve { path, source } => (b'e', *source as i32, [path.as_str(), ""]),
            JailError::Cwd { cwd, source } => (b'c', *source as i32, [cwd.as_str(), ""]),
            JailError::Unsupported { what } => (b'u', 0, [what.as_str(), ""]),
            JailError::InvalidSpec { what } => (b'i', 0, [what.as_str(), ""]),
            JailError::State { id, what } => (b't', 0, [id.as_str(), what.as_str()]),
            JailError::Step { step, source } => (b'f', *source as i32, [step.as_str(), ""]),
            JailError::Helper { what } => (b'h', 0, [what.as_str(), ""]),
        };
        let mut out = vec![kind];
        out.extend(errno.to_ne_bytes());
        out.extend(texts[0].as_bytes());
        out.push(0);
        out.extend(texts[1].as_bytes());
        out
    }

    /// The reverse of [`JailError::encode`].
    pub(crate) fn decode(bytes: &[u8]) -> Self {
        let garbled = || JailError::helper("reported an error that cannot be read");
        let Some((&kind, rest)) = bytes.split_first() else { return garbled() };
        let Some((errno, text)) = rest.split_first_chunk::<4>() else { return garbled() };
        let source = Errno::from_raw(i32::from_ne_bytes(*errno));
        let (first, second) = match text.iter().position(|b| *b == 0) {
            Some(at) => (&text[..at], &text[at + 1..]),
            None => (text, &[][..]),
        };
        let text = String::from_utf8_lossy(first).into_owned();
        match kind {
            b'p' => JailError::NotInPath { name: text },
            b's' => JailError::Stat { name: text, source },
            b'x' => JailError::NotExecutable { name: text },
            b'e' => JailError::Execve { path: text, source },
            b'c' => JailError::Cwd { cwd: text, source },
            b'u' => JailError::Unsupported { what: text },
            b'i' => JailError::InvalidSpec { what: text },
            b't' => JailError::State { id: text, what: String::from_utf8_lossy(second).into_owned() },
            b'f' => JailError::Step { step: text, source },
            b'h' => JailError::Helper { what: text },
            _ => garbled(),
        }
    }
}

/// Errors of the libraries that make system calls, as one.
pub(crate) trait SysError {
    fn errno(&self) -> Errno;
}

impl SysError for Errno {
    fn errno(&self) -> Errno {
        *self
    }
}

impl SysError for rustix::io::Errno {
    fn errno(&self) -> Errno {
        Errno::from_raw(self.raw_os_error())
    }
}

impl SysError for std::io::Error {
    /// EIO where the error is none of the system's (a file that ends too early, text that is not UTF-8).
    fn errno(&self) -> Errno {
        self.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
    }
}

impl SysError for capctl::Error {
    fn errno(&self) -> Errno {
        Errno::from_raw(self.code())
    }
}

/// Names the step that failed.
pub(crate) trait Step<T> {
    fn step(self, what: impl FnOnce() -> String) -> Result<T, JailError>;
}

impl<T, E: SysError> Step<T> for Result<T, E> {
    fn step(self, what: impl FnOnce() -> String) -> Result<T, JailError> {
        self.map_err(|e| JailError::Step { step: what(), source: e.errno() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_texts_are_the_ones_engines_look_for() {
        let name = || "foo".to_owned();
        let text = JailError::NotInPath { name: name() }.to_string();
        assert_eq!(text, r#"exec: "foo": executable file not found in $PATH"#);
        let text = JailError::Stat { name: "/x".into(), source: Errno::ENOENT }.to_string();
        assert_eq!(text, r#"exec: "/x": stat /x: no such file or directory"#);
        let text = JailError::NotExecutable { name: "/x".into() }.to_string();
        assert_eq!(text, r#"exec: "/x": permission denied"#);
        let text = JailError::Cwd { cwd: "/x".into(), source: Errno::ENOENT }.to_string();
        assert_eq!(text, r#"chdir to cwd ("/x") set in config.json failed: no such file or directory"#);
        assert_eq!(reason(Errno::EACCES), "permission denied");
        assert_eq!(reason(Errno::ENOTDIR), "not a directory");
        assert_eq!(reason(Errno::ENOEXEC), "exec format error");
        assert_eq!(reason(Errno::EIO), "I/O error");
    }

    #[test]
    fn an_error_survives_the_way_to_the_agent() {
        let (a, b, source) = (|| "a\"ä".to_owned(), || "b".to_owned(), Errno::EPERM);
        for e in [
            JailError::NotInPath { name: a() },
            JailError::Stat { name: a(), source },
            JailError::NotExecutable { name: a() },
            JailError::Execve { path: a(), source },
            JailError::Cwd { cwd: a(), source },
            JailError::Unsupported { what: a() },
            JailError::InvalidSpec { what: a() },
            JailError::State { id: a(), what: b() },
            JailError::Step { step: a(), source },
            JailError::Helper { what: a() },
        ] {
            assert_eq!(JailError::decode(&e.encode()), e);
        }
        assert!(matches!(JailError::decode(b""), JailError::Helper { .. }));
        assert!(matches!(JailError::decode(b"q\0\0\0\0x"), JailError::Helper { .. }));
    }
}
