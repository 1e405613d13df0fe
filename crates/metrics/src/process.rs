//! What /proc tells of a process and of network devices, as families (proc_pid_stat(5), proc_pid_status(5), proc_pid_io(5)).

use crate::{Kind, Page};

/// How the items of an io_stat family are spelled: upstream's host and guest differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Items {
    /// `readbytes`: the host's.
    Joined,
    /// `read_bytes`: the guest's, as the kernel spells them.
    Kernels,
}

/// The text of a process's files in /proc. What could not be read is empty, and not told.
#[derive(Debug, Clone, Default)]
pub struct Process {
    /// `stat`.
    pub stat: String,
    /// `status`.
    pub status: String,
    /// `io`.
    pub io: String,
    /// How many entries `fd` has.
    pub fds: Option<usize>,
}

/// `utime`, `stime`, `cutime`, `cstime` in clock ticks, and the start in ticks since boot: fields 14 to 17 and 22 of
/// /proc/pid/stat.
pub fn proc_stat(text: &str) -> Option<([u64; 4], u64)> {
    // The name may hold spaces and parentheses: fields are counted after the last ')'; the next one is field 3.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let field = |n: usize| fields.get(n - 3)?.parse::<u64>().ok();
    Some(([field(14)?, field(15)?, field(16)?, field(17)?], field(22)?))
}

/// The lines of `status` that upstream tells, in lower case: sizes in KiB, and context switches.
const STATUS: &[&str] = &[
    "vmpeak",
    "vmsize",
    "vmlck",
    "vmpin",
    "vmhwm",
    "vmrss",
    "rssanon",
    "rssfile",
    "rssshmem",
    "vmdata",
    "vmstk",
    "vmexe",
    "vmlib",
    "vmpte",
    "vmswap",
    "hugetlbpages",
    "voluntary_ctxt_switches",
    "nonvoluntary_ctxt_switches",
];

impl Process {
    /// A number of `status`: "VmRSS", "Threads".
    pub fn status_number(&self, key: &str) -> Option<u64> {
        let line = self.status.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
        line.split_ascii_whitespace().next()?.parse().ok()
    }

    /// Writes `<prefix>_threads`, `_fds`, `_proc_status`, `_proc_stat` and `_io_stat`. `who` is for the help: "the VMM".
    pub fn write(&self, page: &mut Page, prefix: &str, who: &str, items: Items) {
        fn begin<'p>(page: &'p mut Page, prefix: &str, name: &str, what: &str, who: &str) -> crate::Family<'p> {
            page.family_named(format!("{prefix}_{name}"), &format!("{what} of {who}."), Kind::Gauge)
        }
        if let Some(threads) = self.status_number("Threads") {
            begin(page, prefix, "threads", "Threads", who).sample(&[], threads);
        }
        if let Some(fds) = self.fds {
            begin(page, prefix, "fds", "Open file descriptors", who).sample(&[], fds);
        }
        let mut status = begin(page, prefix, "proc_status", "Memory in KiB, and context switches", who);
        for line in self.status.lines() {
            let Some((key, value)) = line.split_once(':') else { continue };
            let (key, value) = (key.to_ascii_lowercase(), value.split_ascii_whitespace().next());
            if let Some(value) = value.filter(|v| STATUS.contains(&key.as_str()) && v.parse::<u64>().is_ok()) {
                status.sample(&[("item", &key)], value);
            }
        }
        let mut stat = begin(page, prefix, "proc_stat", "CPU time in clock ticks", who);
        if let Some((times, _)) = proc_stat(&self.stat) {
            for (item, time) in ["utime", "stime", "cutime", "cstime"].iter().zip(times) {
                stat.sample(&[("item", item)], time);
            }
        }
        let mut io = begin(page, prefix, "io_stat", "Reads and writes", who);
        for line in self.io.lines() {
            let Some((key, value)) = line.split_once(':') else { continue };
            let key = if items == Items::Joined { key.replace('_', "") } else { key.to_owned() };
            if let Ok(value) = value.trim().parse::<u64>() {
                io.sample(&[("item", &key)], value);
            }
        }
    }
}

/// The columns of /proc/net/dev.
const NETDEV: [&str; 16] = [
    "recv_bytes",
    "recv_packets",
    "recv_errs",
    "recv_drop",
    "recv_fifo",
    "recv_frame",
    "recv_compressed",
    "recv_multicast",
    "sent_bytes",
    "sent_packets",
    "sent_errs",
    "sent_drop",
    "sent_fifo",
    "sent_colls",
    "sent_carrier",
    "sent_compressed",
];

/// Writes the counters of every network device in the text of /proc/net/dev.
pub fn netdev(page: &mut Page, name: &'static str, help: &str, text: &str) {
    let mut family = page.family(name, help, Kind::Gauge);
    for line in text.lines() {
        let Some((interface, counters)) = line.split_once(':') else { continue };
        for (item, value) in NETDEV.iter().zip(counters.split_ascii_whitespace()) {
            if let Ok(value) = value.parse::<u64>() {
                family.sample(&[("interface", interface.trim()), ("item", item)], value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_by_its_files() {
        let process = Process {
            stat: "7 (a ) b) S 1 7 7 0 -1 4194560 1 0 0 0 11 12 13 14 20 0 3 0 99 5 6".into(),
            status: "Name:\tx\nVmRSS:\t  512 kB\nThreads:\t3\nSeccomp:\t0\nvoluntary_ctxt_switches:\t9\n".into(),
            io: "rchar: 1\nread_bytes: 2\ncancelled_write_bytes: 3\n".into(),
            fds: Some(4),
        };
        assert_eq!(proc_stat(&process.stat), Some(([11, 12, 13, 14], 99)));
        assert_eq!(process.status_number("VmRSS"), Some(512));
        let write = |items| {
            let mut page = Page::default();
            process.write(&mut page, "kata_hypervisor", "the VMM", items);
            page.finish()
        };
        let text = write(Items::Joined);
        for line in [
            "kata_hypervisor_threads 3",
            "kata_hypervisor_fds 4",
            "kata_hypervisor_proc_status{item=\"vmrss\"} 512",
            "kata_hypervisor_proc_status{item=\"voluntary_ctxt_switches\"} 9",
            "kata_hypervisor_proc_stat{item=\"cstime\"} 14",
            "kata_hypervisor_io_stat{item=\"cancelledwritebytes\"} 3",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
        assert!(!text.contains("seccomp"));
        assert!(write(Items::Kernels).contains("item=\"read_bytes\"} 2"));
        assert_eq!(proc_stat("nonsense"), None);
    }

    #[test]
    fn devices_are_told_by_column() {
        let mut page = Page::default();
        let text = "Inter-| Receive\n face |bytes\n  eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n";
        netdev(&mut page, "kata_guest_netdev_stat", "Devices.", text);
        let text = page.finish();
        assert!(text.contains("{interface=\"eth0\",item=\"recv_bytes\"} 1\n"), "{text}");
        assert!(text.contains("{interface=\"eth0\",item=\"sent_compressed\"} 16\n"), "{text}");
        assert_eq!(text.lines().count(), 18);
    }
}
