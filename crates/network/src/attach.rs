//! Connecting an interface of the engine's with queues that a VM can be given, and taking that back.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use kata_sys::tun;
use kata_types::MacAddr;
use kata_vmm::NicQueue;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage};
use nix::net::if_::if_nametoindex;
use serde::{Deserialize, Serialize};

use crate::netlink::{Change, Netlink};
use crate::{AttachError, Interface, Kind, Netns, macvtap, our_name, tc};

/// The device that moves packets in the host's kernel.
const VHOST: &str = "/dev/vhost-net";

/// How interfaces become the VM's (`runtime.internetworking_model`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Model {
    /// A tap beside the interface, and traffic control that redirects all packets both ways.
    Tcfilter,
    /// A macvtap on top of the interface.
    Macvtap,
    /// Only taps that somebody has made for the VM are given to it; everything else is left alone.
    None,
}

/// What a VM wants of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attach {
    /// How.
    pub model: Model,
    /// How many queues, one at least.
    pub queues: usize,
    /// Whether to open /dev/vhost-net for each.
    pub vhost: bool,
}

/// What must be taken back: part of the sandbox's state file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The number of the engine's interface.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The name of what we made beside it; `None`: nothing, it was a tap.
    pub ours: Option<String>,
    /// How it was done.
    pub model: Model,
}

/// An interface that is connected. The queues are all there is of the tap: when they are closed, it is gone.
#[derive(Debug)]
pub struct Attached {
    /// The address that the VM's card must have: the interface's.
    pub mac: MacAddr,
    /// For the VM.
    pub queues: Vec<NicQueue>,
    /// For [`detach`].
    pub attachment: Attachment,
}

/// Whether this host moves packets in its kernel.
pub fn vhost_available() -> bool {
    Path::new(VHOST).exists()
}

/// Connects `interface` of `netns`, as the `slot`-th of the sandbox. `None`: the model leaves this interface alone. What a
/// killed predecessor left is replaced.
///
/// # Errors
/// [`AttachError`]; nothing of ours is left.
pub fn attach(netns: &Netns, interface: &Interface, slot: u32, how: Attach) -> Result<Option<Attached>, AttachError> {
    // A tap at whose other end nobody is was made for the VM.
    let direct = interface.kind == Kind::Tap && !interface.has_carrier();
    if how.model == Model::None && !direct {
        return Ok(None);
    }
    let mac = check(interface, how.model, direct)?;
    let work = Work { interface, name: our_name(slot), queues: how.queues.max(1) };
    let taps = netns.run(|| match how.model {
        _ if direct => work.direct(),
        Model::Macvtap => work.macvtap(),
        Model::Tcfilter | Model::None => work.redirected(),
    })??;
    let queues = taps.into_iter().map(|tap| Ok(NicQueue { tap, vhost: how.vhost.then(open_vhost).transpose()? }));
    let attachment = Attachment {
        index: interface.index,
        name: interface.name.clone(),
        ours: (!direct).then_some(work.name),
        model: how.model,
    };
    match queues.collect() {
        Ok(queues) => Ok(Some(Attached { mac, queues, attachment })),
        Err(source) => {
            detach(netns, &attachment)?;
            Err(AttachError::Os { what: "open /dev/vhost-net", interface: interface.name.clone(), source })
        }
    }
}

/// Takes back what [`attach`] did, but for the tap, which goes with its queues. What is gone already is no error: the
/// interface may have left the namespace.
///
/// # Errors
/// [`AttachError`].
pub fn detach(netns: &Netns, attachment: &Attachment) -> Result<(), AttachError> {
    let os = |what| move |source| AttachError::Os { what, interface: attachment.name.clone(), source };
    let Some(ours) = &attachment.ours else { return Ok(()) };
    netns.run(|| match attachment.model {
        Model::Macvtap => remove_macvtap(ours).map_err(os("remove the macvtap")),
        Model::Tcfilter | Model::None => {
            let mut netlink = Netlink::new().map_err(os("open rtnetlink"))?;
            if !tc::is_ours(&mut netlink, attachment.index).map_err(os("list the filters"))? {
                return Ok(());
            }
            one(&mut netlink, tc::remove_ingress(attachment.index)).or_else(gone).map_err(os("remove the redirection"))
        }
    })?
}

/// Whether the guest can have it, this way: its address.
fn check(interface: &Interface, model: Model, direct: bool) -> Result<MacAddr, AttachError> {
    let Some(mac) = interface.mac else {
        let reason = "it has no Ethernet layer, which a network card of a VM needs; use a veth, macvlan or tap";
        return Err(unsupported(interface, reason.to_owned()));
    };
    let reason = if interface.base && !direct {
        "another interface of the namespace is on top of it, whose packets the VM would take"
    } else if model == Model::Macvtap && matches!(interface.kind, Kind::Macvlan | Kind::Macvtap | Kind::Ipvlan) {
        "a macvtap cannot be put on top of it; set runtime.internetworking_model = \"tcfilter\""
    } else {
        return Ok(mac);
    };
    Err(unsupported(interface, reason.to_owned()))
}

fn unsupported(interface: &Interface, reason: String) -> AttachError {
    AttachError::Unsupported { interface: interface.name.clone(), kind: interface.kind.to_string(), reason }
}

fn open_vhost() -> io::Result<OwnedFd> {
    File::options().read(true).write(true).open(VHOST).map(Into::into)
}

fn one(netlink: &mut Netlink, change: Change) -> io::Result<()> {
    netlink.change(vec![change])?.into_iter().collect()
}

/// What is not there need not be removed.
fn gone(e: io::Error) -> io::Result<()> {
    // "No such device", and traffic control's three ways of saying that there is no such discipline.
    let absent = matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ENOENT | libc::EINVAL | libc::EOPNOTSUPP));
    if absent { Ok(()) } else { Err(e) }
}

fn remove_macvtap(name: &str) -> io::Result<()> {
    match if_nametoindex(name) {
        Ok(index) => one(&mut Netlink::new()?, macvtap::remove(index)).or_else(gone),
        Err(nix::errno::Errno::ENODEV) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// The steps, on a thread that is in the namespace.
struct Work<'a> {
    interface: &'a Interface,
    /// What we call what we make.
    name: String,
    queues: usize,
}

impl Work<'_> {
    fn os(&self, what: &'static str) -> impl Fn(io::Error) -> AttachError + use<> {
        let interface = self.interface.name.clone();
        move |source| AttachError::Os { what, interface: interface.clone(), source }
    }

    fn open_taps(&self, name: &str, many: bool) -> io::Result<Vec<OwnedFd>> {
        (0..if many { self.queues } else { 1 }).map(|_| tun::open_queue(name, many)).collect()
    }

    /// A tap of the engine's, of as many queues as it was made for.
    fn direct(&self) -> Result<Vec<OwnedFd>, AttachError> {
        let name = &self.interface.name;
        let opened = match self.open_taps(name, self.queues > 1) {
            // Whether there may be several is fixed when it is made.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                self.open_taps(name, self.queues == 1).map(|mut taps| {
                    taps.truncate(self.queues);
                    taps
                })
            }
            other => other,
        };
        opened.map_err(self.os("open the tap"))
    }

    /// A tap of ours, and everything that arrives at either leaves through the other.
    fn redirected(&self) -> Result<Vec<OwnedFd>, AttachError> {
        let taps = self.open_taps(&self.name, self.queues > 1).map_err(self.os("open a tap"))?;
        let tap = if_nametoindex(self.name.as_str()).map_err(|e| self.os("find the tap")(e.into()))?;
        let mut netlink = Netlink::new().map_err(self.os("open rtnetlink"))?;
        let mut done = self.redirect(&mut netlink, tap)?;
        if is(&done.interface, libc::EEXIST) {
            // What a killed sandbox left may go, nobody else's.
            if !tc::is_ours(&mut netlink, self.interface.index).map_err(self.os("list the filters"))? {
                return Err(AttachError::Busy { interface: self.interface.name.clone() });
            }
            let again = vec![tc::remove_ingress(self.interface.index), tc::remove_ingress(tap)];
            for removed in netlink.change(again).map_err(self.os("redirect packets"))? {
                removed.map_err(self.os("remove what a killed sandbox has left"))?;
            }
            done = self.redirect(&mut netlink, tap)?;
        }
        if let Err(e) = done.all() {
            if done.interface.is_ok()
                && let Err(e) = one(&mut netlink, tc::remove_ingress(self.interface.index))
            {
                tracing::warn!(interface = self.interface.name, "a redirection to nowhere is left: {e}");
            }
            return Err(match e.raw_os_error() {
                Some(libc::ENOENT | libc::EOPNOTSUPP) => unsupported(
                    self.interface,
                    format!("the host's kernel has no u32 filter, mirred action or ingress discipline ({e})"),
                ),
                _ => self.os("redirect packets")(e),
            });
        }
        Ok(taps)
    }

    /// All changes at once.
    fn redirect(&self, netlink: &mut Netlink, tap: u32) -> Result<Done, AttachError> {
        let theirs = self.interface.index;
        let changes = vec![
            no_ipv6(tap),
            up(tap, self.interface.mtu),
            tc::add_ingress(theirs),
            tc::add_ingress(tap),
            tc::redirect(theirs, tap),
            tc::redirect(tap, theirs),
        ];
        let results = netlink.change(changes).map_err(self.os("redirect packets"))?;
        let mut results = results.into_iter();
        // Without IPv6 in the host there is nothing to switch off.
        let quiet = results.next().unwrap_or(Ok(())).or_else(|e| {
            if matches!(e.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) { Ok(()) } else { Err(e) }
        });
        let up = results.next().unwrap_or(Ok(()));
        let interface = results.next().unwrap_or(Ok(()));
        Ok(Done { interface, rest: [quiet, up].into_iter().chain(results).collect() })
    }

    fn macvtap(&self) -> Result<Vec<OwnedFd>, AttachError> {
        remove_macvtap(&self.name).map_err(self.os("remove what a killed sandbox has left"))?;
        let mut netlink = Netlink::new().map_err(self.os("open rtnetlink"))?;
        one(&mut netlink, macvtap::create(&self.name, self.interface.index)).map_err(|e| match e.raw_os_error() {
            Some(libc::EOPNOTSUPP) => {
                let reason = "the host's kernel has no macvtap; set runtime.internetworking_model = \"tcfilter\"";
                unsupported(self.interface, reason.to_owned())
            }
            _ => self.os("make a macvtap")(e),
        })?;
        let opened: io::Result<Vec<OwnedFd>> = (|| {
            let index = if_nametoindex(self.name.as_str())?;
            let mut results = netlink.change(vec![no_ipv6(index), up(index, self.interface.mtu)])?;
            results.pop().unwrap_or(Ok(()))?;
            (0..self.queues).map(|_| macvtap::open_queue(&self.name)).collect()
        })();
        opened.map_err(|e| {
            if let Err(e) = remove_macvtap(&self.name) {
                tracing::warn!(interface = self.name, "a macvtap is left: {e}");
            }
            self.os("open the macvtap")(e)
        })
    }
}

/// What came of [`Work::redirect`].
struct Done {
    /// The discipline on the engine's interface.
    interface: io::Result<()>,
    rest: Vec<io::Result<()>>,
}

impl Done {
    /// The first that failed.
    fn all(&self) -> io::Result<()> {
        let copy = |e: &io::Error| {
            e.raw_os_error().map_or_else(|| io::Error::other(e.to_string()), io::Error::from_raw_os_error)
        };
        std::iter::once(&self.interface).chain(&self.rest).try_for_each(|r| r.as_ref().copied().map_err(copy))
    }
}

fn is(result: &io::Result<()>, errno: i32) -> bool {
    result.as_ref().is_err_and(|e| e.raw_os_error() == Some(errno))
}

fn link(index: u32) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link
}

/// The host's own stack stays silent on it: no address of its own, so nothing is announced or asked.
fn no_ipv6(index: u32) -> Change {
    let mut link = link(index);
    let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    link.attributes = vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])])];
    (Message::SetLink(link), 0)
}

/// Switches it on, with this MTU.
fn up(index: u32, mtu: u32) -> Change {
    let mut link = link(index);
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    link.attributes = vec![LinkAttribute::Mtu(mtu)];
    (Message::SetLink(link), 0)
}
