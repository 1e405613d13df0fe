//! `io.containerd.cgroups.v2.Metrics`.

use std::collections::BTreeSet;

use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::MessageField;
use kata_proto::agent as pb;

use super::value;

/// The guest's counters in v2's own words.
pub fn metrics(stats: &pb::StatsContainerResponse) -> v2::Metrics {
    let mut out = v2::Metrics::new();
    if let Some(cg) = stats.cgroup_stats.as_ref() {
        if let Some(p) = cg.pids_stats.as_ref() {
            let mut pids = v2::PidsStat::new();
            // No limit is 0 with the agent; containerd's cgroups library reads "max" as this.
            (pids.current, pids.limit) = (p.current, if p.limit == 0 { u64::MAX } else { p.limit });
            out.pids = MessageField::some(pids);
        }
        if let Some(c) = cg.cpu_stats.as_ref() {
            out.cpu = MessageField::some(cpu(c));
        }
        if let Some(m) = cg.memory_stats.as_ref() {
            out.memory = MessageField::some(memory(m));
            out.memory_events = MessageField::some(events(m));
        }
        if let Some(b) = cg.blkio_stats.as_ref() {
            let mut io = v2::IOStat::new();
            io.usage = devices(b);
            out.io = MessageField::some(io);
        }
        out.hugetlb = cg.hugetlb_stats.iter().map(|(size, h)| hugetlb(size, h)).collect();
        out.hugetlb.sort_by(|a, b| a.pagesize.cmp(&b.pagesize));
    }
    out.network = stats.network_stats.iter().map(network).collect();
    out
}

fn cpu(c: &pb::CpuStats) -> v2::CPUStat {
    let mut out = v2::CPUStat::new();
    // Nanoseconds there, microseconds here.
    if let Some(u) = c.cpu_usage.as_ref() {
        (out.usage_usec, out.user_usec, out.system_usec) =
            (u.total_usage / 1000, u.usage_in_usermode / 1000, u.usage_in_kernelmode / 1000);
    }
    if let Some(t) = c.throttling_data.as_ref() {
        (out.nr_periods, out.nr_throttled, out.throttled_usec) =
            (t.periods, t.throttled_periods, t.throttled_time / 1000);
    }
    out
}

fn memory(m: &pb::MemoryStats) -> v2::MemoryStat {
    let mut out = v2::MemoryStat::new();
    let get = |key: &str| m.stats.get(key).copied().unwrap_or(0);
    if let Some(u) = m.usage.as_ref() {
        (out.usage, out.usage_limit, out.max_usage) = (u.usage, u.limit, u.max_usage);
    }
    let swap = |key: &str| m.unified.get(key).copied().unwrap_or(0);
    (out.swap_usage, out.swap_limit, out.swap_max_usage) = (swap("swap.current"), swap("swap.max"), swap("swap.peak"));
    for (key, field) in [
        ("anon", &mut out.anon),
        ("file", &mut out.file),
        ("kernel_stack", &mut out.kernel_stack),
        ("slab", &mut out.slab),
        ("sock", &mut out.sock),
        ("shmem", &mut out.shmem),
        ("file_mapped", &mut out.file_mapped),
        ("file_dirty", &mut out.file_dirty),
        ("file_writeback", &mut out.file_writeback),
        ("anon_thp", &mut out.anon_thp),
        ("inactive_anon", &mut out.inactive_anon),
        ("active_anon", &mut out.active_anon),
        ("inactive_file", &mut out.inactive_file),
        ("active_file", &mut out.active_file),
        ("unevictable", &mut out.unevictable),
        ("slab_reclaimable", &mut out.slab_reclaimable),
        ("slab_unreclaimable", &mut out.slab_unreclaimable),
        ("pgfault", &mut out.pgfault),
        ("pgmajfault", &mut out.pgmajfault),
        ("workingset_nodereclaim", &mut out.workingset_nodereclaim),
        ("pgrefill", &mut out.pgrefill),
        ("pgscan", &mut out.pgscan),
        ("pgsteal", &mut out.pgsteal),
        ("pgactivate", &mut out.pgactivate),
        ("pgdeactivate", &mut out.pgdeactivate),
        ("pglazyfree", &mut out.pglazyfree),
        ("pglazyfreed", &mut out.pglazyfreed),
        ("thp_fault_alloc", &mut out.thp_fault_alloc),
        ("thp_collapse_alloc", &mut out.thp_collapse_alloc),
    ] {
        *field = get(key);
    }
    // Since Linux 5.9 these are two counters each (mm/memcontrol.c).
    let both =
        |key: &str| get(key).saturating_add(get(&format!("{key}_anon"))).saturating_add(get(&format!("{key}_file")));
    out.workingset_refault = both("workingset_refault");
    out.workingset_activate = both("workingset_activate");
    out
}

fn events(m: &pb::MemoryStats) -> v2::MemoryEvents {
    let get = |key: &str| m.unified.get(&format!("events.{key}")).copied().unwrap_or(0);
    let mut out = v2::MemoryEvents::new();
    (out.low, out.high, out.max) = (get("low"), get("high"), get("max"));
    (out.oom, out.oom_kill, out.oom_group_kill) = (get("oom"), get("oom_kill"), get("oom_group_kill"));
    out
}

/// One entry a device, where v1 has one for each operation.
fn devices(b: &pb::BlkioStats) -> Vec<v2::IOEntry> {
    let all = b.io_service_bytes_recursive.iter().chain(&b.io_serviced_recursive);
    let devices: BTreeSet<(u64, u64)> = all.map(|e| (e.major, e.minor)).collect();
    let entry = |device: (u64, u64)| {
        let mut out = v2::IOEntry::new();
        (out.major, out.minor) = device;
        out.rbytes = value(&b.io_service_bytes_recursive, device, "Read");
        out.wbytes = value(&b.io_service_bytes_recursive, device, "Write");
        out.rios = value(&b.io_serviced_recursive, device, "Read");
        out.wios = value(&b.io_serviced_recursive, device, "Write");
        out
    };
    devices.into_iter().map(entry).collect()
}

fn hugetlb(size: &str, h: &pb::HugetlbStats) -> v2::HugeTlbStat {
    let mut out = v2::HugeTlbStat::new();
    size.clone_into(&mut out.pagesize);
    (out.current, out.max, out.failcnt) = (h.usage, h.limit, h.failcnt);
    out
}

fn network(n: &pb::NetworkStats) -> v2::NetworkStat {
    let mut s = v2::NetworkStat::new();
    s.name.clone_from(&n.name);
    (s.rx_bytes, s.rx_packets, s.rx_errors, s.rx_dropped) = (n.rx_bytes, n.rx_packets, n.rx_errors, n.rx_dropped);
    (s.tx_bytes, s.tx_packets, s.tx_errors, s.tx_dropped) = (n.tx_bytes, n.tx_packets, n.tx_errors, n.tx_dropped);
    s
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::tests::sample;

    #[test]
    fn every_counter_is_where_a_reader_of_v2_looks() {
        let m = metrics(&sample());
        assert_eq!((m.cpu.usage_usec, m.cpu.system_usec, m.cpu.user_usec), (5_000, 2_000, 3_000));
        assert_eq!((m.cpu.nr_periods, m.cpu.nr_throttled, m.cpu.throttled_usec), (7, 6, 9));
        let mem = &m.memory;
        assert_eq!((mem.usage, mem.usage_limit, mem.max_usage), (100, 1 << 20, 120));
        assert_eq!((mem.swap_usage, mem.swap_limit, mem.swap_max_usage), (10, 50, 31));
        assert_eq!((mem.anon, mem.file, mem.file_mapped, mem.slab, mem.sock), (60, 40, 11, 22, 21));
        // The CRI plugin's working set: usage less inactive_file.
        assert_eq!((mem.inactive_file, mem.active_file, mem.pgfault, mem.pgmajfault), (18, 19, 14, 15));
        assert_eq!(mem.workingset_refault, 47);
        let e = &m.memory_events;
        assert_eq!((e.low, e.max, e.oom, e.oom_kill), (32, 3, 33, 34));
        assert_eq!((m.pids.current, m.pids.limit), (2, u64::MAX));
        let io = &m.io.usage[0];
        assert_eq!(m.io.usage.len(), 1);
        assert_eq!((io.major, io.minor, io.rbytes, io.wbytes, io.rios, io.wios), (8, 16, 41, 42, 44, 45));
        let h = &m.hugetlb[0];
        assert_eq!((h.pagesize.as_str(), h.current, h.max, h.failcnt), ("2MB", 51, 54, 53));
        let n = &m.network[0];
        assert_eq!((n.name.as_str(), n.rx_packets, n.rx_errors, n.tx_packets, n.tx_errors), ("eth0", 62, 63, 66, 67));
    }
}
