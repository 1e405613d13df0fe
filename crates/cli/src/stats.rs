//! A container's counters in runc's JSON (its `types/events.go`), which is the same for both versions of cgroups.

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use serde_json::{Map, Value, json};

use crate::client::Stats;

/// The `data` of a `stats` event.
pub fn data(stats: &Stats) -> Value {
    match stats {
        Stats::V1(m) => of_v1(m),
        Stats::V2(m) => of_v2(m),
    }
}

/// How many processes of the container the guest's kernel has killed for want of memory.
pub fn out_of_memory_kills(stats: &Stats) -> u64 {
    match stats {
        Stats::V1(m) => m.memory_oom_control.as_ref().map_or(0, |o| o.oom_kill),
        Stats::V2(m) => m.memory_events.as_ref().map_or(0, |e| e.oom_kill),
    }
}

fn of_v1(m: &v1::Metrics) -> Value {
    let c = m.cpu.clone().unwrap_or_default();
    let (usage, throttling) = (c.usage.unwrap_or_default(), c.throttling.unwrap_or_default());
    let mem = m.memory.clone().unwrap_or_default();
    let entry = |e: Option<&v1::MemoryEntry>| {
        let e = e.cloned().unwrap_or_default();
        json!({ "limit": e.limit, "usage": e.usage, "max": e.max, "failcnt": e.failcnt })
    };
    let blkio = |entries: &[v1::BlkIOEntry]| -> Value {
        entries.iter().map(|e| json!({ "major": e.major, "minor": e.minor, "op": e.op, "value": e.value })).collect()
    };
    let io = m.blkio.clone().unwrap_or_default();
    let pids = m.pids.clone().unwrap_or_default();
    let hugetlb =
        m.hugetlb.iter().map(|h| (h.pagesize.clone(), json!({ "usage": h.usage, "max": h.max, "failcnt": h.failcnt })));
    json!({
        "cpu": {
            "usage": { "total": usage.total, "percpu": usage.per_cpu, "kernel": usage.kernel, "user": usage.user },
            "throttling": { "periods": throttling.periods, "throttledPeriods": throttling.throttled_periods,
                            "throttledTime": throttling.throttled_time },
        },
        "memory": {
            "cache": mem.cache,
            "usage": entry(mem.usage.as_ref()),
            "swap": entry(mem.swap.as_ref()),
            "kernel": entry(mem.kernel.as_ref()),
            "kernelTCP": entry(mem.kernel_tcp.as_ref()),
            "raw": {
                "cache": mem.cache, "rss": mem.rss, "rss_huge": mem.rss_huge, "mapped_file": mem.mapped_file,
                "dirty": mem.dirty, "writeback": mem.writeback, "pgfault": mem.pg_fault, "pgmajfault": mem.pg_maj_fault,
                "inactive_file": mem.inactive_file, "active_file": mem.active_file,
                "inactive_anon": mem.inactive_anon, "active_anon": mem.active_anon, "unevictable": mem.unevictable,
                "total_inactive_file": mem.total_inactive_file, "total_cache": mem.total_cache, "total_rss": mem.total_rss,
                "hierarchical_memory_limit": mem.hierarchical_memory_limit,
            },
        },
        "pids": { "current": pids.current, "limit": pids.limit },
        "blkio": { "ioServiceBytesRecursive": blkio(&io.io_service_bytes_recursive),
                   "ioServicedRecursive": blkio(&io.io_serviced_recursive) },
        "hugetlb": hugetlb.collect::<Map<_, _>>(),
        "network_interfaces": m.network.iter().map(|n| interface(&n.name,
            [n.rx_bytes, n.rx_packets, n.rx_errors, n.rx_dropped],
            [n.tx_bytes, n.tx_packets, n.tx_errors, n.tx_dropped])).collect::<Value>(),
    })
}

fn of_v2(m: &v2::Metrics) -> Value {
    let c = m.cpu.clone().unwrap_or_default();
    let nanos = |micros: u64| micros.saturating_mul(1000);
    let mem = m.memory.clone().unwrap_or_default();
    let pids = m.pids.clone().unwrap_or_default();
    let io = m.io.clone().unwrap_or_default().usage;
    let list = |pick: fn(&v2::IOEntry) -> [(&'static str, u64); 2]| -> Value {
        let entries = io.iter().flat_map(|e| {
            pick(e).map(|(op, value)| json!({ "major": e.major, "minor": e.minor, "op": op, "value": value }))
        });
        entries.collect()
    };
    let max_is_failing = m.memory_events.as_ref().map_or(0, |e| e.max);
    let hugetlb = m
        .hugetlb
        .iter()
        .map(|h| (h.pagesize.clone(), json!({ "usage": h.current, "max": h.max, "failcnt": h.failcnt })));
    json!({
        "cpu": {
            "usage": { "total": nanos(c.usage_usec), "kernel": nanos(c.system_usec), "user": nanos(c.user_usec) },
            "throttling": { "periods": c.nr_periods, "throttledPeriods": c.nr_throttled,
                            "throttledTime": nanos(c.throttled_usec) },
        },
        "memory": {
            "cache": mem.file,
            "usage": { "limit": mem.usage_limit, "usage": mem.usage, "max": mem.max_usage, "failcnt": max_is_failing },
            // runc's is memory and swap together, as v1 has it.
            "swap": { "limit": mem.swap_limit.saturating_add(mem.usage_limit),
                      "usage": mem.swap_usage.saturating_add(mem.usage), "failcnt": 0 },
            "raw": {
                "anon": mem.anon, "file": mem.file, "kernel_stack": mem.kernel_stack, "slab": mem.slab, "sock": mem.sock,
                "shmem": mem.shmem, "file_mapped": mem.file_mapped, "file_dirty": mem.file_dirty,
                "file_writeback": mem.file_writeback, "anon_thp": mem.anon_thp,
                "inactive_anon": mem.inactive_anon, "active_anon": mem.active_anon,
                "inactive_file": mem.inactive_file, "active_file": mem.active_file, "unevictable": mem.unevictable,
                "pgfault": mem.pgfault, "pgmajfault": mem.pgmajfault,
            },
        },
        "pids": { "current": pids.current, "limit": if pids.limit == u64::MAX { 0 } else { pids.limit } },
        "blkio": { "ioServiceBytesRecursive": list(|e| [("read", e.rbytes), ("write", e.wbytes)]),
                   "ioServicedRecursive": list(|e| [("read", e.rios), ("write", e.wios)]) },
        "hugetlb": hugetlb.collect::<Map<_, _>>(),
        "network_interfaces": m.network.iter().map(|n| interface(&n.name,
            [n.rx_bytes, n.rx_packets, n.rx_errors, n.rx_dropped],
            [n.tx_bytes, n.tx_packets, n.tx_errors, n.tx_dropped])).collect::<Value>(),
    })
}

fn interface(name: &str, rx: [u64; 4], tx: [u64; 4]) -> Value {
    json!({
        "Name": name,
        "RxBytes": rx[0], "RxPackets": rx[1], "RxErrors": rx[2], "RxDropped": rx[3],
        "TxBytes": tx[0], "TxPackets": tx[1], "TxErrors": tx[2], "TxDropped": tx[3],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::protobuf::MessageField;

    fn both() -> [Stats; 2] {
        let mut one = v1::Metrics::new();
        let usage = v1::CPUUsage { total: 5_000, kernel: 2_000, user: 3_000, ..Default::default() };
        one.cpu = MessageField::some(v1::CPUStat { usage: MessageField::some(usage), ..Default::default() });
        let used = v1::MemoryEntry { usage: 100, limit: 200, max: 150, ..Default::default() };
        one.memory = MessageField::some(v1::MemoryStat {
            cache: 40,
            inactive_file: 18,
            usage: MessageField::some(used),
            ..Default::default()
        });
        let io = |op: &str, value| v1::BlkIOEntry { op: op.into(), value, major: 8, minor: 0, ..Default::default() };
        one.blkio = MessageField::some(v1::BlkIOStat {
            io_serviced_recursive: vec![io("Read", 1), io("Write", 2)],
            ..Default::default()
        });
        one.pids = MessageField::some(v1::PidsStat { current: 3, limit: 0, ..Default::default() });
        one.memory_oom_control = MessageField::some(v1::MemoryOomControl { oom_kill: 4, ..Default::default() });
        one.network = vec![v1::NetworkStat { name: "eth0".into(), rx_bytes: 9, tx_bytes: 7, ..Default::default() }];
        one.hugetlb = vec![v1::HugetlbStat { pagesize: "2MB".into(), usage: 6, ..Default::default() }];

        let mut two = v2::Metrics::new();
        two.cpu = MessageField::some(v2::CPUStat { usage_usec: 5, system_usec: 2, user_usec: 3, ..Default::default() });
        two.memory = MessageField::some(v2::MemoryStat {
            file: 40,
            inactive_file: 18,
            usage: 100,
            usage_limit: 200,
            max_usage: 150,
            ..Default::default()
        });
        let io = v2::IOEntry { major: 8, minor: 0, rios: 1, wios: 2, ..Default::default() };
        two.io = MessageField::some(v2::IOStat { usage: vec![io], ..Default::default() });
        two.pids = MessageField::some(v2::PidsStat { current: 3, limit: u64::MAX, ..Default::default() });
        two.memory_events = MessageField::some(v2::MemoryEvents { oom_kill: 4, ..Default::default() });
        two.network = vec![v2::NetworkStat { name: "eth0".into(), rx_bytes: 9, tx_bytes: 7, ..Default::default() }];
        two.hugetlb = vec![v2::HugeTlbStat { pagesize: "2MB".into(), current: 6, ..Default::default() }];
        [Stats::V1(one), Stats::V2(two)]
    }

    #[test]
    fn both_shapes_say_the_same_in_runcs_words() {
        for stats in both() {
            let d = data(&stats);
            for (pointer, want) in [
                ("/cpu/usage/total", 5_000),
                ("/cpu/usage/kernel", 2_000),
                ("/cpu/usage/user", 3_000),
                ("/memory/cache", 40),
                ("/memory/usage/usage", 100),
                ("/memory/usage/limit", 200),
                ("/memory/usage/max", 150),
                ("/memory/raw/inactive_file", 18),
                ("/blkio/ioServicedRecursive/0/value", 1),
                ("/blkio/ioServicedRecursive/1/value", 2),
                ("/pids/current", 3),
                ("/pids/limit", 0),
                ("/hugetlb/2MB/usage", 6),
                ("/network_interfaces/0/RxBytes", 9),
                ("/network_interfaces/0/TxBytes", 7),
            ] {
                assert_eq!(d.pointer(pointer), Some(&json!(want)), "{pointer} of {d}");
            }
            assert_eq!(out_of_memory_kills(&stats), 4);
        }
    }
}
