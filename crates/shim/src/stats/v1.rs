//! `io.containerd.cgroups.v1.Metrics`.

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::protobuf::MessageField;
use kata_proto::agent as pb;

/// The guest's counters where v1's readers look. v2 has no counter for pages in and out, nor for each CPU; those stay 0.
pub fn metrics(stats: &pb::StatsContainerResponse) -> v1::Metrics {
    let mut out = v1::Metrics::new();
    if let Some(cg) = stats.cgroup_stats.as_ref() {
        if let Some(p) = cg.pids_stats.as_ref() {
            let mut pids = v1::PidsStat::new();
            (pids.current, pids.limit) = (p.current, p.limit);
            out.pids = MessageField::some(pids);
        }
        if let Some(c) = cg.cpu_stats.as_ref() {
            out.cpu = MessageField::some(cpu(c));
        }
        if let Some(m) = cg.memory_stats.as_ref() {
            out.memory = MessageField::some(memory(m));
            let mut oom = v1::MemoryOomControl::new();
            oom.oom_kill = m.unified.get("events.oom_kill").copied().unwrap_or(0);
            out.memory_oom_control = MessageField::some(oom);
        }
        if let Some(b) = cg.blkio_stats.as_ref() {
            out.blkio = MessageField::some(blkio(b));
        }
        out.hugetlb = cg.hugetlb_stats.iter().map(|(size, h)| hugetlb(size, h)).collect();
        out.hugetlb.sort_by(|a, b| a.pagesize.cmp(&b.pagesize));
    }
    out.network = stats.network_stats.iter().map(network).collect();
    out
}

fn cpu(c: &pb::CpuStats) -> v1::CPUStat {
    let mut out = v1::CPUStat::new();
    if let Some(u) = c.cpu_usage.as_ref() {
        let mut usage = v1::CPUUsage::new();
        (usage.total, usage.kernel, usage.user) = (u.total_usage, u.usage_in_kernelmode, u.usage_in_usermode);
        usage.per_cpu.clone_from(&u.percpu_usage);
        out.usage = MessageField::some(usage);
    }
    if let Some(t) = c.throttling_data.as_ref() {
        let mut throttling = v1::Throttle::new();
        (throttling.periods, throttling.throttled_periods, throttling.throttled_time) =
            (t.periods, t.throttled_periods, t.throttled_time);
        out.throttling = MessageField::some(throttling);
    }
    out
}

fn entry(d: &MessageField<pb::MemoryData>) -> MessageField<v1::MemoryEntry> {
    let mut e = v1::MemoryEntry::new();
    if let Some(d) = d.as_ref() {
        (e.limit, e.usage, e.max, e.failcnt) = (d.limit, d.usage, d.max_usage, d.failcnt);
    }
    MessageField::some(e)
}

fn memory(m: &pb::MemoryStats) -> v1::MemoryStat {
    let mut out = v1::MemoryStat::new();
    let get = |key: &str| m.stats.get(key).copied().unwrap_or(0);
    out.usage = entry(&m.usage);
    out.swap = entry(&m.swap_usage);
    out.kernel = entry(&m.kernel_usage);
    let mut tcp = v1::MemoryEntry::new();
    tcp.usage = get("sock");
    out.kernel_tcp = MessageField::some(tcp);
    out.hierarchical_memory_limit = m.usage.as_ref().map_or(0, |u| u.limit);
    out.hierarchical_swap_limit = m.swap_usage.as_ref().map_or(0, |u| u.limit);
    // v2's names (cgroup-v2.rst, memory.stat) for what v1 counts (memory.rst). v2 counts whole hierarchies only, so
    // the totals are the numbers themselves.
    out.cache = m.cache;
    out.total_cache = m.cache;
    for (key, own, total) in [
        ("anon", &mut out.rss, &mut out.total_rss),
        ("anon_thp", &mut out.rss_huge, &mut out.total_rss_huge),
        ("file_mapped", &mut out.mapped_file, &mut out.total_mapped_file),
        ("file_dirty", &mut out.dirty, &mut out.total_dirty),
        ("file_writeback", &mut out.writeback, &mut out.total_writeback),
        ("pgfault", &mut out.pg_fault, &mut out.total_pg_fault),
        ("pgmajfault", &mut out.pg_maj_fault, &mut out.total_pg_maj_fault),
        ("inactive_anon", &mut out.inactive_anon, &mut out.total_inactive_anon),
        ("active_anon", &mut out.active_anon, &mut out.total_active_anon),
        ("inactive_file", &mut out.inactive_file, &mut out.total_inactive_file),
        ("active_file", &mut out.active_file, &mut out.total_active_file),
        ("unevictable", &mut out.unevictable, &mut out.total_unevictable),
    ] {
        (*own, *total) = (get(key), get(key));
    }
    out
}

fn blkio(b: &pb::BlkioStats) -> v1::BlkIOStat {
    let list = |entries: &[pb::BlkioStatsEntry]| entries.iter().map(blkio_entry).collect();
    let mut io = v1::BlkIOStat::new();
    io.io_service_bytes_recursive = list(&b.io_service_bytes_recursive);
    io.io_serviced_recursive = list(&b.io_serviced_recursive);
    io
}

fn blkio_entry(e: &pb::BlkioStatsEntry) -> v1::BlkIOEntry {
    let mut out = v1::BlkIOEntry::new();
    (out.major, out.minor, out.value) = (e.major, e.minor, e.value);
    out.op.clone_from(&e.op);
    out
}

fn hugetlb(size: &str, h: &pb::HugetlbStats) -> v1::HugetlbStat {
    let mut out = v1::HugetlbStat::new();
    size.clone_into(&mut out.pagesize);
    (out.usage, out.max, out.failcnt) = (h.usage, h.max_usage, h.failcnt);
    out
}

fn network(n: &pb::NetworkStats) -> v1::NetworkStat {
    let mut s = v1::NetworkStat::new();
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
    fn every_counter_is_where_a_reader_of_v1_looks() {
        let m = metrics(&sample());
        let usage = m.cpu.usage.as_ref().unwrap();
        assert_eq!((usage.total, usage.kernel, usage.user), (5_000_000, 2_000_000, 3_000_000));
        let t = m.cpu.throttling.as_ref().unwrap();
        assert_eq!((t.periods, t.throttled_periods, t.throttled_time), (7, 6, 9_000));
        let mem = &m.memory;
        let usage = mem.usage.as_ref().unwrap();
        assert_eq!((usage.usage, usage.max, usage.failcnt, usage.limit), (100, 120, 3, 1 << 20));
        assert_eq!(
            (mem.swap.usage, mem.swap.limit, mem.kernel.usage, mem.kernel_tcp.usage),
            (110, (1 << 20) + 50, 5, 21)
        );
        assert_eq!((mem.rss, mem.total_rss, mem.cache, mem.total_cache), (60, 60, 40, 40));
        assert_eq!((mem.rss_huge, mem.mapped_file, mem.dirty, mem.writeback), (8, 11, 12, 13));
        assert_eq!((mem.pg_fault, mem.total_pg_maj_fault), (14, 15));
        assert_eq!((mem.inactive_anon, mem.active_anon, mem.inactive_file, mem.active_file), (16, 17, 18, 19));
        // The CRI plugin's working set: usage less this.
        assert_eq!((mem.total_inactive_file, mem.unevictable), (18, 20));
        assert_eq!((mem.hierarchical_memory_limit, m.memory_oom_control.oom_kill), (1 << 20, 34));
        assert_eq!((m.pids.current, m.pids.limit), (2, 0));
        let io: Vec<_> = m.blkio.io_service_bytes_recursive.iter().map(|e| (e.op.as_str(), e.value)).collect();
        assert_eq!(io, [("Read", 41), ("Write", 42), ("Discard", 43)]);
        assert_eq!((m.blkio.io_serviced_recursive[1].value, m.blkio.io_serviced_recursive[1].major), (45, 8));
        let h = &m.hugetlb[0];
        assert_eq!((h.pagesize.as_str(), h.usage, h.max, h.failcnt), ("2MB", 51, 52, 53));
        let n = &m.network[0];
        assert_eq!((n.name.as_str(), n.rx_bytes, n.rx_dropped, n.tx_bytes, n.tx_dropped), ("eth0", 61, 64, 65, 68));
    }
}
