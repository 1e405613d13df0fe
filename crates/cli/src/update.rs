//! `update`.

use std::io::Read;

use kata_oci::{BlockIo, Cpu, Memory, Pids, Resources};

use crate::args::UpdateArgs;
use crate::client::Daemon;
use crate::error::{CliError, io};
use crate::store::Store;

/// `update`.
pub async fn update(store: &Store, a: UpdateArgs) -> Result<u8, CliError> {
    let entry = store.get(&a.id)?;
    let resources = match &a.resources {
        Some(path) => {
            let mut text = Vec::new();
            if path.as_os_str() == "-" {
                std::io::stdin().read_to_end(&mut text).map_err(io("read", path))?;
            } else {
                text = std::fs::read(path).map_err(io("read", path))?;
            }
            serde_json::from_slice(&text)
                .map_err(|e| CliError::Usage(format!("{} is not valid: {e}", path.display())))?
        }
        None => from_flags(&a)?,
    };
    let daemon = Daemon::connect(&store.run_dir(&a.id, &entry)).await.ok_or(CliError::NotRunning)?;
    daemon.update(&a.id, &resources).await?;
    Ok(0)
}

fn from_flags(a: &UpdateArgs) -> Result<Resources, CliError> {
    let memory = Memory {
        limit: a.memory.as_deref().map(bytes).transpose()?,
        reservation: a.memory_reservation.as_deref().map(bytes).transpose()?,
        swap: a.memory_swap.as_deref().map(bytes).transpose()?,
        ..Memory::default()
    };
    let cpu = Cpu {
        shares: a.cpu_share,
        quota: a.cpu_quota,
        period: a.cpu_period,
        cpus: a.cpuset_cpus.clone(),
        mems: a.cpuset_mems.clone(),
        ..Cpu::default()
    };
    let resources = Resources {
        memory: (memory != Memory::default()).then_some(memory),
        cpu: (cpu != Cpu::default()).then_some(cpu),
        pids: a.pids_limit.map(|limit| Pids { limit }),
        block_io: a.blkio_weight.map(|w| BlockIo { weight: Some(w), ..BlockIo::default() }),
        ..Resources::default()
    };
    if resources == Resources::default() {
        return Err(CliError::Usage("nothing to update: name a limit, or a file with --resources".into()));
    }
    Ok(resources)
}

/// "64m" and the like; -1 is no limit.
fn bytes(text: &str) -> Result<i64, CliError> {
    let bad = || CliError::Usage(format!("{text:?} is not a number of bytes; write 1048576, 1024k, 1m, 1g or -1"));
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches('b');
    let (digits, shift) = match digits.chars().last() {
        Some('k') => (&digits[..digits.len() - 1], 10),
        Some('m') => (&digits[..digits.len() - 1], 20),
        Some('g') => (&digits[..digits.len() - 1], 30),
        _ => (digits, 0),
    };
    let n: i64 = digits.parse().map_err(|_| bad())?;
    n.checked_mul(1 << shift).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes() {
        for (text, n) in [("-1", -1), ("64m", 64 << 20), ("1G", 1 << 30), ("5", 5), ("2kb", 2048)] {
            assert_eq!(bytes(text).unwrap(), n);
        }
        for bad in ["", "x", "m", "99999999999g"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }
}
