//! What a sandbox costs beyond what its containers use: upstream's `kata_shim_pod_overhead_*`.

use std::fs;
use std::time::Instant;

use kata_metrics::{Kind, Page, proc_stat};
use kata_sandbox::Sandbox;

/// What was used at one time: by the host's processes, and by the containers in the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Used {
    /// CPU seconds.
    host_cpu: f64,
    /// CPU seconds.
    guest_cpu: f64,
    /// Bytes.
    host_memory: u64,
    /// Bytes.
    guest_memory: u64,
}

/// The last look, which the next one is compared with.
#[derive(Debug, Default)]
pub struct Overhead(Option<(Instant, Used)>);

impl Overhead {
    /// Looks and writes. CPU is a percentage of one CPU since the last look, so the first look tells none.
    pub async fn write(&mut self, page: &mut Page, sandbox: &Sandbox) {
        let Some(used) = look(sandbox).await else { return };
        let now = Instant::now();
        page.single(
            "kata_shim_pod_overhead_memory_in_bytes",
            "Memory of the sandbox on the host (proportional set size) beyond what its containers use.",
            Kind::Gauge,
            used.host_memory.saturating_sub(used.guest_memory),
        );
        if let Some((then, before)) = self.0.replace((now, used)) {
            page.single(
                "kata_shim_pod_overhead_cpu",
                "CPU of the sandbox on the host beyond what its containers use, percent of one CPU since the last scrape.",
                Kind::Gauge,
                percent(before, used, now.duration_since(then).as_secs_f64()),
            );
        }
    }
}

fn percent(before: Used, now: Used, seconds: f64) -> f64 {
    let beyond = (now.host_cpu - before.host_cpu) - (now.guest_cpu - before.guest_cpu);
    // Containers come and go between two looks.
    if seconds > 0.0 { (beyond / seconds * 100.0).max(0.0) } else { 0.0 }
}

/// `None` where the guest does not tell: the difference would be a lie.
async fn look(sandbox: &Sandbox) -> Option<Used> {
    let mut used = Used::default();
    let machine = sandbox.machine_processes();
    for pid in [Some(std::process::id().cast_signed()), machine.vmm, machine.fs].into_iter().flatten() {
        used.host_cpu += cpu_seconds(pid)?;
        used.host_memory += proportional_bytes(pid)?;
    }
    for id in sandbox.container_ids() {
        let stats = sandbox.stats(&id).await.ok()?;
        let cgroup = stats.cgroup_stats.as_ref()?;
        let cpu = cgroup.cpu_stats.as_ref().and_then(|c| c.cpu_usage.as_ref()).map_or(0, |u| u.total_usage);
        used.guest_cpu += cpu as f64 / 1e9;
        used.guest_memory += cgroup.memory_stats.as_ref().and_then(|m| m.usage.as_ref()).map_or(0, |usage| usage.usage);
    }
    Some(used)
}

fn cpu_seconds(pid: i32) -> Option<f64> {
    let ([utime, stime, ..], _) = proc_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
    Some((utime + stime) as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// The guest's memory is mapped by the VMM and the file daemon: each page is to be counted once (proc_pid_smaps(5)).
fn proportional_bytes(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("Pss:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_beyond_the_containers_is_told_in_percent() {
        let at = |host_cpu, guest_cpu| Used { host_cpu, guest_cpu, ..Used::default() };
        assert_eq!(percent(at(10.0, 4.0), at(12.0, 5.0), 2.0), 50.0);
        assert_eq!(percent(at(10.0, 4.0), at(10.0, 5.0), 2.0), 0.0);
        assert_eq!(percent(at(1.0, 0.0), at(2.0, 0.0), 0.0), 0.0);
    }

    #[test]
    fn this_process_has_used_something() {
        let me = std::process::id().cast_signed();
        assert!(cpu_seconds(me).is_some() && proportional_bytes(me).is_some_and(|bytes| bytes > 4096));
    }
}
