//! The container's `/etc/passwd`: where a user is at home. Read without any name service, which would run code of the
//! container in a process that still has the agent's rights.

use std::io::Read;

use rustix::fs::{FileType, Mode, OFlags, fstat, open};

/// More is no user database.
const MAX_BYTES: u64 = 4 << 20;

/// The home directory of `uid` by the calling process's `/etc/passwd`, if it has one.
pub(crate) fn home(uid: u32) -> Option<String> {
    // Not waiting: it could be a fifo.
    let fd = open("/etc/passwd", OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())
        .ok()?;
    if FileType::from_raw_mode(fstat(&fd).ok()?.st_mode) != FileType::RegularFile {
        return None;
    }
    let mut bytes = Vec::new();
    std::fs::File::from(fd).take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    parse_home(&bytes, uid)
}

/// passwd(5): `name:password:uid:gid:gecos:home:shell`.
fn parse_home(passwd: &[u8], uid: u32) -> Option<String> {
    passwd.split(|b| *b == b'\n').find_map(|line| {
        let line = std::str::from_utf8(line).ok()?;
        let mut fields = line.split(':');
        let found = fields.nth(2)?.parse::<u32>().ok()? == uid;
        let home = fields.nth(2)?;
        (found && !home.is_empty()).then(|| home.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::parse_home;

    #[test]
    fn homes_are_found_by_number() {
        let text = b"root:x:0:0:root:/root:/bin/sh\n\n# c\nbad:x:y:0::/b:\n\xff:x:5:5::/z:\nwww:x:33:33::/var/www:/bin/false\nshort:x:7";
        assert_eq!(parse_home(text, 0).as_deref(), Some("/root"));
        assert_eq!(parse_home(text, 33).as_deref(), Some("/var/www"));
        assert_eq!(parse_home(text, 7), None);
        assert_eq!(parse_home(text, 5), None);
        assert_eq!(parse_home(b"", 0), None);
    }
}
