//! What calls the sandbox's localhost from the host. Engines forward a port by connecting to 127.0.0.1 in the sandbox's
//! network namespace (containerd's CRI plugin, CRI-O); but what listens there listens in the guest. So whatever goes to
//! the namespace's own loopback interface is taken here, and the guest is asked to make the connection.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};

use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use nix::sys::socket::{getsockopt, sockopt};
use thiserror::Error;

use crate::netlink::Netlink;
use crate::{Netns, NetnsError, nft};

/// Why ports of the guest's localhost cannot be forwarded.
#[derive(Debug, Error)]
pub enum LocalhostError {
    /// The namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The host's kernel cannot redirect.
    #[error(
        "the host's kernel cannot redirect connections in the network namespace {netns} (nf_tables with nat: {source}); ports of \
         the pod's localhost cannot be forwarded"
    )]
    Redirect {
        /// Which namespace.
        netns: String,
        /// Its words.
        source: io::Error,
    },
    /// A step failed.
    #[error("cannot {what} in the network namespace {netns}: {source}")]
    Os {
        /// What was tried.
        what: &'static str,
        /// Which namespace.
        netns: String,
        /// Why not.
        source: io::Error,
    },
}

/// Takes the connections to a namespace's localhost.
#[derive(Debug)]
pub struct Localhost {
    v4: tokio::net::TcpListener,
    /// None: the host has no IPv6.
    v6: Option<tokio::net::TcpListener>,
}

/// The two listening sockets of one namespace.
type Sockets = (TcpListener, Option<TcpListener>);

impl Localhost {
    /// Begins. Must be called within the runtime; gone with the namespace.
    ///
    /// # Errors
    /// [`LocalhostError`].
    pub fn open(netns: &Netns) -> Result<Localhost, LocalhostError> {
        let name = || netns.name().to_owned();
        let (v4, v6) = netns.run(|| sockets(&name))??;
        let listener = |socket: TcpListener| {
            let ready = socket.set_nonblocking(true).and_then(|()| tokio::net::TcpListener::from_std(socket));
            ready.map_err(|source| LocalhostError::Os { what: "listen on localhost", netns: name(), source })
        };
        Ok(Localhost { v4: listener(v4)?, v6: v6.map(listener).transpose()? })
    }

    /// The next connection, and whom it was meant for.
    ///
    /// # Errors
    /// accept(2)'s, for instance without a free descriptor; more may come later.
    pub async fn accept(&self) -> io::Result<(tokio::net::TcpStream, SocketAddr)> {
        let from_v6 = async {
            match &self.v6 {
                Some(v6) => v6.accept().await,
                None => std::future::pending().await,
            }
        };
        let (stream, _) = tokio::select! {
            accepted = self.v4.accept() => accepted?,
            accepted = from_v6 => accepted?,
        };
        let to = meant_for(&stream)?;
        Ok((stream, to))
    }
}

fn sockets(name: &dyn Fn() -> String) -> Result<Sockets, LocalhostError> {
    let os = |what| move |source| LocalhostError::Os { what, netns: name(), source };
    loopback_up().map_err(os("switch the loopback interface on"))?;
    let v4 = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(os("listen on localhost"))?;
    let v6 = match TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) {
        Ok(v6) => Some(v6),
        // Without IPv6 nobody can call it.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT)) => None,
        Err(e) => return Err(os("listen on localhost")(e)),
    };
    for (family, socket) in [(libc::NFPROTO_IPV4, Some(&v4)), (libc::NFPROTO_IPV6, v6.as_ref())] {
        let Some(socket) = socket else { continue };
        let port = socket.local_addr().map_err(os("listen on localhost"))?.port();
        // Both are below 256.
        let done = nft::redirect_loopback(family as u8, port);
        done.map_err(|source| LocalhostError::Redirect { netns: name(), source })?;
    }
    Ok((v4, v6))
}

fn loopback_up() -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = 1;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    let results = Netlink::new()?.change(vec![(Message::SetLink(link), 0)])?;
    results.into_iter().collect()
}

/// The address before it was redirected.
fn meant_for(stream: &tokio::net::TcpStream) -> io::Result<SocketAddr> {
    match stream.local_addr()? {
        SocketAddr::V4(_) => {
            let to = getsockopt(stream, sockopt::OriginalDst)?;
            let ip = Ipv4Addr::from(u32::from_be(to.sin_addr.s_addr));
            Ok((IpAddr::V4(ip), u16::from_be(to.sin_port)).into())
        }
        SocketAddr::V6(_) => {
            let to = getsockopt(stream, sockopt::Ip6tOriginalDst)?;
            Ok((IpAddr::V6(to.sin6_addr.s6_addr.into()), u16::from_be(to.sin6_port)).into())
        }
    }
}

/// Ends a connection so that the other end takes it for refused: it had been accepted before it was known that nobody is
/// there.
pub fn refuse(stream: tokio::net::TcpStream) {
    // Without lingering, closing is a reset (tcp(7)); if that cannot be had, the other end reads an end.
    drop(stream.into_std().map(|stream: TcpStream| nix::sys::socket::setsockopt(&stream, sockopt::Linger, &NO_LINGER)));
}

const NO_LINGER: libc::linger = libc::linger { l_onoff: 1, l_linger: 0 };
