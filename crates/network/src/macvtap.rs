//! The model `macvtap`: an interface with a file on top of the engine's, which gives it all that arrives.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{InfoData, InfoKind, InfoMacVtap, LinkAttribute, LinkInfo, LinkMessage, MacVlanMode};
use rustix::fs::{Dir, FileType, Mode, OFlags, makedev, mknodat, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use crate::netlink::Change;

/// Makes one on `parent`. It passes the parent's address through: no packet is the parent's own any more, and nothing of
/// the parent changes but that it listens to all.
pub(crate) fn create(name: &str, parent: u32) -> Change {
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Link(parent),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::MacVtap),
            LinkInfo::Data(InfoData::MacVtap(vec![InfoMacVtap::Mode(MacVlanMode::Passthrough)])),
        ]),
    ];
    (Message::NewLink(link), NLM_F_CREATE | NLM_F_EXCL)
}

/// Takes it away.
pub(crate) fn remove(index: u32) -> Change {
    let mut link = LinkMessage::default();
    link.header.index = index;
    (Message::DelLink(link), 0)
}

/// Opens a queue of the one called `name` in this thread's network namespace. Its device node may be anywhere or nowhere:
/// we make one where nobody else sees it.
pub(crate) fn open_queue(name: &str) -> io::Result<OwnedFd> {
    let (major, minor) = device(name)?;
    let private = mount("tmpfs")?;
    mknodat(&private, "tap", FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, makedev(major, minor))?;
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(openat(&private, "tap", flags, Mode::empty())?)
}

/// A file system of our own that is mounted nowhere.
fn mount(kind: &str) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

/// Its device number, which only the sysfs of its own network namespace tells (Documentation/ABI/testing/sysfs-class-net).
fn device(name: &str) -> io::Result<(u32, u32)> {
    let sysfs = mount("sysfs")?;
    let path = format!("class/net/{name}/macvtap");
    let dir = openat(&sysfs, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let node = Dir::read_from(&dir)?
        .filter_map(Result::ok)
        .find(|e| e.file_name().to_bytes().starts_with(b"tap"))
        .ok_or(io::ErrorKind::NotFound)?;
    let node = openat(&dir, node.file_name(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = String::new();
    let file = openat(node.as_fd(), "dev", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    File::from(file).take(32).read_to_string(&mut text)?;
    let (major, minor) = text.trim().split_once(':').ok_or(io::ErrorKind::InvalidData)?;
    let number = |text: &str| text.parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
    Ok((number(major)?, number(minor)?))
}
