//! A request's phases for the host's trace. The guest's clock is its own affair: what is told are distances from the request's
//! arrival, which the host puts into the time that the call took it.

use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::json::push_string;

/// Phases of one request; there are less than ten.
const MOST: usize = 64;
/// The target of such a line in the log.
pub const TARGET: &str = "kata_guest::span";

/// The phases of a request that the host traces.
#[derive(Debug)]
pub struct Recording {
    /// The host's span of the call: 16 hexadecimal digits.
    parent: String,
    begun: Instant,
    phases: Mutex<Vec<Phase>>,
}

#[derive(Debug)]
struct Phase {
    name: &'static str,
    at: Duration,
    took: Duration,
}

impl Recording {
    /// Begins one, for a `traceparent` (W3C Trace Context: `00-TRACE-SPAN-01`) that asks for it.
    pub fn begin(traceparent: &str) -> Option<Recording> {
        let mut parts = traceparent.split('-').skip(2);
        let (parent, flags) = (parts.next()?, parts.next()?);
        let hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
        (parent.len() == 16 && hex(parent) && flags == "01").then(|| Recording {
            parent: parent.to_owned(),
            begun: Instant::now(),
            phases: Mutex::default(),
        })
    }

    fn phases(&self) -> MutexGuard<'_, Vec<Phase>> {
        self.phases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long ago the request came.
    pub fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// A phase that began then and ends now.
    pub fn phase(&self, name: &'static str, at: Duration) {
        let took = self.now().saturating_sub(at);
        let mut phases = self.phases();
        if phases.len() < MOST {
            phases.push(Phase { name, at, took });
        }
    }

    /// The line for the log: one JSON object.
    pub fn line(&self, call: &str) -> String {
        let mut out = String::from("{\"level\":\"trace\",\"target\":");
        push_string(&mut out, TARGET);
        out.push_str(",\"msg\":");
        push_string(&mut out, call);
        // Writing to a String cannot fail.
        let _ = write!(out, ",\"parent\":\"{}\",\"took_us\":{},\"phases\":[", self.parent, self.now().as_micros());
        for (n, phase) in self.phases().iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            let _ = write!(out, "{comma}{{\"name\":\"{}\"", phase.name);
            let _ = write!(out, ",\"at_us\":{},\"took_us\":{}}}", phase.at.as_micros(), phase.took.as_micros());
        }
        out.push_str("]}\n");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn only_a_host_that_asks_is_told() {
        assert!(Recording::begin(PARENT).is_some());
        for no in ["", "00-1", &PARENT.replace("-01", "-00"), &PARENT.replace("b7ad6b7169203331", "b7ad6b716920333\"")]
        {
            assert!(Recording::begin(no).is_none(), "{no}");
        }
    }

    #[test]
    fn phases_are_told_from_the_requests_arrival() {
        let r = Recording::begin(PARENT).unwrap();
        for _ in 0..MOST + 1 {
            r.phase("storages", Duration::ZERO);
        }
        assert_eq!(r.phases().len(), MOST);
        let line = r.line("CreateContainer");
        assert!(line.starts_with(
            r#"{"level":"trace","target":"kata_guest::span","msg":"CreateContainer","parent":"b7ad6b7169203331","took_us":"#
        ));
        assert!(line.contains(r#"{"name":"storages","at_us":0,"took_us":"#) && line.ends_with("]}\n"), "{line}");
    }
}
