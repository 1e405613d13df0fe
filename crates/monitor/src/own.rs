//! The monitor's metrics of itself: `kata_monitor_*`.

use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kata_metrics::{Histogram, Kind, Page, Process, proc_stat};

/// What it counts.
#[derive(Debug, Default)]
pub struct Own(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    scrapes: u64,
    failed: u64,
    took: Histogram,
}

impl Own {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All sandboxes were asked once; `failed` of them gave nothing.
    pub fn scraped(&self, took: Duration, failed: usize) {
        let mut counts = self.counts();
        counts.scrapes += 1;
        counts.failed += failed as u64;
        counts.took.observe(took);
    }

    /// Writes them.
    pub fn write(&self, page: &mut Page, running: usize) {
        {
            let counts = self.counts();
            page.single("kata_monitor_running_shim_count", "Sandboxes that run.", Kind::Gauge, running);
            page.single("kata_monitor_scrape_count", "How often all were asked.", Kind::Counter, counts.scrapes);
            let help = "How many sandboxes gave nothing when they were asked.";
            page.single("kata_monitor_scrape_failed_count", help, Kind::Counter, counts.failed);
            let help = "How long it took to ask all.";
            let name = "kata_monitor_scrape_durations_histogram_milliseconds";
            counts.took.write(&mut page.family(name, help, Kind::Histogram), &[]);
        }
        process(page);
    }
}

fn process(page: &mut Page) {
    let read = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
    let process = Process { stat: read("stat"), status: read("status"), ..Process::default() };
    let gauge = Kind::Gauge;
    if let Some(([utime, stime, ..], _)) = proc_stat(&process.stat) {
        let seconds = (utime + stime) as f64 / rustix::param::clock_ticks_per_second() as f64;
        page.single("kata_monitor_process_cpu_seconds_total", "CPU time of the monitor.", Kind::Counter, seconds);
    }
    for (key, name, help) in [
        ("VmRSS", "kata_monitor_process_resident_memory_bytes", "Resident memory of the monitor."),
        ("VmSize", "kata_monitor_process_virtual_memory_bytes", "Virtual memory of the monitor."),
    ] {
        if let Some(kib) = process.status_number(key) {
            page.single(name, help, gauge, kib * 1024);
        }
    }
    if let Ok(fds) = fs::read_dir("/proc/self/fd") {
        page.single("kata_monitor_process_open_fds", "Open file descriptors of the monitor.", gauge, fds.count());
    }
    if let Some(most) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
        page.single("kata_monitor_process_max_fds", "The most file descriptors that it may have.", gauge, most);
    }
}
