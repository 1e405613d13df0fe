//! The threads that run the guest's CPUs.

use kata_vmm::DeviceError;
use serde_json::Value;

use super::QemuVm;

impl QemuVm {
    /// Their ids on this side: QEMU tells those of its own pid namespace.
    pub(super) async fn find_vcpu_threads(&self) -> Result<Vec<i32>, DeviceError> {
        const OPERATION: &str = "tell its CPUs' threads";
        let refused = |reason: String| DeviceError::Refused { operation: OPERATION.into(), reason };
        let cpus = self.command(OPERATION, "query-cpus-fast", Value::Null, None).await?;
        let inside: Vec<i64> = cpus.as_array().into_iter().flatten().filter_map(|c| c["thread-id"].as_i64()).collect();
        let tasks = format!("/proc/{}/task", self.process.pid());
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&tasks).map_err(|e| refused(format!("{tasks}: {e}")))?.flatten() {
            // A thread may end meanwhile.
            let Ok(status) = std::fs::read_to_string(entry.path().join("status")) else { continue };
            if innermost(&status).is_some_and(|id| inside.contains(&id))
                && let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok())
            {
                found.push(id);
            }
        }
        if found.is_empty() {
            return Err(refused(format!("none of the threads in {tasks} is one of {inside:?}")));
        }
        Ok(found)
    }
}

/// What the thread is called in the innermost pid namespace that it is in (proc_pid_status(5), NSpid).
fn innermost(status: &str) -> Option<i64> {
    status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_ascii_whitespace().last()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::innermost;

    #[test]
    fn the_innermost_name_counts() {
        assert_eq!(innermost("Name:\tq\nNSpid:\t1234\t7\nNSpgid:\t1\n"), Some(7));
        assert_eq!(innermost("NSpid:\t1234\n"), Some(1234));
        assert_eq!(innermost("Name:\tq\n"), None);
    }
}
