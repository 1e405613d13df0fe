//! `events`: statistics, and out-of-memory kills, in runc's JSON.

use std::time::Duration;

use kata_oci::Status;
use serde_json::json;

use crate::client::{Daemon, Failure};
use crate::error::CliError;
use crate::stats::{data, out_of_memory_kills};
use crate::store::Store;

/// `events`: until the container ends, or once.
pub async fn events(store: &Store, id: &str, interval: &str, once: bool) -> Result<u8, CliError> {
    let interval = duration(interval)?;
    let entry = store.get(id)?;
    let daemon = Daemon::connect(&store.run_dir(id, &entry)).await.ok_or(CliError::NotRunning)?;
    if daemon.state(id, "").await?.status == Status::Stopped {
        return Err(CliError::NotRunning);
    }
    let mut killed = None;
    loop {
        match daemon.stats(id).await {
            Ok(stats) => {
                // Told once for each time that there were new ones; those before we looked are nobody's event.
                let now = out_of_memory_kills(&stats);
                if killed.replace(now).is_some_and(|before| now > before) {
                    println!("{}", json!({ "type": "oom", "id": id }));
                }
                println!("{}", json!({ "type": "stats", "id": id, "data": data(&stats) }));
            }
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
