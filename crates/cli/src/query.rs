//! Questions that containerd's Task service has no call for, asked at the attach socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use kata_sandbox::attach_socket;
use kata_shim::{ListAnswer, ListQuery};

use crate::error::{CliError, io};

/// The guest's own table of a container's processes.
///
/// # Errors
/// The daemon's words.
pub fn guest_processes(run_dir: &Path, container: &str, args: Vec<String>) -> Result<String, CliError> {
    let path = attach_socket(run_dir);
    let mut socket = UnixStream::connect(&path).map_err(io("connect to", &path))?;
    socket.set_read_timeout(Some(Duration::from_secs(60))).map_err(io("use", &path))?;
    let query = ListQuery { list: container.to_owned(), args };
    let mut line = serde_json::to_vec(&query).map_err(|e| io("write to", &path)(e.into()))?;
    line.push(b'\n');
    socket.write_all(&line).map_err(io("write to", &path))?;
    let mut answer = String::new();
    BufReader::new(socket).read_line(&mut answer).map_err(io("read from", &path))?;
    let answer: ListAnswer = serde_json::from_str(&answer).map_err(|e| io("read from", &path)(e.into()))?;
    match answer.error {
        Some(error) => Err(CliError::Daemon(error)),
        None => Ok(answer.table),
    }
}
