//! Hearing of changes in a namespace.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::neighbour::NeighbourState;
use netlink_packet_route::route::{RouteHeader, RouteProtocol};
use nix::sys::socket::{MsgFlags, SockFlag, recv};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout_at};

use crate::{Netns, ScanError, is_ours, netlink};

/// Changes come in bursts (an interface, its name, its addresses, its routes): one is over when it has been quiet for this
/// long.
const QUIET: Duration = Duration::from_millis(30);
/// A burst that does not end is told all the same.
const AT_MOST: Duration = Duration::from_millis(500);
/// Links, addresses and routes of both families, neighbours (rtnetlink(7), `RTMGRP_*`).
const GROUPS: i32 = libc::RTMGRP_LINK
    | libc::RTMGRP_NEIGH
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV6_ROUTE;

/// Hears of changes of interfaces, addresses, routes and permanent neighbours, from when it was made until it is dropped.
#[derive(Debug)]
pub struct Watch {
    socket: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
}

impl Watch {
    /// Begins. Must be called within the runtime.
    ///
    /// # Errors
    /// [`ScanError`].
    #[expect(deprecated, reason = "the replacement is unsafe; an OwnedFd keeps its number, which is all that is asked")]
    pub fn new(netns: &Netns) -> Result<Watch, ScanError> {
        let watch = |source| ScanError::Watch { netns: netns.name().to_owned(), source };
        let fd = netns.run(|| netlink::open(GROUPS.cast_unsigned(), SockFlag::SOCK_NONBLOCK))?.map_err(watch)?;
        let socket = AsyncFd::try_new(fd).map_err(|e| watch(e.into_parts().1))?;
        Ok(Watch { socket, buffer: vec![0; 32 << 10] })
    }

    /// Returns after a change, when the burst that it was part of is over. What has changed, a [`crate::scan()`] shows.
    ///
    /// # Errors
    /// The socket's.
    pub async fn changed(&mut self) -> io::Result<()> {
        while !self.heard().await? {}
        let end = Instant::now() + AT_MOST;
        let mut quiet = Instant::now() + QUIET;
        while let Ok(heard) = timeout_at(quiet.min(end), self.heard()).await {
            if heard? {
                quiet = Instant::now() + QUIET;
            }
        }
        Ok(())
    }

    /// The next datagram; whether it matters.
    async fn heard(&mut self) -> io::Result<bool> {
        loop {
            let mut ready = self.socket.readable().await?;
            let buffer = &mut self.buffer;
            let received = ready.try_io(|fd| Ok(recv(fd.get_ref().as_raw_fd(), buffer, MsgFlags::MSG_TRUNC)?));
            return match received {
                Err(_would_block) => continue,
                // So much has changed that the kernel could not keep it all, or not in one piece.
                Ok(Err(e)) if e.raw_os_error() == Some(libc::ENOBUFS) => Ok(true),
                Ok(Ok(n)) if n > self.buffer.len() => Ok(true),
                Ok(Err(e)) => Err(e),
                Ok(Ok(n)) => Ok(netlink::parse(&self.buffer[..n]).iter().any(|m| match &m.payload {
                    NetlinkPayload::InnerMessage(m) => matters(m),
                    _ => true,
                })),
            };
        }
    }
}

/// Not what we did ourselves, and not what a cache remembers or forgets.
fn matters(message: &Message) -> bool {
    let of_ours =
        |link: &LinkMessage| link.attributes.iter().any(|a| matches!(a, LinkAttribute::IfName(name) if is_ours(name)));
    match message {
        Message::NewLink(link) | Message::DelLink(link) => !of_ours(link),
        Message::NewNeighbour(n) => n.header.state == NeighbourState::Permanent,
        // What the kernel makes with an interface or address is heard of with that.
        Message::NewRoute(r) | Message::DelRoute(r) => {
            r.header.table == RouteHeader::RT_TABLE_MAIN && r.header.protocol != RouteProtocol::Kernel
        }
        _ => true,
    }
}
