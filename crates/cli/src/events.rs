//! `events`: statistics in runc's JSON.

use std::time::Duration;

use containerd_shim_protos::cgroups::metrics::{BlkIOEntry, MemoryEntry, Metrics};
use kata_oci::Status;
use serde_json::{Value, json};

use crate::client::{Daemon, Failure};
use crate::error::CliError;
use crate::store::Store;

/// `events`: until the container ends, or once.
pub async fn events(store: &Store, id: &str, interval: &str, once: bool) -> Result<u8, CliError> {
    let interval = duration(interval)?;
    store.get(id)?;
    let daemon = Daemon::connect(&store.run_dir(id)).await.ok_or(CliError::NotRunning)?;
    if daemon.state(id, "").await?.status == Status::Stopped {
        return Err(CliError::NotRunning);
    }
    loop {
        match daemon.stats(id).await {
            Ok(stats) => println!("{}", json!({ "type": "stats", "id": id, "data": data(&stats) })),
            Err(Failure::NotFound(_)) if !once => return Ok(0),
            Err(err) => {
                // It may have ended meanwhile.
                if !once && daemon.state(id, "").await.map_or(true, |s| s.status == Status::Stopped) {
                    return Ok(0);
                }
                return Err(err.into());
            }
        }
        if once {
            return Ok(0);
        }
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            _ = daemon.wait(id, Duration::from_secs(3600 * 24)) => return Ok(0),
        }
    }
}

fn duration(text: &str) -> Result<Duration, CliError> {
    let bad = || CliError::Usage(format!("--interval {text:?}: write 5s, 500ms, 1m, or seconds"));
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let n: u64 = text[..split].parse().map_err(|_| bad())?;
    let d = match &text[split..] {
        "" | "s" => Duration::from_secs(n),
        "ms" => Duration::from_millis(n),
        "m" => Duration::from_secs(n.checked_mul(60).ok_or_else(bad)?),
        _ => return Err(bad()),
    };
    if d.is_zero() { Err(bad()) } else { Ok(d) }
}

fn data(m: &Metrics) -> Value {
    let cpu = m.cpu.as_ref().and_then(|c| {
        let u = c.usage.as_ref()?;
        let t = c.throttling.clone().unwrap_or_default();
        Some(json!({
            "usage": { "total": u.total, "percpu": u.per_cpu, "kernel": u.kernel, "user": u.user },
            "throttling": { "periods": t.periods, "throttledPeriods": t.throttled_periods, "throttledTime": t.throttled_time },
        }))
    });
    let memory = m.memory.as_ref().map(|mem| {
        json!({
            "cache": mem.cache,
            "usage": entry(mem.usage.as_ref()),
            "swap": entry(mem.swap.as_ref()),
            "kernel": entry(mem.kernel.as_ref()),
            "raw": { "rss": mem.rss, "mapped_file": mem.mapped_file, "pgfault": mem.pg_fault, "pgmajfault": mem.pg_maj_fault,
                     "inactive_file": mem.inactive_file, "active_file": mem.active_file,
                     "inactive_anon": mem.inactive_anon, "active_anon": mem.active_anon },
        })
    });
    let blkio = |entries: &[BlkIOEntry]| -> Value {
        entries.iter().map(|e| json!({ "major": e.major, "minor": e.minor, "op": e.op, "value": e.value })).collect()
    };
    let io = m.blkio.clone().unwrap_or_default();
    let pids = m.pids.clone().unwrap_or_default();
    json!({
        "cpu": cpu,
        "memory": memory,
        "pids": { "current": pids.current, "limit": pids.limit },
        "blkio": { "ioServiceBytesRecursive": blkio(&io.io_service_bytes_recursive),
                   "ioServicedRecursive": blkio(&io.io_serviced_recursive) },
        "hugetlb": {},
        "network_interfaces": m.network.iter().map(|n| json!({
            "Name": n.name,
            "RxBytes": n.rx_bytes, "RxPackets": n.rx_packets, "RxErrors": n.rx_errors, "RxDropped": n.rx_dropped,
            "TxBytes": n.tx_bytes, "TxPackets": n.tx_packets, "TxErrors": n.tx_errors, "TxDropped": n.tx_dropped,
        })).collect::<Value>(),
    })
}

fn entry(e: Option<&MemoryEntry>) -> Value {
    let e = e.cloned().unwrap_or_default();
    json!({ "limit": e.limit, "usage": e.usage, "max": e.max, "failcnt": e.failcnt })
}

#[cfg(test)]
mod tests {
    use super::duration;
    use std::time::Duration;

    #[test]
    fn intervals() {
        assert_eq!(duration("5s").unwrap(), Duration::from_secs(5));
        assert_eq!(duration("250ms").unwrap(), Duration::from_millis(250));
        for bad in ["", "0", "s", "1h", "-1"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
