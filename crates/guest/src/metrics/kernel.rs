//! The guest's kernel: `kata_guest_*`.

use std::path::Path;

use kata_metrics::{Kind, Page, netdev};

use super::read;

/// Writes all families.
pub fn write(page: &mut Page, proc: &Path) {
    load(page, &read(&proc.join("loadavg")));
    cpu_time(page, &read(&proc.join("stat")));
    meminfo(page, &read(&proc.join("meminfo")));
    vm_stat(page, &read(&proc.join("vmstat")));
    // The agent's own network namespace is the sandbox's.
    netdev(page, "kata_guest_netdev_stat", "Network devices of the guest.", &read(&proc.join("net/dev")));
    diskstat(page, &read(&proc.join("diskstats")));
}

/// /proc/loadavg: `0.20 0.18 0.12 1/80 11206`; the fourth field is what can run, and all there are.
fn load(page: &mut Page, text: &str) {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let mut load = page.family("kata_guest_load", "The guest's load.", Kind::Gauge);
    for (item, value) in ["load1", "load5", "load15"].iter().zip(&words) {
        if let Ok(value) = value.parse::<f64>() {
            load.sample(&[("item", item)], value);
        }
    }
    let mut tasks = page.family("kata_guest_tasks", "Tasks in the guest: those that can run, and all.", Kind::Gauge);
    let Some((current, all)) = words.get(3).and_then(|w| w.split_once('/')) else { return };
    for (item, value) in [("cur", current), ("max", all)] {
        if let Ok(value) = value.parse::<u64>() {
            tasks.sample(&[("item", item)], value);
        }
    }
}

/// The columns of a cpu line in /proc/stat.
const CPU: [&str; 10] = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice"];

fn cpu_time(page: &mut Page, text: &str) {
    let mut family = page.family("kata_guest_cpu_time", "CPU time of the guest in clock ticks.", Kind::Gauge);
    for line in text.lines() {
        let Some((cpu, values)) = line.strip_prefix("cpu").and_then(|l| l.split_once(' ')) else { continue };
        let cpu = if cpu.is_empty() { "total" } else { cpu };
        for (item, value) in CPU.iter().zip(values.split_ascii_whitespace()) {
            if let Ok(value) = value.parse::<u64>() {
                family.sample(&[("cpu", cpu), ("item", item)], value);
            }
        }
    }
}

fn meminfo(page: &mut Page, text: &str) {
    let mut family = page.family("kata_guest_meminfo", "Memory of the guest, sizes in bytes.", Kind::Gauge);
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let mut words = value.split_ascii_whitespace();
        let Some(number) = words.next().and_then(|n| n.parse::<u64>().ok()) else { continue };
        // Those without a unit are numbers of pages.
        let value = if words.next() == Some("kB") { number.saturating_mul(1024) } else { number };
        family.sample(&[("item", &meminfo_item(key))], value);
    }
}

/// Upstream's spelling of a key of /proc/meminfo: "Active(anon)" is active_anon, "DirectMap4k" direct_map_4k.
fn meminfo_item(key: &str) -> String {
    if let Some(size) = key.strip_prefix("DirectMap") {
        return format!("direct_map_{size}");
    }
    let mut out = String::new();
    let chars: Vec<char> = key.chars().collect();
    for (n, c) in chars.iter().enumerate() {
        let before = n.checked_sub(1).map(|b| chars[b]);
        let begins_lower = chars.get(n + 1).is_some_and(char::is_ascii_lowercase);
        match c {
            '(' => out.push('_'),
            ')' => {}
            c => {
                // A word begins at a capital, unless that is in a word of capitals.
                let begins = c.is_ascii_uppercase()
                    && before.is_some_and(|b| b.is_ascii_lowercase() || (b.is_ascii_uppercase() && begins_lower));
                if begins {
                    out.push('_');
                }
                out.push(c.to_ascii_lowercase());
            }
        }
    }
    out.replace("huge_pages", "hugepages").replace("percpu", "per_cpu")
}

fn vm_stat(page: &mut Page, text: &str) {
    let mut family = page.family("kata_guest_vm_stat", "Virtual memory of the guest (/proc/vmstat).", Kind::Gauge);
    for line in text.lines() {
        if let Some((item, value)) = line.split_once(' ')
            && let Ok(value) = value.trim().parse::<u64>()
        {
            family.sample(&[("item", item)], value);
        }
    }
}

/// The columns of /proc/diskstats after the device's name (Documentation/admin-guide/iostats.rst).
const DISK: [&str; 17] = [
    "reads",
    "merged",
    "sectors_read",
    "time_reading",
    "writes",
    "writes_merged",
    "sectors_written",
    "time_writing",
    "in_progress",
    "time_in_progress",
    "weighted_time_in_progress",
    "discards",
    "discards_merged",
    "sectors_discarded",
    "time_discarding",
    "flushes",
    "time_flushing",
];

fn diskstat(page: &mut Page, text: &str) {
    let mut family = page.family("kata_guest_diskstat", "Block devices of the guest.", Kind::Gauge);
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace().skip(2);
        let Some(disk) = words.next() else { continue };
        for (item, value) in DISK.iter().zip(words) {
            if let Ok(value) = value.parse::<u64>() {
                family.sample(&[("disk", disk), ("item", item)], value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Page)) -> String {
        let mut page = Page::default();
        write(&mut page);
        page.finish()
    }

    fn has(text: &str, lines: &[&str]) {
        for line in lines {
            assert!(text.lines().any(|l| l == *line), "{line} is not in:\n{text}");
        }
    }

    #[test]
    fn keys_of_meminfo_are_spelled_as_upstream_does() {
        for (key, item) in [
            ("MemTotal", "mem_total"),
            ("Active(anon)", "active_anon"),
            ("AnonHugePages", "anon_hugepages"),
            ("HugePages_Total", "hugepages_total"),
            ("Hugepagesize", "hugepagesize"),
            ("DirectMap4k", "direct_map_4k"),
            ("DirectMap2M", "direct_map_2M"),
            ("KReclaimable", "k_reclaimable"),
            ("SReclaimable", "s_reclaimable"),
            ("SUnreclaim", "s_unreclaim"),
            ("Committed_AS", "committed_as"),
            ("NFS_Unstable", "nfs_unstable"),
            ("Percpu", "per_cpu"),
            ("ShmemPmdMapped", "shmem_pmd_mapped"),
            ("WritebackTmp", "writeback_tmp"),
            ("CmaFree", "cma_free"),
        ] {
            assert_eq!(meminfo_item(key), item);
        }
    }

    #[test]
    fn each_file_becomes_its_family() {
        has(
            &written(|p| load(p, "0.20 0.18 0.12 1/80 11206\n")),
            &[
                "kata_guest_load{item=\"load15\"} 0.12",
                "kata_guest_tasks{item=\"cur\"} 1",
                "kata_guest_tasks{item=\"max\"} 80",
            ],
        );
        has(
            &written(|p| cpu_time(p, "cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1 2 3 4 5 6 7 8 9 10\nintr 5\n")),
            &[
                "kata_guest_cpu_time{cpu=\"total\",item=\"guest_nice\"} 10",
                "kata_guest_cpu_time{cpu=\"0\",item=\"idle\"} 4",
            ],
        );
        has(
            &written(|p| meminfo(p, "MemTotal:   100 kB\nHugePages_Total:   3\n")),
            &["kata_guest_meminfo{item=\"mem_total\"} 102400", "kata_guest_meminfo{item=\"hugepages_total\"} 3"],
        );
        has(&written(|p| vm_stat(p, "oom_kill 2\n")), &["kata_guest_vm_stat{item=\"oom_kill\"} 2"]);
        has(
            &written(|p| diskstat(p, " 254 0 vda 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17\n")),
            &[
                "kata_guest_diskstat{disk=\"vda\",item=\"reads\"} 1",
                "kata_guest_diskstat{disk=\"vda\",item=\"time_flushing\"} 17",
            ],
        );
    }
}
