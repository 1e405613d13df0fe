//! How a waiting sandbox is told whose it is: one JSON line each way over its socket `handover.sock`, the taker's with
//! descriptors of its mount namespace, for what the host has mounted since the sandbox began to wait is seen only there, and
//! of its network namespace, which is the host's for this sandbox.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kata_sandbox::{Launch, Owner, Ready};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::{Deserialize, Serialize};

use crate::line::IncomingLine;

/// How long taking a sandbox over may take; some 10 ms are usual.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// Whose the sandbox is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    /// Its directory by its new name.
    pub run_dir: PathBuf,
    /// Its id.
    pub id: String,
    /// The bundle of its first container.
    pub bundle: PathBuf,
    /// containerd's namespace, if it is containerd's.
    pub namespace: Option<String>,
    /// `--root` of the OCI command line, if it is that one's.
    pub root: Option<PathBuf>,
    /// Where it logs; none: in its directory.
    pub log: Option<PathBuf>,
    /// Where containerd takes events.
    pub events: Option<String>,
    /// Log at debug.
    pub debug: bool,
}

impl Name {
    /// Of what a door was asked to launch.
    pub fn of(launch: &Launch, run_dir: &Path) -> Name {
        let (namespace, root) = match &launch.owner {
            Owner::Containerd(namespace) => (Some(namespace.clone()), None),
            Owner::Oci(root) => (None, Some(root.clone())),
        };
        Name {
            run_dir: run_dir.to_owned(),
            id: launch.id.clone(),
            bundle: launch.bundle.clone(),
            namespace,
            root,
            log: launch.log.clone(),
            events: launch.events.clone(),
            debug: launch.debug,
        }
    }
}

/// The socket in a directory.
pub fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join("handover.sock")
}

/// Tells the sandbox in `name.run_dir` whose it is, and waits until it serves. Blocks.
///
/// # Errors
/// When it cannot be reached or does not answer.
pub fn give(name: &Name) -> io::Result<Ready> {
    let stream = UnixStream::connect(socket(&name.run_dir))?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    let (mounts, network) = (File::open("/proc/self/ns/mnt")?, File::open("/proc/self/ns/net")?);
    let mut line = serde_json::to_vec(name)?;
    line.push(b'\n');
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [mounts.as_fd(), network.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let sent = sendmsg(&stream, &[IoSlice::new(&line)], &mut control, SendFlags::NOSIGNAL)?;
    if sent != line.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    let mut answer = String::new();
    BufReader::new(&stream).read_line(&mut answer)?;
    Ok(serde_json::from_str(answer.trim())?)
}

/// The namespaces of whoever takes a sandbox.
#[derive(Debug)]
pub struct Theirs {
    /// Of mounts.
    pub mounts: OwnedFd,
    /// Of the network.
    pub network: OwnedFd,
}

/// What a taker has said, from a stream that does not block: `None` as long as it is not whole.
#[derive(Debug, Default)]
pub struct Incoming(IncomingLine);

impl Incoming {
    /// Reads what is there now.
    ///
    /// # Errors
    /// `WouldBlock`; `UnexpectedEof` and `InvalidData` from somebody who is no taker; else recvmsg(2)'s.
    pub fn read(&mut self, stream: impl AsFd) -> io::Result<Option<(Name, Theirs)>> {
        let Some((name, fds)) = self.0.read(stream)? else { return Ok(None) };
        let [mounts, network] = <[OwnedFd; 2]>::try_from(fds).map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(Some((name, Theirs { mounts, network })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn name(run_dir: &Path) -> Name {
        let launch = Launch {
            owner: Owner::Containerd("default".into()),
            id: "c1".into(),
            bundle: "/b".into(),
            config: None,
            debug: false,
            log: None,
            events: Some("/e".into()),
        };
        Name::of(&launch, run_dir)
    }

    #[test]
    fn a_name_arrives_with_the_namespaces_of_who_gave_it() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(socket(dir.path())).unwrap();
        let wanted = name(dir.path());
        let theirs = wanted.clone();
        let taker = std::thread::spawn(move || give(&theirs));
        let (stream, _) = listener.accept().unwrap();
        let (got, theirs) = Incoming::default().read(&stream).unwrap().unwrap();
        assert_eq!(got, wanted);
        let of = |file: &File| std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap());
        assert_eq!(of(&File::from(theirs.mounts)), of(&File::open("/proc/self/ns/mnt").unwrap()));
        assert_eq!(of(&File::from(theirs.network)), of(&File::open("/proc/self/ns/net").unwrap()));
        serde_json::to_writer(&stream, &Ready { pid: Some(7), error: None }).unwrap();
        io::Write::write_all(&mut &stream, b"\n").unwrap();
        assert_eq!(taker.join().unwrap().unwrap().pid, Some(7));
    }

    #[test]
    fn whoever_talks_otherwise_is_no_taker() {
        use std::io::Write;
        for said in ["", "{}\n", "rubbish\n", &serde_json::to_string(&name(Path::new("/r"))).unwrap()] {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            ours.write_all(said.as_bytes()).unwrap();
            // Without its end, a name is not whole, and then comes no more.
            drop(ours);
            let mut incoming = Incoming::default();
            let mut result = incoming.read(&theirs);
            while let Ok(None) = result {
                result = incoming.read(&theirs);
            }
            assert!(result.is_err(), "{said}");
        }
        // Whole, but without the descriptors.
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut line = serde_json::to_string(&name(Path::new("/r"))).unwrap();
        line.push('\n');
        ours.write_all(line.as_bytes()).unwrap();
        assert!(Incoming::default().read(&theirs).is_err());
    }
}
