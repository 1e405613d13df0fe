//! Every request to the Task service: how long it took, whose lines in the log are whose, and its part of the trace.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use kata_metrics::Durations;
use kata_proto::peek::first_strings;
use kata_trace::Tracer;
use kata_types::{ContainerId, ExecId};
use tracing::Instrument;
use ttrpc::r#async::{MethodHandler, Service, TtrpcContext};
use ttrpc::proto::{Request, Response};

/// The calls, with upstream's names for them in metrics.
const CALLS: &[(&str, &str)] = &[
    ("Checkpoint", "checkpoint"),
    ("CloseIO", "close_io"),
    ("Connect", "connect"),
    ("Create", "create"),
    ("Delete", "delete"),
    ("Exec", "exec"),
    ("Kill", "kill"),
    ("Pause", "pause"),
    ("Pids", "pids"),
    ("ResizePty", "resize_pty"),
    ("Resume", "resume"),
    ("Shutdown", "shutdown"),
    ("Start", "start"),
    ("State", "state"),
    ("Stats", "stats"),
    ("Update", "update"),
    ("Wait", "wait"),
];

/// Those that a start consists of, and what their spans are called.
const TRACED: &[(&str, &str)] = &[("create", "task.create"), ("exec", "task.exec"), ("start", "task.start")];

/// The same services, observed.
pub fn observed(
    services: HashMap<String, Service>,
    durations: &Arc<Durations>,
    tracer: Option<&Tracer>,
) -> HashMap<String, Service> {
    let wrap = |(name, inner): (String, Handler)| {
        let action = CALLS.iter().find(|(call, _)| *call == name).map_or("other", |(_, action)| *action);
        let handler: Handler =
            Box::new(Observed { action, inner, durations: Arc::clone(durations), tracer: tracer.cloned() });
        (name, handler)
    };
    let observe = |service: Service| Service {
        methods: service.methods.into_iter().map(wrap).collect(),
        streams: service.streams,
    };
    services.into_iter().map(|(name, service)| (name, observe(service))).collect()
}

type Handler = Box<dyn MethodHandler + Send + Sync>;

struct Observed {
    action: &'static str,
    inner: Handler,
    durations: Arc<Durations>,
    tracer: Option<Tracer>,
}

#[async_trait]
impl MethodHandler for Observed {
    async fn handler(&self, ctx: TtrpcContext, req: Request) -> ttrpc::Result<Response> {
        let (container, exec) = whose(self.action, &req.payload);
        let span = match &exec {
            Some(exec) => tracing::info_span!("task", %container, %exec),
            None => tracing::info_span!("task", %container),
        };
        let begun = Instant::now();
        let work = self.inner.handler(ctx, req).instrument(span);
        // The others are no part of a start.
        let traced = self.tracer.as_ref().zip(TRACED.iter().find(|(action, _)| *action == self.action));
        let done = match traced {
            None => work.await,
            Some((tracer, (action, name))) => {
                let about = exec.as_ref().unwrap_or(&container);
                let judged = kata_trace::phase_judged(name, about, work, failure);
                let done = kata_trace::within(Some(tracer), judged).await;
                if *action == "start" || failure(&done).is_some() {
                    tracer.due();
                }
                done
            }
        };
        self.durations.observe(self.action, begun.elapsed());
        done
    }
}

/// What went wrong, if something did: a refusal is an answer with a status.
fn failure(done: &ttrpc::Result<Response>) -> Option<String> {
    match done {
        Err(err) => Some(err.to_string()),
        Ok(response) => response.status.as_ref().filter(|s| s.code() != ttrpc::Code::OK).map(|s| s.message.clone()),
    }
}

/// Whose request it is: field 1 of every message of the Task service is the container's id, and field 2 the exec's, but
/// for `create` and `checkpoint`, which have a path there. What is no id is left out: it must not get into the log.
fn whose(action: &str, message: &[u8]) -> (String, Option<String>) {
    let [container, exec] = first_strings(message).unwrap_or_default();
    let container = ContainerId::new(container).map(|id| id.to_string()).unwrap_or_default();
    let has_exec = !exec.is_empty() && !matches!(action, "create" | "checkpoint");
    let exec = has_exec.then(|| ExecId::new(exec).ok()).flatten();
    (container, exec.map(|id| id.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::api;
    use containerd_shim_protos::protobuf::Message;

    #[test]
    fn requests_are_told_apart_by_their_ids_and_by_nothing_else() {
        let start = api::StartRequest { id: "c1".into(), exec_id: "e1".into(), ..Default::default() };
        let bytes = start.write_to_bytes().unwrap();
        assert_eq!(whose("start", &bytes), ("c1".into(), Some("e1".into())));
        let create = api::CreateTaskRequest { id: "c1".into(), bundle: "b".into(), ..Default::default() };
        assert_eq!(whose("create", &create.write_to_bytes().unwrap()), ("c1".into(), None));
        let kill = api::KillRequest { id: "c1".into(), signal: 9, all: true, ..Default::default() };
        assert_eq!(whose("kill", &kill.write_to_bytes().unwrap()), ("c1".into(), None));
        let odd = api::StartRequest { id: "c1\n2 forged".into(), ..Default::default() };
        assert_eq!(whose("start", &odd.write_to_bytes().unwrap()), (String::new(), None));
        assert_eq!(whose("start", b"\xff\xff rubbish"), (String::new(), None));
    }
}
