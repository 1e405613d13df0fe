//! How fast the host's time-stamp counter runs. A guest without KVM has that counter, and must be told: left to find out by
//! itself it counts ticks against an emulated timer, and on a busy host gets it wrong. One was wrong by so much that two minutes of
//! its clock were seconds, and calls timed out at once.

use std::path::Path;
use std::time::Duration;

/// Long enough for an error of a few millionths.
const OVER: Duration = Duration::from_millis(50);

/// In kHz; measured once per boot of the host, so that all guests, and their templates, are told the same. `None`: this
/// architecture has none.
pub fn host_tsc_khz() -> Option<u64> {
    let dir = Path::new(kata_types::HOST_RUN_DIR);
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let path = dir.join(format!("tsc-{}", boot.trim()));
    kept(&path).or_else(|| {
        let khz = kata_sys::tsc::frequency_khz(OVER)?;
        if let Err(e) = keep(&path, khz) {
            tracing::debug!("cannot keep {}: {e}", path.display());
        }
        // Somebody may have been faster: what is kept counts.
        kept(&path).or(Some(khz))
    })
}

fn kept(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The first one counts, for good.
fn keep(path: &Path, khz: u64) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let partial = path.with_extension(std::process::id().to_string());
    std::fs::write(&partial, khz.to_string())?;
    let linked = std::fs::hard_link(&partial, path);
    std::fs::remove_file(&partial)?;
    match linked {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_measurement_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d/tsc");
        keep(&path, 2_500_000).unwrap();
        keep(&path, 2_500_001).unwrap();
        assert_eq!(kept(&path), Some(2_500_000));
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
