//! `debug-console`: looking around in a sandbox's guest.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kata_sandbox::{attach_socket, find};
use kata_shim::{AttachReply, ConsoleQuery};

use crate::error::{CliError, io};
use crate::store::Store;

/// How long the daemon may take to say whether there is a console.
const OPENS_WITHIN: Duration = Duration::from_secs(30);
/// What the daemon's reply may have.
const MAX_REPLY: u64 = 64 << 10;

/// The directory of a sandbox by its id: of this root, or of any engine on this host.
///
/// # Errors
/// None, or several of that name.
pub fn sandbox(store: &Store, id: &str) -> Result<PathBuf, CliError> {
    let entry = store.get(id).unwrap_or_default();
    let ours = store.run_dir(id, &entry);
    if ours.exists() {
        return Ok(ours);
    }
    let mut all: Vec<PathBuf> = find(Path::new(kata_types::HOST_RUN_DIR))
        .into_iter()
        .filter(|found| found.state.id == id || found.state.containers.contains_key(id))
        .map(|found| found.run_dir)
        .collect();
    match (all.pop(), all.is_empty()) {
        (Some(one), true) => Ok(one),
        (None, _) => Err(CliError::Usage(format!("no sandbox or container {id} runs on this host"))),
        (Some(_), false) => {
            Err(CliError::Usage(format!("several engines have a sandbox {id}; give --root for one of ours")))
        }
    }
}

/// `debug-console`: with a command, what that prints; without, a conversation.
pub fn console(store: &Store, id: &str, command: &[String]) -> Result<u8, CliError> {
    let path = attach_socket(&sandbox(store, id)?);
    let failed = |what| io(what, &path);
    let mut socket = UnixStream::connect(&path).map_err(failed("connect to"))?;
    socket.set_read_timeout(Some(OPENS_WITHIN)).map_err(failed("use"))?;
    let mut line =
        serde_json::to_vec(&ConsoleQuery { console: command.join(" ") }).map_err(|e| failed("write to")(e.into()))?;
    line.push(b'\n');
    socket.write_all(&line).map_err(failed("write to"))?;
    let mut from = BufReader::new(socket.try_clone().map_err(failed("use"))?);
    let mut reply = String::new();
    (&mut from).take(MAX_REPLY).read_line(&mut reply).map_err(failed("read from"))?;
    let reply: AttachReply = serde_json::from_str(&reply).map_err(|e| failed("read from")(e.into()))?;
    if let Some(error) = reply.error {
        return Err(CliError::Daemon(error));
    }
    socket.set_read_timeout(None).map_err(failed("use"))?;
    let mut to = socket.try_clone().map_err(failed("use"))?;
    if command.is_empty() {
        std::thread::spawn(move || {
            // Where the input ends the console is left, in good order: the connection's end would end a program that
            // still runs. It may be over already.
            if std::io::copy(&mut std::io::stdin().lock(), &mut to).is_ok() {
                drop(to.write_all(b"\nexit\n"));
            }
        });
    }
    let mut out = std::io::stdout();
    let mut bytes = [0; 8192];
    loop {
        match from.read(&mut bytes).map_err(failed("read from"))? {
            0 => return Ok(0),
            // A prompt has no line's end.
            n => out.write_all(&bytes[..n]).and_then(|()| out.flush()).map_err(io("write to", "stdout"))?,
        }
    }
}
