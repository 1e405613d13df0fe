//! A container's counters for containerd: in the words of cgroup v1 or v2, as the host has it.
//!
//! containerd's readers (ctr, the CRI plugin, dockerd) tell the two by the message's name. The guest always has v2; what
//! a reader on a v1 host knows is v1's, so the numbers are put where it looks for them.

mod v1;
mod v2;

use std::path::Path;
use std::sync::OnceLock;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use kata_proto::agent as pb;
use ttrpc::Error;

use crate::convert::any;

/// What statfs(2) says of a cgroup v2 file system.
const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;

/// The words that readers on this host know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `io.containerd.cgroups.v1.Metrics`: also for hybrid hosts, whose controllers are v1's.
    V1,
    /// `io.containerd.cgroups.v2.Metrics`.
    V2,
}

impl Shape {
    /// This host's, as containerd's cgroups library decides it (`Mode() == Unified`).
    pub fn of_host() -> Shape {
        static SHAPE: OnceLock<Shape> = OnceLock::new();
        *SHAPE.get_or_init(|| Shape::of(Path::new("/sys/fs/cgroup")))
    }

    fn of(mount: &Path) -> Shape {
        // The field's type differs between architectures.
        #[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
        let unified = rustix::fs::statfs(mount).is_ok_and(|s| s.f_type as i64 == CGROUP2_SUPER_MAGIC);
        if unified { Shape::V2 } else { Shape::V1 }
    }
}

/// The guest's counters as that message.
///
/// # Errors
/// When it cannot be encoded.
pub fn metrics(stats: &pb::StatsContainerResponse, shape: Shape) -> Result<Any, Error> {
    match shape {
        Shape::V1 => any("io.containerd.cgroups.v1.Metrics", &v1::metrics(stats)),
        Shape::V2 => any("io.containerd.cgroups.v2.Metrics", &v2::metrics(stats)),
    }
}

/// What one device has done of one operation, among the entries of one list.
fn value(entries: &[pb::BlkioStatsEntry], device: (u64, u64), op: &str) -> u64 {
    entries.iter().filter(|e| (e.major, e.minor) == device && e.op == op).map(|e| e.value).sum()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashMap;

    use containerd_shim_protos::protobuf::Message;
    use protobuf::MessageField;

    use super::*;

    /// Every counter has a value of its own, so that none can be taken for another.
    pub(crate) fn sample() -> pb::StatsContainerResponse {
        let map =
            |entries: &[(&str, u64)]| entries.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect::<HashMap<_, _>>();
        let data = |usage, max_usage, failcnt, limit| {
            MessageField::some(pb::MemoryData { usage, max_usage, failcnt, limit, ..Default::default() })
        };
        let io =
            |op: &str, value| pb::BlkioStatsEntry { major: 8, minor: 16, op: op.into(), value, ..Default::default() };
        let cgroup = pb::CgroupStats {
            cpu_stats: MessageField::some(pb::CpuStats {
                cpu_usage: MessageField::some(pb::CpuUsage {
                    total_usage: 5_000_000,
                    usage_in_kernelmode: 2_000_000,
                    usage_in_usermode: 3_000_000,
                    ..Default::default()
                }),
                throttling_data: MessageField::some(pb::ThrottlingData {
                    periods: 7,
                    throttled_periods: 6,
                    throttled_time: 9_000,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            memory_stats: MessageField::some(pb::MemoryStats {
                cache: 40,
                usage: data(100, 120, 3, 1 << 20),
                swap_usage: data(110, 0, 4, (1 << 20) + 50),
                kernel_usage: data(5, 0, 0, 0),
                use_hierarchy: true,
                stats: map(&[
                    ("anon", 60),
                    ("file", 40),
                    ("anon_thp", 8),
                    ("file_mapped", 11),
                    ("file_dirty", 12),
                    ("file_writeback", 13),
                    ("pgfault", 14),
                    ("pgmajfault", 15),
                    ("inactive_anon", 16),
                    ("active_anon", 17),
                    ("inactive_file", 18),
                    ("active_file", 19),
                    ("unevictable", 20),
                    ("sock", 21),
                    ("slab", 22),
                    ("workingset_refault_anon", 23),
                    ("workingset_refault_file", 24),
                ]),
                unified: map(&[
                    ("swap.current", 10),
                    ("swap.max", 50),
                    ("swap.peak", 31),
                    ("events.low", 32),
                    ("events.max", 3),
                    ("events.oom", 33),
                    ("events.oom_kill", 34),
                ]),
                ..Default::default()
            }),
            pids_stats: MessageField::some(pb::PidsStats { current: 2, limit: 0, ..Default::default() }),
            blkio_stats: MessageField::some(pb::BlkioStats {
                io_service_bytes_recursive: vec![io("Read", 41), io("Write", 42), io("Discard", 43)],
                io_serviced_recursive: vec![io("Read", 44), io("Write", 45), io("Discard", 46)],
                ..Default::default()
            }),
            hugetlb_stats: HashMap::from([(
                "2MB".to_owned(),
                pb::HugetlbStats { usage: 51, max_usage: 52, failcnt: 53, limit: 54, ..Default::default() },
            )]),
            ..Default::default()
        };
        let network = pb::NetworkStats {
            name: "eth0".into(),
            rx_bytes: 61,
            rx_packets: 62,
            rx_errors: 63,
            rx_dropped: 64,
            tx_bytes: 65,
            tx_packets: 66,
            tx_errors: 67,
            tx_dropped: 68,
            ..Default::default()
        };
        pb::StatsContainerResponse {
            cgroup_stats: MessageField::some(cgroup),
            network_stats: vec![network],
            ..Default::default()
        }
    }

    #[test]
    fn the_message_is_named_as_its_readers_know_it() {
        for (shape, name) in
            [(Shape::V1, "io.containerd.cgroups.v1.Metrics"), (Shape::V2, "io.containerd.cgroups.v2.Metrics")]
        {
            assert_eq!(metrics(&sample(), shape).unwrap().type_url, name);
        }
        let any = metrics(&sample(), Shape::V2).unwrap();
        let back = containerd_shim_protos::cgroups_v2::metrics::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(back, v2::metrics(&sample()));
    }

    #[test]
    fn a_directory_that_is_no_cgroup2_mount_is_v1() {
        assert_eq!(Shape::of(Path::new("/")), Shape::V1);
        assert_eq!(Shape::of(Path::new("/no/such/mount")), Shape::V1);
    }

    #[test]
    fn a_guest_that_counts_nothing_gives_an_empty_message() {
        let empty = pb::StatsContainerResponse::new();
        assert_eq!(v1::metrics(&empty), Default::default());
        assert_eq!(v2::metrics(&empty), Default::default());
    }
}
