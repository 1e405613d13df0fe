//! What has been recorded.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::Notify;

use crate::guest::Report;

/// Spans that wait to be sent; a start has some thirty.
const MOST_SPANS: usize = 2048;
/// Calls whose place in time is remembered for what the guest tells of them.
const MOST_CALLS: usize = 512;

/// A span's name in its trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SpanId(pub [u8; 8]);

impl SpanId {
    pub(crate) fn random() -> SpanId {
        SpanId(random())
    }
}

/// Bytes that are not all zero, which the protocol takes for none.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Names need to be different, not secret; getrandom(2) fails only without its flag's patience.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    bytes[0] |= 1;
    bytes
}

/// One span; times are nanoseconds since the epoch.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Span {
    pub id: SpanId,
    pub parent: Option<SpanId>,
    pub name: Cow<'static, str>,
    /// An id that it is about; may be empty.
    pub about: String,
    pub start: u64,
    pub end: u64,
    pub error: Option<String>,
    /// The guest's.
    pub guest: bool,
}

/// The recorder of one sandbox's trace. Clones share it.
#[derive(Clone)]
pub struct Tracer(Arc<Inner>);

struct Inner {
    trace: [u8; 16],
    root: SpanId,
    sandbox: String,
    /// Whether the guest is to tell its phases.
    guest: bool,
    /// One reading of both clocks: what is recorded does not jump with the host's time.
    began: (u64, Instant),
    state: Mutex<State>,
    due: Notify,
}

#[derive(Default)]
struct State {
    spans: Vec<Span>,
    lost: usize,
    /// When calls to the guest began and ended.
    calls: HashMap<SpanId, (u64, u64)>,
    reports: Vec<Report>,
    root_sent: bool,
}

/// What is to be sent.
pub(crate) struct Batch {
    pub trace: [u8; 16],
    pub sandbox: String,
    pub spans: Vec<Span>,
}

impl Tracer {
    /// A trace that begins now. `guest`: the agent is to tell its phases.
    pub fn new(sandbox: &str, guest: bool) -> Tracer {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let nanos = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        Tracer(Arc::new(Inner {
            trace: random(),
            root: SpanId::random(),
            sandbox: sandbox.to_owned(),
            guest,
            began: (nanos, Instant::now()),
            state: Mutex::default(),
            due: Notify::new(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn root(&self) -> SpanId {
        self.0.root
    }

    pub(crate) fn now(&self) -> u64 {
        let (nanos, at) = self.0.began;
        nanos.saturating_add(u64::try_from(at.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    pub(crate) fn traceparent(&self, span: SpanId) -> Option<String> {
        self.0.guest.then(|| format!("00-{}-{}-01", hex::encode(self.0.trace), hex::encode(span.0)))
    }

    pub(crate) fn push(&self, span: Span) {
        let mut state = self.state();
        if self.0.guest && state.calls.len() < MOST_CALLS {
            state.calls.insert(span.id, (span.start, span.end));
        }
        if state.spans.len() < MOST_SPANS {
            state.spans.push(span);
        } else {
            state.lost += 1;
        }
    }

    /// Takes a line of the guest's log that tells of a call's phases. What is not such a line is ignored: the guest is not
    /// trusted.
    pub fn guest_line(&self, line: &serde_json::Map<String, serde_json::Value>) {
        if !self.0.guest {
            return;
        }
        let Some(report) = Report::parse(line) else { return };
        let mut state = self.state();
        if state.reports.len() < MOST_CALLS {
            state.reports.push(report);
        } else {
            state.lost += 1;
        }
    }

    /// A part of the trace is whole: it may be sent.
    pub fn due(&self) {
        self.0.due.notify_one();
    }

    pub(crate) async fn until_due(&self) {
        self.0.due.notified().await;
    }

    /// Takes what there is; `None`: nothing.
    pub(crate) fn take(&self) -> Option<Batch> {
        let mut state = self.state();
        let mut spans = std::mem::take(&mut state.spans);
        // What the guest tells comes by another way than the call's answer, and may be later or earlier.
        for report in std::mem::take(&mut state.reports) {
            if let Some(call) = state.calls.get(&report.parent) {
                spans.extend(report.spans(*call));
            }
        }
        state.calls.clear();
        if spans.is_empty() {
            return None;
        }
        if !std::mem::replace(&mut state.root_sent, true) {
            let end = spans.iter().map(|span| span.end).max().unwrap_or_default();
            let about = self.0.sandbox.clone();
            let (id, start) = (self.0.root, self.0.began.0);
            let name = "sandbox start".into();
            spans.push(Span { id, parent: None, name, about, start, end, error: None, guest: false });
        }
        if state.lost > 0 {
            tracing::warn!("{} spans of a trace were lost", std::mem::take(&mut state.lost));
        }
        Some(Batch { trace: self.0.trace, sandbox: self.0.sandbox.clone(), spans })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{current, phase, phase_of, traceparent, within};

    fn run<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
    }

    async fn ok(n: u32) -> Result<u32, String> {
        Ok(n)
    }

    #[test]
    fn phases_lie_in_each_other_and_say_what_failed() {
        let tracer = Tracer::new("s1", true);
        run(within(Some(&tracer), async {
            phase("outer", async {
                phase_of("inner", "c1", ok(1)).await.unwrap();
                let spawned = tokio::spawn(crate::carried(phase("elsewhere", ok(2))));
                spawned.await.unwrap().unwrap();
                phase("fails", async { Err::<(), _>("no") }).await
            })
            .await
            .unwrap_err();
        }));
        let batch = tracer.take().unwrap();
        let of = |name: &str| batch.spans.iter().find(|s| s.name == name).unwrap();
        let (root, outer) = (of("sandbox start"), of("outer"));
        assert_eq!((root.parent, outer.parent), (None, Some(root.id)));
        for name in ["inner", "elsewhere", "fails"] {
            assert_eq!(of(name).parent, Some(outer.id), "{name}");
            assert!(of(name).start >= outer.start && of(name).end <= outer.end, "{name}");
        }
        assert_eq!((of("inner").about.as_str(), of("fails").error.as_deref()), ("c1", Some("no")));
        assert_eq!((of("inner").error.as_deref(), root.end), (None, outer.end));
        // The root is told once.
        run(within(Some(&tracer), phase("later", ok(1)))).unwrap();
        assert_eq!(tracer.take().unwrap().spans.len(), 1);
        assert!(tracer.take().is_none());
    }

    #[test]
    fn nothing_is_recorded_where_nobody_traces() {
        run(async {
            assert_eq!(phase("x", ok(3)).await, Ok(3));
            assert!(current().is_none() && traceparent().is_none());
            within(None, async { assert!(current().is_none()) }).await;
            let quiet = Tracer::new("s", false);
            within(Some(&quiet), async { assert!(traceparent().is_none()) }).await;
        });
    }

    #[test]
    fn what_is_kept_has_a_bound() {
        let tracer = Tracer::new("s", false);
        run(within(Some(&tracer), async {
            for n in 0..MOST_SPANS as u32 + 10 {
                phase("x", ok(n)).await.unwrap();
            }
        }));
        // And the root.
        assert_eq!(tracer.take().unwrap().spans.len(), MOST_SPANS + 1);
    }

    #[test]
    fn the_guests_phases_are_put_into_the_time_of_their_call() {
        let tracer = Tracer::new("s", true);
        let parent = run(within(Some(&tracer), async {
            phase("agent.create_container", async {
                tokio::time::sleep(std::time::Duration::from_millis(30)).await;
                Ok::<_, String>(traceparent().unwrap())
            })
            .await
            .unwrap()
        }));
        let span = parent.split('-').nth(2).unwrap();
        let line = format!(
            r#"{{"msg":"CreateContainer","parent":"{span}","took_us":10000,
                "phases":[{{"name":"storages","at_us":1000,"took_us":2000}}]}}"#
        );
        let rubbish = format!(r#"{{"msg":"x","parent":"{}","took_us":1}}"#, "0".repeat(16));
        for line in [&line, &rubbish, "{}"] {
            let serde_json::Value::Object(line) = serde_json::from_str(line).unwrap() else { panic!() };
            tracer.guest_line(&line);
        }
        let batch = tracer.take().unwrap();
        let of = |name: &str| batch.spans.iter().find(|s| s.name == name).unwrap();
        let (call, guest, phase) = (of("agent.create_container"), of("CreateContainer"), of("storages"));
        assert!(guest.guest && guest.parent == Some(call.id) && phase.parent == Some(guest.id));
        // In the middle of it: half of the way there, half of the way back.
        assert!(guest.start - call.start >= 10_000_000 && guest.end < call.end);
        assert_eq!((phase.start - guest.start, phase.end - phase.start), (1_000_000, 2_000_000));
        assert_eq!(batch.spans.len(), 4);
    }
}
