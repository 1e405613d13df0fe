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

/// What a process's files do not say, and its standard families need.
#[derive(Debug, Clone, Copy)]
pub struct Around<'a> {
    /// Clock ticks in a second (sysconf(3), `_SC_CLK_TCK`).
    pub ticks_per_second: u64,
    /// The text of /proc/stat.
    pub machine: &'a str,
    /// The most files that the process may have open; `None`: as many as it likes.
    pub max_fds: Option<u64>,
}

impl Around<'_> {
    /// This many ticks, in seconds.
    pub fn seconds(&self, ticks: u64) -> f64 {
        ticks as f64 / self.ticks_per_second as f64
    }

    /// Seconds since the epoch at which the machine has booted (proc_stat(5), btime).
    fn boot(&self) -> Option<f64> {
        self.machine.lines().find_map(|l| l.strip_prefix("btime "))?.trim().parse().ok()
    }
}

impl Process {
    /// Writes the families that any process of Prometheus' has, `<prefix>_process_cpu_seconds_total` and so on. `who` is for the
    /// help: "the agent".
    pub fn write_standard(&self, page: &mut Page, prefix: &str, who: &str, around: Around<'_>) {
        let mut single = |name: &str, help: String, kind, value: &dyn std::fmt::Display| {
            page.family_named(format!("{prefix}_process_{name}"), &help, kind).sample(&[], value);
        };
        let gauge = Kind::Gauge;
        if let Some(([utime, stime, ..], start)) = proc_stat(&self.stat) {
            let seconds = around.seconds(utime + stime);
            single("cpu_seconds_total", format!("CPU time of {who} in seconds."), Kind::Counter, &seconds);
            if let Some(boot) = around.boot() {
                let at = boot + around.seconds(start);
                single("start_time_seconds", format!("When {who} began, since the epoch."), gauge, &at);
            }
        }
        for (key, name, what) in
            [("VmRSS", "resident_memory_bytes", "Resident"), ("VmSize", "virtual_memory_bytes", "Virtual")]
        {
            if let Some(kib) = self.status_number(key) {
                single(name, format!("{what} memory of {who}."), gauge, &(kib * 1024));
            }
        }
        if let Some(fds) = self.fds {
            single("open_fds", format!("Open file descriptors of {who}."), gauge, &fds);
        }
        if let Some(most) = around.max_fds {
            single("max_fds", format!("The most file descriptors that {who} may have."), gauge, &most);
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
    fn the_standard_families_are_in_seconds_and_bytes() {
        let process = Process {
            stat: "7 (a) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 3 0 300 5 6".into(),
            status: "VmSize:\t  1024 kB\nVmRSS:\t  512 kB\n".into(),
            io: String::new(),
            fds: Some(4),
        };
        let around = Around { ticks_per_second: 100, machine: "cpu 1\nbtime 1000\n", max_fds: Some(20) };
        let mut page = Page::default();
        process.write_standard(&mut page, "kata_shim", "the daemon", around);
        let text = page.finish();
        for line in [
            "# HELP kata_shim_process_cpu_seconds_total CPU time of the daemon in seconds.",
            "kata_shim_process_cpu_seconds_total 2",
            "kata_shim_process_start_time_seconds 1003",
            "kata_shim_process_resident_memory_bytes 524288",
            "kata_shim_process_virtual_memory_bytes 1048576",
            "kata_shim_process_open_fds 4",
            "kata_shim_process_max_fds 20",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
    }

    #[test]
    fn the_machine_says_when_it_has_booted() {
        let boot = |machine| Around { ticks_per_second: 100, machine, max_fds: None }.boot();
        assert_eq!(boot("cpu 1\nbtime 1700000000\n"), Some(1_700_000_000.0));
        assert_eq!(boot("cpu 1\n"), None);
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
