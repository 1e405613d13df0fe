//! A cgroup's statistics in the protocol's form, which is worded for cgroup v1.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use kata_proto::agent;
use protobuf::MessageField;

/// Reads what there is. A file that is missing (a controller that the kernel lacks or that is not passed on) leaves its
/// numbers at zero; that is how the protocol says "not known".
pub(crate) fn read(dir: &Path) -> agent::CgroupStats {
    let file = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
    agent::CgroupStats {
        cpu_stats: MessageField::some(cpu(&file("cpu.stat"))),
        memory_stats: MessageField::some(memory(&file)),
        pids_stats: MessageField::some(agent::PidsStats {
            current: number(&file("pids.current")),
            // Zero is "no limit" here, as in v1's statistics.
            limit: limit(&file("pids.max"), 0),
            ..Default::default()
        }),
        blkio_stats: MessageField::some(blkio(&file("io.stat"))),
        hugetlb_stats: hugetlb(dir),
        ..Default::default()
    }
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

fn limit(text: &str, unlimited: u64) -> u64 {
    if text.trim() == "max" { unlimited } else { number(text) }
}

/// Lines of `key value`.
fn flat(text: &str) -> HashMap<&str, u64> {
    text.lines().filter_map(|l| l.split_once(' ')).filter_map(|(k, v)| Some((k, v.trim().parse().ok()?))).collect()
}

fn cpu(text: &str) -> agent::CpuStats {
    let all = flat(text);
    let get = |key: &str| all.get(key).copied().unwrap_or(0);
    // Microseconds here, nanoseconds there.
    let nanos = |key: &str| get(key).saturating_mul(1000);
    agent::CpuStats {
        cpu_usage: MessageField::some(agent::CpuUsage {
            total_usage: nanos("usage_usec"),
            usage_in_kernelmode: nanos("system_usec"),
            usage_in_usermode: nanos("user_usec"),
            ..Default::default()
        }),
        throttling_data: MessageField::some(agent::ThrottlingData {
            periods: get("nr_periods"),
            throttled_periods: get("nr_throttled"),
            throttled_time: nanos("throttled_usec"),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn memory(file: &dyn Fn(&str) -> String) -> agent::MemoryStats {
    let stat_text = file("memory.stat");
    let stat = flat(&stat_text);
    let usage = agent::MemoryData {
        usage: number(&file("memory.current")),
        max_usage: number(&file("memory.peak")),
        failcnt: flat(&file("memory.events")).get("max").copied().unwrap_or(0),
        limit: limit(&file("memory.max"), u64::MAX),
        ..Default::default()
    };
    // v1's number is the sum of memory and swap.
    let swap_limit = limit(&file("memory.swap.max"), u64::MAX);
    let swap = agent::MemoryData {
        usage: number(&file("memory.swap.current")).saturating_add(usage.usage),
        max_usage: 0,
        failcnt: flat(&file("memory.swap.events")).get("fail").copied().unwrap_or(0),
        limit: swap_limit.saturating_add(usage.limit),
        ..Default::default()
    };
    let kernel = agent::MemoryData { usage: stat.get("kernel").copied().unwrap_or(0), ..Default::default() };
    agent::MemoryStats {
        cache: stat.get("file").copied().unwrap_or(0),
        usage: MessageField::some(usage),
        swap_usage: MessageField::some(swap),
        kernel_usage: MessageField::some(kernel),
        use_hierarchy: true,
        unified: unified(file),
        stats: stat.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
        ..Default::default()
    }
}

/// What v1's words have no place for.
fn unified(file: &dyn Fn(&str) -> String) -> HashMap<String, u64> {
    let mut out = HashMap::new();
    for name in ["swap.current", "swap.max", "swap.peak"] {
        let text = file(&format!("memory.{name}"));
        // Without swap in the kernel there are no such files, and nothing is told.
        if !text.is_empty() {
            out.insert(name.to_owned(), limit(&text, u64::MAX));
        }
    }
    let events = file("memory.events");
    out.extend(flat(&events).into_iter().map(|(key, value)| (format!("events.{key}"), value)));
    out
}

/// io.stat: `8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`.
fn blkio(text: &str) -> agent::BlkioStats {
    let mut out = agent::BlkioStats::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some((major, minor)) = words.next().and_then(|d| d.split_once(':')) else { continue };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { continue };
        for (key, value) in words.filter_map(|w| w.split_once('=')) {
            let (list, op) = match key {
                "rbytes" => (&mut out.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut out.io_service_bytes_recursive, "Write"),
                "dbytes" => (&mut out.io_service_bytes_recursive, "Discard"),
                "rios" => (&mut out.io_serviced_recursive, "Read"),
                "wios" => (&mut out.io_serviced_recursive, "Write"),
                "dios" => (&mut out.io_serviced_recursive, "Discard"),
                _ => continue,
            };
            let value = number(value);
            list.push(agent::BlkioStatsEntry { major, minor, op: op.to_owned(), value, ..Default::default() });
        }
    }
    out
}

fn hugetlb(dir: &Path) -> HashMap<String, agent::HugetlbStats> {
    let mut out = HashMap::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let size = name.to_str().and_then(|n| n.strip_prefix("hugetlb.")?.strip_suffix(".current"));
        let Some(size) = size.filter(|s| !s.contains('.')) else { continue };
        let file = |what: &str| fs::read_to_string(dir.join(format!("hugetlb.{size}.{what}"))).unwrap_or_default();
        let stats = agent::HugetlbStats {
            usage: number(&file("current")),
            limit: limit(&file("max"), u64::MAX),
            failcnt: flat(&file("events")).get("max").copied().unwrap_or(0),
            ..Default::default()
        };
        out.insert(size.to_owned(), stats);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read() {
        let c = cpu("usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 7\nnr_throttled 1\nthrottled_usec 9\n");
        assert_eq!(c.cpu_usage.total_usage, 5000);
        assert_eq!((c.throttling_data.throttled_periods, c.throttling_data.throttled_time), (1, 9000));
        let m = memory(&|name| {
            match name {
                "memory.current" => "100\n",
                "memory.max" => "max\n",
                "memory.swap.current" => "20\n",
                "memory.swap.max" => "0\n",
                "memory.stat" => "anon 60\nfile 40\nkernel 5\n",
                "memory.events" => "low 0\nmax 3\noom_kill 2\n",
                _ => "",
            }
            .to_owned()
        });
        assert_eq!((m.usage.usage, m.usage.limit, m.usage.failcnt), (100, u64::MAX, 3));
        assert_eq!((m.swap_usage.usage, m.swap_usage.limit), (120, u64::MAX));
        assert_eq!((m.cache, m.stats["anon"], m.kernel_usage.usage), (40, 60, 5));
        assert_eq!((m.unified["swap.current"], m.unified["swap.max"], m.unified["events.oom_kill"]), (20, 0, 2));
        assert!(!m.unified.contains_key("swap.peak"));
        let b = blkio("8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n\nbad\n");
        assert_eq!(b.io_service_bytes_recursive.len(), 3);
        assert_eq!((b.io_serviced_recursive[1].op.as_str(), b.io_serviced_recursive[1].value), ("Write", 4));
    }
}
