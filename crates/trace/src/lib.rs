//! Traces of a start, phase by phase, through host and guest: recorded while the work is done, and sent afterwards by
//! OpenTelemetry's protocol (OTLP, JSON over HTTP).
//!
//! The `opentelemetry` crates were weighed: with an exporter they bring reqwest or tonic, prost and a thread, some 3 MB
//! into a daemon of 3 MB. What is needed here is a list of spans and one JSON document.
//!
//! Where nobody traces, [`phase`] is a look at a task-local variable.

mod guest;
mod otlp;
mod tracer;

use std::fmt::Display;
use std::future::Future;

pub use otlp::{Collector, CollectorError, Connect, connect};
pub use tracer::Tracer;

use tracer::{Span, SpanId};

tokio::task_local! {
    static CURRENT: Current;
}

#[derive(Clone)]
struct Current {
    tracer: Tracer,
    span: SpanId,
}

/// Work below the trace's root; without a tracer, just work.
pub async fn within<T>(tracer: Option<&Tracer>, work: impl Future<Output = T>) -> T {
    match tracer {
        Some(tracer) => CURRENT.scope(Current { tracer: tracer.clone(), span: tracer.root() }, work).await,
        None => work.await,
    }
}

/// Takes the trace along into a task of its own: call it where the task is made, and spawn what it returns.
pub fn carried<T>(work: impl Future<Output = T>) -> impl Future<Output = T> {
    let current = CURRENT.try_with(Current::clone).ok();
    async move {
        match current {
            Some(current) => CURRENT.scope(current, work).await,
            None => work.await,
        }
    }
}

/// Work that is a phase: a span below that of whoever calls, with its failure if it fails.
///
/// # Errors
/// The work's own.
pub async fn phase<T, E: Display>(name: &'static str, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    phase_of(name, "", work).await
}

/// The same about something with an id: a container.
///
/// # Errors
/// The work's own.
pub async fn phase_of<T, E: Display>(
    name: &'static str,
    id: &str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    phase_judged(name, id, work, |done| done.as_ref().err().map(ToString::to_string)).await
}

/// The same for work that tells of its failure otherwise: `judge` says what it was.
pub async fn phase_judged<T>(
    name: &'static str,
    id: &str,
    work: impl Future<Output = T>,
    judge: impl FnOnce(&T) -> Option<String>,
) -> T {
    let Ok(current) = CURRENT.try_with(Current::clone) else { return work.await };
    let tracer = current.tracer;
    let (span, start) = (SpanId::random(), tracer.now());
    let done = CURRENT.scope(Current { tracer: tracer.clone(), span }, work).await;
    tracer.push(Span {
        id: span,
        parent: Some(current.span),
        name: name.into(),
        about: id.to_owned(),
        start,
        end: tracer.now(),
        error: judge(&done),
        guest: false,
    });
    done
}

/// For a call to the guest: who asks, as W3C Trace Context words it. `None` where the guest is not to be traced.
pub fn traceparent() -> Option<String> {
    CURRENT.try_with(|current| current.tracer.traceparent(current.span)).ok().flatten()
}

/// The tracer of the task that asks.
pub fn current() -> Option<Tracer> {
    CURRENT.try_with(|current| current.tracer.clone()).ok()
}
