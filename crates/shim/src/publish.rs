//! Events to containerd, in order.

use std::time::{Duration, SystemTime};

use containerd_shim_protos::events::task as ev;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::shim::events as fwd;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use kata_sandbox::Event;
use tokio::sync::{mpsc, oneshot};

use crate::convert;

/// containerd may be restarting: an event waits for it this often before it is dropped with a warning.
const ATTEMPTS: u32 = 10;
const BETWEEN: Duration = Duration::from_millis(500);
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Forwards events until the engine is gone. Without an address they are dropped: the OCI command line has no
/// listener, and `kata-runtime events` asks for what it wants.
///
/// `stop` ends it once what was sent before has been forwarded.
pub async fn run(
    namespace: String,
    address: Option<String>,
    mut events: mpsc::UnboundedReceiver<Event>,
    stop: oneshot::Receiver<()>,
) {
    let mut stop = Some(stop);
    let mut next = async || loop {
        let Some(waiting) = &mut stop else { return events.recv().await };
        tokio::select! {
            event = events.recv() => return event,
            _ = waiting => {
                stop = None;
                // What is queued already still comes out.
                events.close();
            }
        }
    };
    let Some(address) = address else {
        while next().await.is_some() {}
        return;
    };
    let address = if address.contains("://") { address } else { format!("unix://{address}") };
    let mut client: Option<EventsClient> = None;
    while let Some(event) = next().await {
        let envelope = match envelope(&namespace, &event) {
            Ok(envelope) => envelope,
            Err(err) => {
                tracing::error!("an event cannot be encoded: {err}");
                continue;
            }
        };
        let mut request = fwd::ForwardRequest::new();
        request.envelope = MessageField::some(envelope);
        if let Err(err) = forward(&address, &mut client, &request).await {
            tracing::warn!("an event for containerd was dropped: {err}");
        }
    }
}

async fn forward(
    address: &str,
    client: &mut Option<EventsClient>,
    request: &fwd::ForwardRequest,
) -> Result<(), String> {
    let mut last = String::new();
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            tokio::time::sleep(BETWEEN).await;
        }
        let c = match client {
            Some(c) => c,
            None => match Client::connect(address).await {
                Ok(connection) => client.insert(EventsClient::new(connection)),
                Err(err) => {
                    last = err.to_string();
                    continue;
                }
            },
        };
        match c.forward(ttrpc::context::with_duration(ANSWER_WITHIN), request).await {
            Ok(_) => return Ok(()),
            Err(err) => {
                last = err.to_string();
                *client = None;
            }
        }
    }
    Err(last)
}

fn envelope(namespace: &str, event: &Event) -> Result<containerd_shim_protos::shim::event::Envelope, ttrpc::Error> {
    let (topic, body) = match event {
        Event::Created { container, bundle, pid } => {
            let mut e = ev::TaskCreate::new();
            e.container_id.clone_from(container);
            e.bundle = bundle.to_string_lossy().into_owned();
            e.pid = pid.cast_unsigned();
            e.io = MessageField::some(ev::TaskIO::new());
            ("/tasks/create", convert::any("containerd.events.TaskCreate", &e)?)
        }
        Event::Started { container, pid } => {
            let mut e = ev::TaskStart::new();
            e.container_id.clone_from(container);
            e.pid = pid.cast_unsigned();
            ("/tasks/start", convert::any("containerd.events.TaskStart", &e)?)
        }
        Event::ExecAdded { container, exec } => {
            let mut e = ev::TaskExecAdded::new();
            e.container_id.clone_from(container);
            e.exec_id.clone_from(exec);
            ("/tasks/exec-added", convert::any("containerd.events.TaskExecAdded", &e)?)
        }
        Event::ExecStarted { container, exec, pid } => {
            let mut e = ev::TaskExecStarted::new();
            e.container_id.clone_from(container);
            e.exec_id.clone_from(exec);
            e.pid = pid.cast_unsigned();
            ("/tasks/exec-started", convert::any("containerd.events.TaskExecStarted", &e)?)
        }
        Event::Exited { container, exec, pid, status, at } => {
            let mut e = ev::TaskExit::new();
            e.container_id.clone_from(container);
            // containerd tells a container's own exit by an id equal to the container's.
            e.id = if exec.is_empty() { container.clone() } else { exec.clone() };
            e.pid = pid.cast_unsigned();
            e.exit_status = status.cast_unsigned();
            e.exited_at = convert::timestamp(*at);
            ("/tasks/exit", convert::any("containerd.events.TaskExit", &e)?)
        }
        Event::OutOfMemory { container } => {
            let mut e = ev::TaskOOM::new();
            e.container_id.clone_from(container);
            ("/tasks/oom", convert::any("containerd.events.TaskOOM", &e)?)
        }
        Event::Paused { container } => {
            let mut e = ev::TaskPaused::new();
            e.container_id.clone_from(container);
            ("/tasks/paused", convert::any("containerd.events.TaskPaused", &e)?)
        }
        Event::Resumed { container } => {
            let mut e = ev::TaskResumed::new();
            e.container_id.clone_from(container);
            ("/tasks/resumed", convert::any("containerd.events.TaskResumed", &e)?)
        }
        Event::Deleted { container, pid, status, at } => {
            let mut e = ev::TaskDelete::new();
            e.container_id.clone_from(container);
            e.pid = pid.cast_unsigned();
            e.exit_status = status.cast_unsigned();
            e.exited_at = convert::timestamp(*at);
            ("/tasks/delete", convert::any("containerd.events.TaskDelete", &e)?)
        }
    };
    let mut envelope = containerd_shim_protos::shim::event::Envelope::new();
    envelope.timestamp = convert::timestamp(SystemTime::now());
    namespace.clone_into(&mut envelope.namespace);
    topic.clone_into(&mut envelope.topic);
    envelope.event = MessageField::some(body);
    Ok(envelope)
}
