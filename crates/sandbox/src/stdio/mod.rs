//! A process's stdio on the host: FIFOs that an engine made, files, or descriptors that a shim handed over; and the
//! pumps between them and the guest's streams. Data never pass through the engine's queue.

mod host_fd;
mod pump;

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use thiserror::Error;

pub use pump::{Opened, Pumps};

/// One end on the host.
#[derive(Debug)]
pub enum Endpoint {
    /// A FIFO.
    Fifo(PathBuf),
    /// A file to append to.
    File(PathBuf),
    /// An open descriptor of any kind.
    Fd(OwnedFd),
}

/// All of a process's.
#[derive(Debug, Default)]
pub struct StdioSpec {
    /// The guest gives it a terminal: `stdout` carries all output.
    pub terminal: bool,
    /// What it reads; `None`: nothing.
    pub stdin: Option<Endpoint>,
    /// Where it writes; `None`: nowhere.
    pub stdout: Option<Endpoint>,
    /// Where its errors go; `None`: nowhere.
    pub stderr: Option<Endpoint>,
}

/// Why stdio cannot be used.
#[derive(Debug, Error)]
pub enum StdioError {
    /// An address of a kind that we do not have.
    #[error("stdio address {0:?} cannot be used: a path of a FIFO, or file:///path, is what works")]
    Scheme(String),
    /// It cannot be opened.
    #[error("cannot open {path} for {what}: {source}")]
    Open {
        /// "stdin", "stdout", "stderr".
        what: &'static str,
        /// What.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The guest did not give a stream.
    #[error(transparent)]
    Agent(#[from] kata_agent_client::ConnectError),
}

impl StdioSpec {
    /// From the addresses of a containerd task: paths of FIFOs, or URIs; empty: none.
    ///
    /// # Errors
    /// [`StdioError::Scheme`].
    pub fn from_addresses(terminal: bool, stdin: &str, stdout: &str, stderr: &str) -> Result<Self, StdioError> {
        Ok(StdioSpec {
            terminal,
            stdin: endpoint(stdin)?,
            stdout: endpoint(stdout)?,
            // With a terminal there is one output; engines name a stderr all the same.
            stderr: if terminal { None } else { endpoint(stderr)? },
        })
    }

    /// The agent protocol's word for which streams will be attached.
    pub fn streams(&self) -> u32 {
        use kata_proto::channel::{STDIO_STREAMS, Stdio};
        let bit = |e: &Option<Endpoint>, s: Stdio| if e.is_some() { s.bit() } else { 0 };
        STDIO_STREAMS | bit(&self.stdin, Stdio::In) | bit(&self.stdout, Stdio::Out) | bit(&self.stderr, Stdio::Err)
    }
}

fn endpoint(address: &str) -> Result<Option<Endpoint>, StdioError> {
    if address.is_empty() {
        return Ok(None);
    }
    match address.split_once("://") {
        None => Ok(Some(Endpoint::Fifo(PathBuf::from(address)))),
        Some(("fifo", path)) => Ok(Some(Endpoint::Fifo(PathBuf::from(path)))),
        Some(("file", path)) => Ok(Some(Endpoint::File(PathBuf::from(path)))),
        Some(_) => Err(StdioError::Scheme(address.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let s = StdioSpec::from_addresses(true, "", "/run/x/out", "/run/x/err").unwrap();
        assert!(s.stdin.is_none() && matches!(s.stdout, Some(Endpoint::Fifo(_))) && s.stderr.is_none());
        assert_eq!(s.streams(), 0x82);
        assert!(matches!(endpoint("file:///var/log/x").unwrap(), Some(Endpoint::File(p)) if p.ends_with("x")));
        assert!(endpoint("binary:///bin/logger").is_err());
    }
}
