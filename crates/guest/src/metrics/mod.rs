//! What GetMetrics answers: the agent's process and the guest's kernel as /proc tells of them, as a page in Prometheus'
//! format with upstream's names. Nothing is counted or kept while nobody asks, but how often somebody did.

mod kernel;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use kata_metrics::{Around, Items, Kind, Page, Process, proc_stat};

static SCRAPES: AtomicU64 = AtomicU64::new(0);

/// The page.
pub fn page() -> String {
    let scrapes = SCRAPES.fetch_add(1, Ordering::Relaxed) + 1;
    let proc = Path::new("/proc");
    let mut page = Page::default();
    page.single("kata_agent_scrape_count", "How often these metrics were asked for.", Kind::Counter, scrapes);
    agent(&mut page, &proc.join("self"), &read(&proc.join("stat")));
    kernel::write(&mut page, proc);
    page.finish()
}

/// A file of /proc; empty where the kernel has none, and then nothing of it is told.
fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn agent(page: &mut Page, dir: &Path, machine: &str) {
    let process = Process {
        stat: read(&dir.join("stat")),
        status: read(&dir.join("status")),
        io: read(&dir.join("io")),
        fds: fs::read_dir(dir.join("fd")).ok().map(Iterator::count),
    };
    process.write(page, "kata_agent", "the agent", Items::Kernels);
    let around = Around {
        ticks_per_second: rustix::param::clock_ticks_per_second(),
        machine,
        max_fds: rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
    };
    process.write_standard(page, "kata_agent", "the agent", around);
    // The same again, under upstream's older names.
    let gauge = Kind::Gauge;
    if let Some(([utime, stime, ..], _)) = proc_stat(&process.stat) {
        let seconds = around.seconds(utime + stime);
        page.single("kata_agent_total_time", "CPU time of the agent in seconds.", gauge, seconds);
    }
    let bytes = |key| process.status_number(key).map(|kib| kib * 1024);
    if let Some(rss) = bytes("VmRSS") {
        page.single("kata_agent_total_rss", "Resident memory of the agent in bytes.", gauge, rss);
    }
    if let Some(size) = bytes("VmSize") {
        page.single("kata_agent_total_vm", "Virtual memory of the agent in bytes.", gauge, size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_every_family_of_an_agent() {
        let (first, second) = (page(), page());
        for name in [
            "kata_agent_threads",
            "kata_agent_fds",
            "kata_agent_proc_status",
            "kata_agent_proc_stat",
            "kata_agent_io_stat",
            "kata_agent_process_cpu_seconds_total",
            "kata_agent_total_time",
            "kata_agent_process_start_time_seconds",
            "kata_agent_process_resident_memory_bytes",
            "kata_agent_total_rss",
            "kata_agent_process_virtual_memory_bytes",
            "kata_agent_total_vm",
            "kata_agent_process_open_fds",
            "kata_agent_process_max_fds",
            "kata_guest_load",
            "kata_guest_tasks",
            "kata_guest_cpu_time",
            "kata_guest_meminfo",
            "kata_guest_vm_stat",
            "kata_guest_netdev_stat",
        ] {
            let sample = |l: &str| l.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
            assert!(first.lines().any(sample), "{name} is not in:\n{first}");
        }
        let scrapes = |page: &str| {
            let line = page.lines().find_map(|l| l.strip_prefix("kata_agent_scrape_count ")).unwrap();
            line.parse::<u64>().unwrap()
        };
        assert!(scrapes(&second) > scrapes(&first));
        // The host takes it.
        let mut all = kata_metrics::Collection::default();
        all.add(&first, &["kata_agent_", "kata_guest_"], &[], &["sandbox_id"], kata_metrics::Limits::default())
            .unwrap();
    }
}
