//! Bringing present CPUs and memory blocks on line through sysfs (Documentation/ABI/testing/sysfs-devices-system-cpu
//! and sysfs-devices-memory).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thiserror::Error;

const CPUS: &str = "/sys/devices/system/cpu";
const MEMORY: &str = "/sys/devices/system/memory";
/// How often a CPU that is being plugged is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Why something could not be brought on line.
#[derive(Debug, Error)]
pub enum OnlineError {
    /// sysfs cannot be listed.
    #[error("cannot list {path}")]
    List {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused.
    #[error("cannot write 1 to {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused.
    #[error("cannot write 0 to {path}")]
    Offline {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Fewer CPUs than wanted are there.
    #[error("{wanted} CPUs should come on line, and within {} s only {got} did", waited.as_secs())]
    Missing {
        /// How many were asked for.
        wanted: u32,
        /// How many came.
        got: u32,
        /// How long we looked.
        waited: Duration,
    },
}

/// The `online` files, below the entries of `dir` whose names are `prefix` and a number, that hold a 0.
fn offline(dir: &Path, prefix: &str) -> Result<Vec<PathBuf>, OnlineError> {
    that_hold(dir, prefix, "0")
}

fn that_hold(dir: &Path, prefix: &str, state: &str) -> Result<Vec<PathBuf>, OnlineError> {
    let list = |source| OnlineError::List { path: dir.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(list)? {
        let entry = entry.map_err(list)?;
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|n| n.strip_prefix(prefix)).and_then(|n| n.parse::<u32>().ok())
        else {
            continue;
        };
        let path = entry.path().join("online");
        // A CPU that cannot be taken off line (the first) has no such file.
        if fs::read_to_string(&path).is_ok_and(|text| text.trim() == state) {
            found.push((number, path));
        }
    }
    found.sort_unstable();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

fn bring_up(path: PathBuf) -> Result<(), OnlineError> {
    fs::write(&path, "1").map_err(|source| OnlineError::Write { path, source })
}

/// Brings `count` more CPUs on line, the lowest numbers first; 0 brings none. With `wait`, waits that long for all of
/// them to be there, else takes those that are. Blocks.
///
/// # Errors
/// [`OnlineError`].
pub fn cpus(count: u32, wait: Option<Duration>) -> Result<(), OnlineError> {
    cpus_in(Path::new(CPUS), count, wait)
}

fn cpus_in(dir: &Path, count: u32, wait: Option<Duration>) -> Result<(), OnlineError> {
    let start = Instant::now();
    let mut left = count;
    while left > 0 {
        for path in offline(dir, "cpu")?.into_iter().take(left as usize) {
            bring_up(path)?;
            left -= 1;
        }
        let Some(limit) = wait else { break };
        if left > 0 && start.elapsed() >= limit {
            return Err(OnlineError::Missing { wanted: count, got: count - left, waited: limit });
        }
        if left > 0 {
            std::thread::sleep(LOOK_AGAIN);
        }
    }
    if left > 0 {
        log::info!("{} of {count} CPUs came on line; no more are present", count - left);
    }
    Ok(())
}

/// Takes `count` CPUs off line, the highest numbers first; as many as can be, the first one stays. Blocks.
///
/// # Errors
/// [`OnlineError`].
pub fn fewer_cpus(count: u32) -> Result<(), OnlineError> {
    fewer_cpus_in(Path::new(CPUS), count)
}

fn fewer_cpus_in(dir: &Path, count: u32) -> Result<(), OnlineError> {
    for path in that_hold(dir, "cpu", "1")?.into_iter().rev().take(count as usize) {
        fs::write(&path, "0").map_err(|source| OnlineError::Offline { path, source })?;
    }
    Ok(())
}

/// Brings every memory block on line. Blocks.
///
/// # Errors
/// [`OnlineError`].
pub fn memory() -> Result<(), OnlineError> {
    let dir = Path::new(MEMORY);
    if !dir.exists() {
        // A kernel without memory hot-plug has nothing to bring on line.
        return Ok(());
    }
    offline(dir, "memory")?.into_iter().try_for_each(bring_up)
}

/// Makes the kernel bring memory on line as it appears.
pub fn auto_online_memory() {
    let path = Path::new(MEMORY).join("auto_online_blocks");
    if path.exists()
        && let Err(e) = fs::write(&path, "online")
    {
        log::warn!("memory that is plugged will wait for OnlineCPUMem: {e}");
    }
}

/// The size of a memory block in bytes; `None` without memory hot-plug.
pub fn memory_block_bytes() -> Option<u64> {
    let text = fs::read_to_string(Path::new(MEMORY).join("block_size_bytes")).ok()?;
    u64::from_str_radix(text.trim(), 16).ok()
}

/// Whether memory can be announced by writing its address (only some architectures).
pub fn memory_probe() -> bool {
    Path::new(MEMORY).join("probe").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_offline_cpus_come_first_and_missing_ones_are_told() {
        let dir = tempfile::tempdir().unwrap();
        for (name, online) in [("cpu0", None), ("cpu1", Some("1")), ("cpu2", Some("0")), ("cpu10", Some("0"))] {
            fs::create_dir(dir.path().join(name)).unwrap();
            if let Some(text) = online {
                fs::write(dir.path().join(name).join("online"), format!("{text}\n")).unwrap();
            }
        }
        fs::create_dir(dir.path().join("cpufreq")).unwrap();
        let state = |n: &str| fs::read_to_string(dir.path().join(n).join("online")).unwrap();
        cpus_in(dir.path(), 1, None).unwrap();
        assert_eq!((state("cpu2").trim(), state("cpu10").trim()), ("1", "0"));
        let e = cpus_in(dir.path(), 2, Some(Duration::ZERO)).unwrap_err();
        assert!(matches!(e, OnlineError::Missing { wanted: 2, got: 1, .. }), "{e}");
        cpus_in(dir.path(), 5, None).unwrap();
        fewer_cpus_in(dir.path(), 1).unwrap();
        assert_eq!((state("cpu1").trim(), state("cpu2").trim(), state("cpu10").trim()), ("1", "1", "0"));
        fewer_cpus_in(dir.path(), 9).unwrap();
        assert_eq!((state("cpu1").trim(), state("cpu2").trim()), ("0", "0"));
    }
}
