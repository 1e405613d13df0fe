//! The options of a mount: mount(8)'s words, sorted by what the kernel wants them for.

use kata_sys::jail::MountAttr;

use crate::error::JailError;

// MOUNT_ATTR_* of linux/mount.h.
const RDONLY: u64 = 0x1;
const NOSUID: u64 = 0x2;
const NODEV: u64 = 0x4;
const NOEXEC: u64 = 0x8;
const ATIME: u64 = 0x70;
const RELATIME: u64 = 0;
const NOATIME: u64 = 0x10;
const STRICTATIME: u64 = 0x20;
const NODIRATIME: u64 = 0x80;
const NOSYMFOLLOW: u64 = 0x20_0000;

/// One mount's options.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct MountOptions {
    /// `Some` for a bind mount; true with what is mounted below the source.
    pub bind: Option<bool>,
    /// Change what is mounted there already.
    pub remount: bool,
    /// For the mount itself.
    pub attr: MountAttr,
    /// For it and all below it.
    pub recursive_attr: MountAttr,
    /// `MS_SHARED` and so on, and whether for all below it too; one after the other.
    pub propagation: Vec<(u64, bool)>,
    /// Words for the filesystem, and `key=value` pairs.
    pub data: Vec<String>,
    /// Fill a new tmpfs with what it hides.
    pub copy_up: bool,
}

impl MountOptions {
    /// Sorts a list of options.
    pub(crate) fn parse<S: AsRef<str>>(options: &[S]) -> Result<Self, JailError> {
        let mut out = MountOptions::default();
        for option in options {
            out.take(option.as_ref())?;
        }
        Ok(out)
    }

    fn take(&mut self, option: &str) -> Result<(), JailError> {
        match option {
            "" | "defaults" | "loud" | "silent" | "norelatime" => {}
            "bind" => self.bind = Some(self.bind.unwrap_or(false)),
            "rbind" => self.bind = Some(true),
            "remount" => self.remount = true,
            "tmpcopyup" => self.copy_up = true,
            "notmpcopyup" => self.copy_up = false,
            // The superblock's own flags; the filesystem takes the words as they are.
            "sync" | "async" | "dirsync" | "mand" | "nomand" | "lazytime" | "nolazytime" | "iversion"
            | "noiversion" => {
                self.data.push(option.to_owned());
            }
            "idmap" | "ridmap" => return Err(JailError::unsupported(format!("mount option {option:?}"))),
            // Notes for programs in user space (mount(8)).
            o if o.starts_with("x-") || o.starts_with("X-") => {}
            o => {
                if let Some((flag, recursive)) = propagation(o) {
                    self.propagation.push((flag, recursive));
                } else if let Some((set, clear)) = attribute(o) {
                    change(&mut self.attr, set, clear);
                } else if let Some((set, clear)) = o.strip_prefix('r').and_then(attribute) {
                    change(&mut self.recursive_attr, set, clear);
                } else {
                    self.data.push(o.to_owned());
                }
            }
        }
        Ok(())
    }

    /// Whether the mount shall be read-only.
    pub(crate) fn read_only(&self) -> bool {
        self.attr.set & RDONLY != 0 || self.recursive_attr.set & RDONLY != 0
    }

    /// Takes the wish for a read-only mount out, to be fulfilled later; true if there was one.
    pub(crate) fn defer_read_only(&mut self) -> bool {
        let wanted = self.read_only();
        self.attr.set &= !RDONLY;
        self.recursive_attr.set &= !RDONLY;
        wanted
    }
}

/// Read-only, and nothing else.
pub(crate) fn read_only() -> MountAttr {
    MountAttr { set: RDONLY, ..Default::default() }
}

/// Reads `rootfsPropagation` and the like.
pub(crate) fn propagation(word: &str) -> Option<(u64, bool)> {
    Some(match word {
        "shared" => (libc::MS_SHARED, false),
        "rshared" => (libc::MS_SHARED, true),
        "slave" => (libc::MS_SLAVE, false),
        "rslave" => (libc::MS_SLAVE, true),
        "private" => (libc::MS_PRIVATE, false),
        "rprivate" => (libc::MS_PRIVATE, true),
        "unbindable" => (libc::MS_UNBINDABLE, false),
        "runbindable" => (libc::MS_UNBINDABLE, true),
        _ => return None,
    })
}

/// The bits that a word sets and clears.
fn attribute(word: &str) -> Option<(u64, u64)> {
    Some(match word {
        "ro" => (RDONLY, 0),
        "rw" => (0, RDONLY),
        "nosuid" => (NOSUID, 0),
        "suid" => (0, NOSUID),
        "nodev" => (NODEV, 0),
        "dev" => (0, NODEV),
        "noexec" => (NOEXEC, 0),
        "exec" => (0, NOEXEC),
        "nodiratime" => (NODIRATIME, 0),
        "diratime" => (0, NODIRATIME),
        "nosymfollow" => (NOSYMFOLLOW, 0),
        "symfollow" => (0, NOSYMFOLLOW),
        // One field of three values. mount(2) without any of them means relatime.
        "noatime" => (NOATIME, ATIME),
        "strictatime" => (STRICTATIME, ATIME),
        "relatime" | "atime" | "nostrictatime" => (RELATIME, ATIME),
        _ => return None,
    })
}

/// A later word wins over an earlier one.
fn change(attr: &mut MountAttr, set: u64, clear: u64) {
    if clear == ATIME {
        attr.set = attr.set & !ATIME | set;
        attr.clear |= ATIME;
    } else {
        attr.set = attr.set & !clear | set;
        attr.clear = attr.clear & !set | clear;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &str) -> MountOptions {
        MountOptions::parse(&options.split(',').collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn words_go_where_they_belong() {
        let o = parse("nosuid,strictatime,mode=755,size=65536k,sync");
        assert_eq!(o.attr.set, NOSUID | STRICTATIME);
        assert_eq!(o.attr.clear, ATIME);
        assert_eq!(o.data, ["mode=755", "size=65536k", "sync"]);
        assert_eq!(o.bind, None);

        let o = parse("rbind,ro,rslave,x-systemd.automount");
        assert_eq!(o.bind, Some(true));
        assert!(o.read_only());
        assert_eq!(o.propagation, [(libc::MS_SLAVE, true)]);
        assert!(o.data.is_empty());
        assert_eq!(parse("rbind,bind").bind, Some(true));
    }

    #[test]
    fn the_last_of_two_contradicting_words_wins() {
        assert!(!parse("ro,rw").read_only());
        assert!(parse("rw,ro").read_only());
        assert_eq!(parse("noatime,strictatime").attr.set, STRICTATIME);
        assert_eq!(parse("noatime,relatime").attr, MountAttr { clear: ATIME, ..Default::default() });
        assert_eq!(parse("nodev,dev").attr, MountAttr { clear: NODEV, ..Default::default() });
    }

    #[test]
    fn an_r_before_a_word_means_all_below() {
        let o = parse("rbind,rro,rnosuid");
        assert_eq!(o.recursive_attr.set, RDONLY | NOSUID);
        assert_eq!(o.attr.set, 0);
        let mut o = parse("ro,rro");
        assert!(o.defer_read_only() && !o.read_only());
        assert!(!o.defer_read_only());
    }

    #[test]
    fn id_mapped_mounts_are_refused() {
        assert!(matches!(MountOptions::parse(&["idmap"]), Err(JailError::Unsupported { .. })));
    }
}
