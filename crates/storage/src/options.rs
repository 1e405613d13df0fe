//! Mount options as fstab and container engines write them.

use kata_sys::process::mount::MountAttrs;
use nix::mount::MsFlags;

/// A list of options taken apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// It is a bind mount; with `true`, a recursive one.
    pub bind: Option<bool>,
    /// For mounts of file systems.
    pub flags: Flags,
    /// For the file system itself, in order.
    pub data: Vec<String>,
}

/// Flags of `mount(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flags(pub MsFlags);

impl Default for Flags {
    fn default() -> Self {
        Flags(MsFlags::empty())
    }
}

/// Each name with the flag that it sets or clears.
const FLAGS: &[(&str, bool, MsFlags)] = &[
    ("ro", true, MsFlags::MS_RDONLY),
    ("rw", false, MsFlags::MS_RDONLY),
    ("nosuid", true, MsFlags::MS_NOSUID),
    ("suid", false, MsFlags::MS_NOSUID),
    ("nodev", true, MsFlags::MS_NODEV),
    ("dev", false, MsFlags::MS_NODEV),
    ("noexec", true, MsFlags::MS_NOEXEC),
    ("exec", false, MsFlags::MS_NOEXEC),
    ("sync", true, MsFlags::MS_SYNCHRONOUS),
    ("async", false, MsFlags::MS_SYNCHRONOUS),
    ("dirsync", true, MsFlags::MS_DIRSYNC),
    ("noatime", true, MsFlags::MS_NOATIME),
    ("atime", false, MsFlags::MS_NOATIME),
    ("nodiratime", true, MsFlags::MS_NODIRATIME),
    ("diratime", false, MsFlags::MS_NODIRATIME),
    ("relatime", true, MsFlags::MS_RELATIME),
    ("norelatime", false, MsFlags::MS_RELATIME),
    ("strictatime", true, MsFlags::MS_STRICTATIME),
    ("nostrictatime", false, MsFlags::MS_STRICTATIME),
];

/// Options that say nothing to us: the share's propagation is its own, and the rest is for fstab.
const IGNORED: &[&str] = &[
    "defaults",
    "private",
    "rprivate",
    "shared",
    "rshared",
    "slave",
    "rslave",
    "unbindable",
    "runbindable",
    "auto",
    "noauto",
    "user",
    "nouser",
    "_netdev",
    "nofail",
];

impl Options {
    /// Takes a list apart.
    pub(crate) fn parse(fstype: &str, list: &[String]) -> Options {
        let mut options = Options { bind: (fstype == "bind").then_some(false), ..Options::default() };
        for option in list.iter().flat_map(|o| o.split(',')).filter(|o| !o.is_empty()) {
            if let Some((_, set, flag)) = FLAGS.iter().find(|(name, ..)| *name == option) {
                options.flags.0.set(*flag, *set);
            } else if option == "bind" {
                options.bind = options.bind.or(Some(false));
            } else if option == "rbind" {
                options.bind = Some(true);
            } else if !IGNORED.contains(&option) {
                options.data.push(option.to_owned());
            }
        }
        options
    }

    /// What is set on a bind mount, besides what the share sets on all.
    pub(crate) fn attrs(&self) -> MountAttrs {
        MountAttrs {
            read_only: self.flags.0.contains(MsFlags::MS_RDONLY),
            nosuid: self.flags.0.contains(MsFlags::MS_NOSUID),
            nodev: self.flags.0.contains(MsFlags::MS_NODEV),
            noexec: self.flags.0.contains(MsFlags::MS_NOEXEC),
            slave: false,
            private: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(fstype: &str, list: &[&str]) -> Options {
        Options::parse(fstype, &list.iter().map(|&o| o.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn an_overlay_keeps_its_own_options() {
        let o = parse("overlay", &["index=off", "workdir=/w", "upperdir=/u", "lowerdir=/a:/b", "ro", "nosuid"]);
        assert_eq!(o.bind, None);
        assert_eq!(o.flags.0, MsFlags::MS_RDONLY | MsFlags::MS_NOSUID);
        assert_eq!(o.data, ["index=off", "workdir=/w", "upperdir=/u", "lowerdir=/a:/b"]);
    }

    #[test]
    fn binds_by_type_or_option() {
        assert_eq!(parse("bind", &["rw"]).bind, Some(false));
        assert_eq!(parse("none", &["rbind", "ro"]).bind, Some(true));
        assert_eq!(parse("bind", &["rbind,rprivate"]), Options { bind: Some(true), ..Options::default() });
        assert!(parse("", &["bind", "ro"]).attrs().read_only);
    }

    #[test]
    fn the_last_of_two_that_contradict_counts() {
        assert_eq!(parse("ext4", &["ro", "rw"]).flags.0, MsFlags::empty());
    }
}
