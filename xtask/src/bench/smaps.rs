//! /proc/pid/smaps: how much memory a process holds in which mapping (proc_pid_smaps(5)).

/// One mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// "rw-s".
    pub permissions: String,
    /// A path, "`[heap]`", or nothing for anonymous memory.
    pub name: String,
    /// KiB held, a page that several share counted in parts.
    pub pss_kib: u64,
}

/// What a VMM's memory is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Split {
    /// KiB: the guest's memory.
    pub guest_kib: u64,
    /// KiB: translated code.
    pub buffer_kib: u64,
    /// KiB: everything else.
    pub rest_kib: u64,
}

/// Reads what the kernel shows.
pub fn parse(text: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        if let Some(mapping) = header(line) {
            mappings.push(mapping);
            continue;
        }
        let Some(mapping) = mappings.last_mut() else { continue };
        let Some((key, value)) = line.split_once(':') else { continue };
        let Some(kib) = value.trim().strip_suffix(" kB").and_then(|kib| kib.parse().ok()) else { continue };
        if key == "Pss" {
            mapping.pss_kib = kib;
        }
    }
    mappings
}

/// "start-end perms offset device inode    name", or `None`: a line about the mapping above.
fn header(line: &str) -> Option<Mapping> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let is_hex = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_hex(start) || !is_hex(end) {
        return None;
    }
    let permissions = fields.next()?.to_owned();
    let name = fields.skip(3).collect::<Vec<&str>>().join(" ");
    Some(Mapping { permissions, name, pss_kib: 0 })
}

/// Divides a process's memory. The guest's memory is told by what our driver and QEMU call it; the buffer for translated
/// code is what is nameless and can be written and executed: one mapping for each of the regions that QEMU cuts it into.
pub fn split(mappings: &[Mapping]) -> Split {
    let is_guest = |m: &Mapping| m.name.contains("kata-ram") || m.name.contains("memory-backend");
    let is_code = |m: &Mapping| m.name.is_empty() && m.permissions.starts_with("rwx");
    let sum: u64 = mappings.iter().map(|m| m.pss_kib).sum();
    let guest_kib = mappings.iter().filter(|m| is_guest(m)).map(|m| m.pss_kib).sum();
    let buffer_kib = mappings.iter().filter(|m| is_code(m)).map(|m| m.pss_kib).sum();
    Split { guest_kib, buffer_kib, rest_kib: sum - guest_kib - buffer_kib }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
7f0000000000-7f0040000000 rw-s 00000000 00:01 4105                       /memfd:kata-ram (deleted)
Size:            1048576 kB
KernelPageSize:        4 kB
Rss:               40000 kB
Pss:               39000 kB
Pss_Dirty:         39000 kB
VmFlags: rd wr sh mr mw me ms
7f0050000000-7f0052000000 rwxp 00000000 00:00 0
Size:              32768 kB
Pss:               20000 kB
7f0053000000-7f0053001000 rwxp 00000000 00:00 0
Size:                  4 kB
Pss:                   4 kB
55d000000000-55d000100000 r-xp 00000000 fe:00 1234                       /usr/bin/a program
Size:               1024 kB
Pss:                 700 kB
";

    #[test]
    fn a_vmms_memory_is_the_guests_translated_code_and_the_rest() {
        let mappings = parse(TEXT);
        assert_eq!(mappings.len(), 4);
        assert_eq!(mappings[0].name, "/memfd:kata-ram (deleted)");
        assert_eq!((mappings[3].name.as_str(), mappings[3].permissions.as_str()), ("/usr/bin/a program", "r-xp"));
        assert_eq!(split(&mappings), Split { guest_kib: 39000, buffer_kib: 20004, rest_kib: 700 });
        assert_eq!(split(&[]), Split::default());
    }

    #[test]
    fn ones_own_memory_is_the_sum_that_the_kernel_gives() {
        let all = parse(&std::fs::read_to_string("/proc/self/smaps").unwrap());
        assert!(all.len() > 5 && all.iter().all(|m| m.permissions.len() == 4));
        assert!(split(&all).rest_kib > 0 && split(&all).guest_kib == 0);
    }
}
