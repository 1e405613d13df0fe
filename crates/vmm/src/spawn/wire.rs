//! What the starting process and the spawn helper say to each other: whole messages over a SOCK_SEQPACKET pair.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

/// The longest message. The kernel's default socket buffer holds it.
const MAX_MESSAGE: usize = 128 * 1024;
/// The most descriptors in one message (the kernel's SCM_MAX_FD is 253).
const MAX_FDS: usize = 250;

/// The whole description of a program and its jail.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Plan {
    /// Our pid: the helper gives up if it has another parent.
    pub parent: u32,
    pub program: PathBuf,
    /// With the program's name as the first.
    pub args: Vec<String>,
    pub env: Vec<String>,
    /// The numbers for the descriptors that came with the plan, in their order.
    pub fds: Vec<RawFd>,
    pub mount_ns: bool,
    pub pid_ns: bool,
    pub net_ns: bool,
    pub ipc_ns: bool,
    pub root: Option<Root>,
    pub cgroups: Vec<PathBuf>,
    pub user: Option<(u32, u32)>,
    pub capabilities: Option<Vec<String>>,
    pub rlimits: Vec<RLimit>,
    pub no_new_privs: bool,
}

/// A root directory made of read-only views of the host's files and of device nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Files and directories to show.
    pub binds: Vec<Bind>,
    /// Character devices to make, owned by the program's user: copies of the host's node at this path.
    pub devices: Vec<PathBuf>,
    /// Whether the program sees its own processes (and no others: it must be in a pid namespace of its own) in /proc. It
    /// can then open its descriptors by path.
    pub proc: bool,
}

/// A file or directory of the host shown read-only, without set-id and devices, with all that is mounted below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// On the host. A symbolic link becomes the same link, not what it points to, if `follow` is off.
    pub source: PathBuf,
    /// In the new root; absolute.
    pub target: PathBuf,
    /// Whether a symbolic link at `source` is followed.
    pub follow: bool,
    /// Whether it is fine that `source` does not exist.
    pub optional: bool,
}

impl Bind {
    /// A path shown at the same place, if it exists; links stay links.
    pub fn same(path: impl Into<PathBuf>) -> Bind {
        let path = path.into();
        Bind { source: path.clone(), target: path, follow: false, optional: true }
    }

    /// A file or directory that must exist, shown elsewhere.
    pub fn at(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Bind {
        Bind { source: source.into(), target: target.into(), follow: true, optional: false }
    }
}

/// A resource limit; soft and hard are set alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RLimit {
    /// Open files.
    NoFile(u64),
    /// Bytes of core dumps.
    Core(u64),
    /// Bytes of locked memory.
    MemLock(u64),
}

/// What the helper says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum FromHelper {
    /// The program runs as this sibling of the helper's.
    Sibling { pid: i32 },
    /// Everything is set up; waits for the word to execute.
    Ready,
    /// A step failed.
    Failed { step: String, what: String, errno: i32 },
    /// Nothing more: the program is executed, or the helper is dead. (Never sent; it is the end of the stream.)
    Closed,
}

/// The two ends: ours does not block.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}

/// Sends the plan with its descriptors.
pub(super) fn send_plan(socket: BorrowedFd<'_>, plan: &Plan, fds: &[(RawFd, OwnedFd)]) -> io::Result<()> {
    let message = serde_json::to_vec(plan)?;
    if message.len() > MAX_MESSAGE || fds.len() > MAX_FDS {
        return Err(io::Error::from(io::ErrorKind::ArgumentListTooLong));
    }
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(|(_, fd)| fd.as_fd()).collect();
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::from(io::ErrorKind::ArgumentListTooLong));
    }
    sendmsg(socket, &[IoSlice::new(&message)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The helper's side of [`send_plan`]. Blocks.
pub(super) fn receive_plan(socket: BorrowedFd<'_>) -> io::Result<(Plan, Vec<(RawFd, OwnedFd)>)> {
    let mut message = vec![0; MAX_MESSAGE];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(socket, &mut [IoSliceMut::new(&mut message)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = part {
            fds.extend(received);
        }
    }
    let plan: Plan = serde_json::from_slice(&message[..got.bytes])?;
    if plan.fds.len() != fds.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    let numbered = plan.fds.iter().copied().zip(fds).collect();
    Ok((plan, numbered))
}

/// Says something to the starting process.
pub(super) fn say(socket: BorrowedFd<'_>, message: &FromHelper) -> io::Result<()> {
    rustix::net::send(socket, &serde_json::to_vec(message)?, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Hears the helper's next message.
pub(super) async fn receive(socket: &AsyncFd<OwnedFd>) -> io::Result<FromHelper> {
    loop {
        let mut ready = socket.readable().await?;
        let read = ready.try_io(|socket| {
            let mut message = vec![0; MAX_MESSAGE];
            match rustix::net::recv(socket.get_ref(), &mut message[..], RecvFlags::empty()) {
                Ok((_, 0)) | Err(rustix::io::Errno::CONNRESET) => Ok(None),
                Ok((_, n)) => {
                    message.truncate(n);
                    Ok(Some(message))
                }
                Err(e) => Err(e.into()),
            }
        });
        match read {
            Ok(Ok(None)) => return Ok(FromHelper::Closed),
            Ok(Ok(Some(message))) => return Ok(serde_json::from_slice(&message)?),
            Ok(Err(e)) => return Err(e),
            Err(_would_block) => {}
        }
    }
}

/// The word to execute.
pub(super) fn go(socket: BorrowedFd<'_>) -> io::Result<()> {
    rustix::net::send(socket, b"go", SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Waits for the word; `BrokenPipe` if the starting process is gone.
pub(super) fn wait_go(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut word = [0; 8];
    match rustix::net::recv(socket, &mut word[..], RecvFlags::empty())? {
        (_, 0) => Err(io::ErrorKind::BrokenPipe.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_crosses_with_its_descriptors() {
        let (ours, theirs) = pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let plan = Plan { program: "/bin/true".into(), fds: vec![7], pid_ns: true, ..Plan::default() };
        send_plan(ours.as_fd(), &plan, &[(7, file.into())]).unwrap();
        let (got, fds) = receive_plan(theirs.as_fd()).unwrap();
        assert_eq!((got.program, got.pid_ns), (PathBuf::from("/bin/true"), true));
        assert_eq!(fds.len(), 1);
        assert_eq!(fds[0].0, 7);
    }

    #[test]
    fn a_plan_that_is_too_long_is_refused() {
        let (ours, _theirs) = pair().unwrap();
        let plan = Plan { args: vec!["x".repeat(MAX_MESSAGE)], ..Plan::default() };
        assert!(send_plan(ours.as_fd(), &plan, &[]).is_err());
    }
}
