//! Asking all sandboxes at once, none for longer than its time.

use std::collections::HashMap;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use kata_http::{Request, Target, send};
use kata_metrics::{Collection, Limits};
use kata_sandbox::{Found, monitor_socket};
use tokio::sync::Semaphore;

use crate::labels::{RESERVED, labels};

/// How long a sandbox may take to answer; Prometheus waits ten seconds for all of them.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(6);
/// Sandboxes that are asked at once.
const AT_ONCE: usize = 32;
/// The page of one.
const MOST: usize = 2 << 20;

/// Adds the pages of all to the collection; returns how many gave none.
pub async fn all(found: &[Found], into: &mut Collection, within: Duration) -> usize {
    let mut ids: HashMap<&str, usize> = HashMap::new();
    for sandbox in found {
        *ids.entry(sandbox.state.id.as_str()).or_default() += 1;
    }
    let room = Semaphore::new(AT_ONCE);
    let asked = found.iter().map(|sandbox| {
        let room = &room;
        async move {
            // Never closed.
            let _place = room.acquire().await;
            (sandbox, one(sandbox, within).await)
        }
    });
    let mut failed = 0;
    // Each page is taken in as it comes, so that not all are held twice.
    let mut asked: FuturesUnordered<_> = asked.collect();
    while let Some((sandbox, page)) = asked.next().await {
        let unique = ids.get(sandbox.state.id.as_str()) == Some(&1);
        let labels = labels(sandbox, unique);
        let labels: Vec<(&str, &str)> = labels.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let limits = Limits { bytes: MOST, ..Limits::default() };
        let taken =
            page.and_then(|page| into.add(&page, &["kata_"], &labels, RESERVED, limits).map_err(|e| e.to_string()));
        if let Err(why) = taken {
            tracing::warn!(sandbox = sandbox.state.id, "no metrics: {why}");
            failed += 1;
        }
    }
    failed
}

/// The page of one, as it is.
///
/// # Errors
/// A sentence.
pub async fn one(sandbox: &Found, within: Duration) -> Result<String, String> {
    get(sandbox, "/metrics", within).await
}

/// What one answers at an endpoint of its management socket.
///
/// # Errors
/// A sentence.
pub async fn get(sandbox: &Found, path: &str, within: Duration) -> Result<String, String> {
    let target = Target::Unix(monitor_socket(&sandbox.run_dir));
    let answer = send(&target, Request::get(path), within, MOST).await.map_err(|e| e.to_string())?;
    if answer.status != 200 {
        return Err(format!("{} {}", answer.status, answer.body_text()));
    }
    String::from_utf8(answer.body).map_err(|_| "the answer is no text".to_owned())
}
