//! The page of a sandbox's metrics, with upstream's names.

use std::fs;
use std::path::Path;
use std::time::Duration;

use kata_metrics::{Around, Collection, Durations, Items, Limits, Page, Process, netdev};
use kata_sandbox::Sandbox;

use super::overhead::Overhead;

/// A guest that hangs must not take the host's numbers along: whoever scrapes waits some ten seconds for a whole node.
const GUEST_WITHIN: Duration = Duration::from_secs(2);

/// Writes it. What cannot be had (a guest that is gone) is left out, with a line in the log.
pub async fn page(sandbox: &Sandbox, tasks: &Durations, overhead: &mut Overhead) -> String {
    let mut page = Page::default();
    shim(&mut page);
    tasks.write(&mut page, "kata_shim_rpc_durations_histogram_milliseconds", "How long requests of the engine took.");
    if let Ok(agent) = sandbox.connected_agent() {
        let durations = agent.calls().durations();
        let help = "How long calls to the agent took.";
        durations.write(&mut page, "kata_shim_agent_rpc_durations_histogram_milliseconds", help);
    }
    let machine = sandbox.machine_processes();
    if let Some(pid) = machine.vmm {
        files(pid).write(&mut page, "kata_hypervisor", "the hypervisor", Items::Joined);
        let text = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
        netdev(&mut page, "kata_hypervisor_netdev", "Network devices where the hypervisor is.", &text);
    }
    if let Some(pid) = machine.fs {
        files(pid).write(&mut page, "kata_virtiofsd", "the file daemon", Items::Joined);
    }
    if tokio::time::timeout(GUEST_WITHIN, overhead.write(&mut page, sandbox)).await.is_err() {
        tracing::warn!("the overhead cannot be told: the guest does not answer");
    }
    match tokio::time::timeout(GUEST_WITHIN, sandbox.guest_metrics()).await {
        Ok(Ok(text)) => match guest(&text) {
            Ok(text) => page.append(&text),
            Err(err) => tracing::warn!("the guest's metrics are refused: {err}"),
        },
        Ok(Err(err)) => tracing::warn!("the guest's metrics cannot be had: {err}"),
        Err(_) => tracing::warn!("the guest's metrics cannot be had: it does not answer"),
    }
    page.finish()
}

/// The guest's page, if it is one, and of nothing but the guest.
fn guest(text: &str) -> Result<String, kata_metrics::PageError> {
    let mut collection = Collection::default();
    let reserved = ["sandbox_id", "cri_uid", "cri_name", "cri_namespace"];
    collection.add(text, &["kata_agent_", "kata_guest_"], &[], &reserved, Limits::default())?;
    Ok(collection.finish())
}

/// What /proc has of a process; it may be gone.
fn files(pid: i32) -> Process {
    let dir = Path::new("/proc").join(pid.to_string());
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
    Process {
        stat: read("stat"),
        status: read("status"),
        io: read("io"),
        fds: fs::read_dir(dir.join("fd")).ok().map(Iterator::count),
    }
}

fn shim(page: &mut Page) {
    let process = files(std::process::id().cast_signed());
    process.write(page, "kata_shim", "the sandbox's daemon", Items::Joined);
    let machine = fs::read_to_string("/proc/stat").unwrap_or_default();
    let around = Around {
        ticks_per_second: rustix::param::clock_ticks_per_second(),
        machine: &machine,
        max_fds: rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
    };
    process.write_standard(page, "kata_shim", "the daemon", around);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_tells_of_nothing_but_itself() {
        assert_eq!(guest("kata_guest_load{item=\"load1\"} 1\n").unwrap(), "kata_guest_load{item=\"load1\"} 1\n");
        assert!(guest("kata_shim_fds 1\n").is_err());
        assert!(guest("kata_guest_load{sandbox_id=\"other\"} 1\n").is_err());
    }

    #[test]
    fn the_daemon_tells_of_itself() {
        let mut page = Page::default();
        shim(&mut page);
        let text = page.finish();
        for name in ["kata_shim_threads", "kata_shim_fds", "kata_shim_process_resident_memory_bytes"] {
            let number = text.lines().find_map(|l| l.strip_prefix(name)?.trim().parse::<u64>().ok());
            assert!(number.is_some_and(|n| n > 0), "{name} in:\n{text}");
        }
    }
}
