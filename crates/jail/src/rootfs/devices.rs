//! `/dev` of a container: the nodes and links that every container has, and those of the spec.

use std::os::fd::{AsFd, OwnedFd};

use kata_proto::oci;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Uid, chmodat, chownat, makedev, mknodat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::mounts::Detached;
use super::path::{Missing, resolve, split_last};
use crate::error::{JailError, Step};

/// The nodes that the runtime specification promises: name, major, minor (Documentation/admin-guide/devices.txt).
pub(crate) const DEFAULT_NODES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// A device to make.
struct Node<'a> {
    path: &'a str,
    kind: FileType,
    dev: u64,
    mode: u32,
    uid: u32,
    gid: u32,
}

/// Makes the default nodes and links and the spec's devices below `root`.
pub(crate) fn make(root: &OwnedFd, devices: &[oci::LinuxDevice]) -> Result<(), JailError> {
    for (name, major, minor) in DEFAULT_NODES {
        let path = format!("/dev/{name}");
        let dev = makedev(major, minor);
        node(root, &Node { path: &path, kind: FileType::CharacterDevice, dev, mode: 0o666, uid: 0, gid: 0 })?;
    }
    for device in devices {
        node(root, &from_spec(device)?)?;
    }
    links(root)
}

/// Opens the agent's own `/dev/null` for binding over what is masked, and makes sure that it is one.
pub(crate) fn agent_null() -> Result<OwnedFd, JailError> {
    let what = || "opening /dev/null".to_owned();
    let fd = rustix::fs::open("/dev/null", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).step(what)?;
    let st = statat(&fd, "", AtFlags::EMPTY_PATH).step(what)?;
    if FileType::from_raw_mode(st.st_mode) != FileType::CharacterDevice || st.st_rdev != makedev(1, 3) {
        return Err(JailError::Step {
            step: "/dev/null is not the null device".into(),
            source: nix::errno::Errno::ENODEV,
        });
    }
    Ok(fd)
}

fn from_spec(device: &oci::LinuxDevice) -> Result<Node<'_>, JailError> {
    let kind = match device.Type.as_str() {
        "c" | "u" => FileType::CharacterDevice,
        "b" => FileType::BlockDevice,
        "p" => FileType::Fifo,
        other => return Err(JailError::invalid(format!("device {:?} has the unknown type {other:?}", device.Path))),
    };
    let number = |n: i64| {
        u32::try_from(n).map_err(|_| JailError::invalid(format!("device {:?} has the number {n}", device.Path)))
    };
    let dev = if kind == FileType::Fifo { 0 } else { makedev(number(device.Major)?, number(device.Minor)?) };
    // Without a mode in the spec, runc's.
    let mode = if device.FileMode == 0 { 0o666 } else { device.FileMode & 0o7777 };
    Ok(Node { path: &device.Path, kind, dev, mode, uid: device.UID, gid: device.GID })
}

fn node(root: &OwnedFd, node: &Node<'_>) -> Result<(), JailError> {
    let what = || format!("making device {}", node.path);
    let (parent, name) =
        split_last(node.path).ok_or_else(|| JailError::invalid(format!("device path {:?}", node.path)))?;
    let dir = resolve(root, parent, Missing::MakeDir).step(what)?;
    match mknodat(&dir, name, node.kind, Mode::from_raw_mode(node.mode), node.dev) {
        Ok(()) => {}
        // The image or another mount brought it; a different one in its place would be a lie.
        Err(Errno::EXIST) => {
            let st = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).step(what)?;
            if FileType::from_raw_mode(st.st_mode) != node.kind || st.st_rdev != node.dev {
                unlinkat(&dir, name, AtFlags::empty()).step(what)?;
                mknodat(&dir, name, node.kind, Mode::from_raw_mode(node.mode), node.dev).step(what)?;
            }
        }
        // In a user namespace nobody makes nodes: the agent's own is bound in its place.
        Err(Errno::PERM) => return bind_agents(root, node),
        Err(e) => return Err(e).step(what),
    }
    chmodat(&dir, name, Mode::from_raw_mode(node.mode), AtFlags::empty()).step(what)?;
    chownat(&dir, name, Some(Uid::from_raw(node.uid)), Some(Gid::from_raw(node.gid)), AtFlags::SYMLINK_NOFOLLOW)
        .step(what)
}

fn bind_agents(root: &OwnedFd, node: &Node<'_>) -> Result<(), JailError> {
    let what = || format!("binding device {}", node.path);
    let source =
        rustix::fs::open(node.path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).step(what)?;
    let st = statat(&source, "", AtFlags::EMPTY_PATH).step(what)?;
    if FileType::from_raw_mode(st.st_mode) != node.kind || st.st_rdev != node.dev {
        return Err(Errno::NODEV).step(what);
    }
    let place = resolve(root, node.path, Missing::MakeFile).step(what)?;
    Detached::bind_fd(&source, false).and_then(|m| m.attach(&place)).step(what)?;
    Ok(())
}

fn links(root: &OwnedFd) -> Result<(), JailError> {
    let dev = resolve(root, "/dev", Missing::MakeDir).step(|| "opening the container's /dev".to_owned())?;
    for (name, target) in LINKS {
        link(dev.as_fd(), name, target, false)?;
    }
    if std::path::Path::new("/proc/kcore").exists() {
        link(dev.as_fd(), "core", "/proc/kcore", false)?;
    }
    // An image's own ptmx node would open the wrong instance of devpts.
    link(dev.as_fd(), "ptmx", "pts/ptmx", true)
}

fn link(dev: impl AsFd, name: &str, target: &str, replace: bool) -> Result<(), JailError> {
    let what = || format!("linking /dev/{name}");
    match symlinkat(target, &dev, name) {
        Err(Errno::EXIST) if replace => {
            unlinkat(&dev, name, AtFlags::empty()).step(what)?;
            symlinkat(target, &dev, name).step(what)
        }
        // What the image has there is meant.
        Err(Errno::EXIST) => Ok(()),
        other => other.step(what),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(kind: &str, major: i64, mode: u32) -> oci::LinuxDevice {
        oci::LinuxDevice {
            Path: "/dev/x".into(),
            Type: kind.into(),
            Major: major,
            Minor: 2,
            FileMode: mode,
            ..Default::default()
        }
    }

    #[test]
    fn the_specs_devices_are_read() {
        let d = device("u", 10, 0o20640);
        let n = from_spec(&d).unwrap();
        assert_eq!((n.kind, n.dev, n.mode), (FileType::CharacterDevice, makedev(10, 2), 0o640));
        assert_eq!(from_spec(&device("b", 8, 0)).unwrap().mode, 0o666);
        assert_eq!(from_spec(&device("p", 0, 0)).unwrap().dev, 0);
        assert!(from_spec(&device("x", 1, 0)).is_err());
        assert!(from_spec(&device("c", -1, 0)).is_err());
    }
}
