//! Between the engine's words and containerd's.

use std::time::{SystemTime, UNIX_EPOCH};

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{Message, MessageField};
use kata_proto::agent as pb;
use kata_sandbox::SandboxError;
use ttrpc::{Code, Error};

/// A time on the wire.
pub fn timestamp(at: SystemTime) -> MessageField<Timestamp> {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut t = Timestamp::new();
    t.seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    t.nanos = since.subsec_nanos().cast_signed();
    MessageField::some(t)
}

/// An error with the code that containerd understands (errdefs).
pub fn error(err: &SandboxError) -> Error {
    let code = match err {
        SandboxError::NotFound(_) | SandboxError::Finished => Code::NOT_FOUND,
        SandboxError::Exists(_) => Code::ALREADY_EXISTS,
        SandboxError::State { .. } => Code::FAILED_PRECONDITION,
        SandboxError::Id(_) | SandboxError::Spec(_) => Code::INVALID_ARGUMENT,
        SandboxError::Plan(kata_sandbox::PlanError::Unsupported(_)) => Code::UNIMPLEMENTED,
        SandboxError::Plan(_) => Code::INVALID_ARGUMENT,
        SandboxError::Dead(_) => Code::UNAVAILABLE,
        _ => Code::UNKNOWN,
    };
    status(code, err.to_string())
}

/// An error by hand.
pub fn status(code: Code, text: impl Into<String>) -> Error {
    Error::RpcStatus(ttrpc::get_status(code, text.into()))
}

/// A message in an `Any`, named as containerd's typeurl names it.
pub fn any<M: Message>(name: &str, message: &M) -> Result<Any, Error> {
    let mut any = Any::new();
    name.clone_into(&mut any.type_url);
    any.value = message.write_to_bytes().map_err(|e| status(Code::INTERNAL, e.to_string()))?;
    Ok(any)
}

/// The guest's counters as containerd's v1 metrics, which every version of it reads.
pub fn metrics(stats: &pb::StatsContainerResponse) -> Result<Any, Error> {
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
        }
        if let Some(b) = cg.blkio_stats.as_ref() {
            let mut io = v1::BlkIOStat::new();
            io.io_service_bytes_recursive = b.io_service_bytes_recursive.iter().map(blkio).collect();
            io.io_serviced_recursive = b.io_serviced_recursive.iter().map(blkio).collect();
            out.blkio = MessageField::some(io);
        }
    }
    out.network = stats
        .network_stats
        .iter()
        .map(|n| {
            let mut s = v1::NetworkStat::new();
            s.name.clone_from(&n.name);
            (s.rx_bytes, s.rx_packets, s.rx_errors, s.rx_dropped) =
                (n.rx_bytes, n.rx_packets, n.rx_errors, n.rx_dropped);
            (s.tx_bytes, s.tx_packets, s.tx_errors, s.tx_dropped) =
                (n.tx_bytes, n.tx_packets, n.tx_errors, n.tx_dropped);
            s
        })
        .collect();
    any("io.containerd.cgroups.v1.Metrics", &out)
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

fn memory(m: &pb::MemoryStats) -> v1::MemoryStat {
    let entry = |d: &MessageField<pb::MemoryData>| {
        let mut e = v1::MemoryEntry::new();
        if let Some(d) = d.as_ref() {
            (e.limit, e.usage, e.max, e.failcnt) = (d.limit, d.usage, d.max_usage, d.failcnt);
        }
        MessageField::some(e)
    };
    let mut out = v1::MemoryStat::new();
    out.cache = m.cache;
    out.usage = entry(&m.usage);
    out.swap = entry(&m.swap_usage);
    out.kernel = entry(&m.kernel_usage);
    let get = |key: &str| m.stats.get(key).copied().unwrap_or(0);
    // v2's names (cgroup-v2.rst, memory.stat) where v1's readers look.
    out.rss = get("anon");
    out.mapped_file = get("file_mapped");
    out.dirty = get("file_dirty");
    out.writeback = get("file_writeback");
    out.pg_fault = get("pgfault");
    out.pg_maj_fault = get("pgmajfault");
    (out.inactive_anon, out.active_anon) = (get("inactive_anon"), get("active_anon"));
    (out.inactive_file, out.active_file) = (get("inactive_file"), get("active_file"));
    out.unevictable = get("unevictable");
    out.total_inactive_file = out.inactive_file;
    (out.total_rss, out.total_cache) = (out.rss, out.cache);
    out
}

fn blkio(e: &pb::BlkioStatsEntry) -> v1::BlkIOEntry {
    let mut out = v1::BlkIOEntry::new();
    (out.major, out.minor, out.value) = (e.major, e.minor, e.value);
    out.op.clone_from(&e.op);
    out
}
