//! What operators see of a sandbox: traces, metrics, the console.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use kata_http::{Bounds, Handler, Request, Response, serve_tcp};
use kata_metrics::{Collection, Limits};
use kata_sandbox::SandboxError;
use kata_testkit::harness::block_on;
use kata_trace::{Collector, Tracer, within};
use serde_json::Value;
use tokio::net::TcpListener;

use crate::support::{Fixture, until};

/// A collector of traces.
#[derive(Default)]
struct Taken(Mutex<Vec<Value>>);

impl Handler for Taken {
    fn handle(&self, r: Request) -> Pin<Box<dyn Future<Output = Response> + Send + '_>> {
        assert_eq!((r.method.as_str(), r.path.as_str()), ("POST", "/v1/traces"));
        self.0.lock().unwrap().push(serde_json::from_slice(&r.body).unwrap());
        Box::pin(async { Response::ok("application/json", "{}") })
    }
}

/// Every span of a document by its name, with the service that it is of.
fn spans(document: &Value) -> BTreeMap<String, (String, Value)> {
    let mut all = BTreeMap::new();
    for resource in document["resourceSpans"].as_array().unwrap() {
        let service = resource["resource"]["attributes"][0]["value"]["stringValue"].as_str().unwrap();
        for span in resource["scopeSpans"][0]["spans"].as_array().unwrap() {
            all.insert(span["name"].as_str().unwrap().to_owned(), (service.to_owned(), span.clone()));
        }
    }
    all
}

pub fn a_start_is_one_trace_of_host_and_guest() {
    block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let taken = Arc::new(Taken::default());
        tokio::spawn(serve_tcp(listener, taken.clone(), Bounds::default()));
        let tracer = Tracer::new("engine", true);
        tokio::spawn(Collector::new(&url, Arc::new(kata_trace::connect)).unwrap().follow(tracer.clone()));

        let begun = Box::pin(async {
            let b = Fixture::start();
            b.run("c1", "sleep 1000").await;
            b
        });
        let b = within(Some(&tracer), begun).await;
        tracer.due();
        until("a document", || !taken.0.lock().unwrap().is_empty()).await;
        let spans = spans(&taken.0.lock().unwrap()[0]);
        let mut traces = Vec::new();
        for (name, parent, service) in [
            ("sandbox start", "", "kata-runtime"),
            ("machine", "sandbox start", "kata-runtime"),
            ("vmm.launch", "machine", "kata-runtime"),
            ("filedaemon.start", "machine", "kata-runtime"),
            ("share.plug", "machine", "kata-runtime"),
            ("guest.boot", "machine", "kata-runtime"),
            ("guest.prepare", "machine", "kata-runtime"),
            ("agent.create_sandbox", "guest.prepare", "kata-runtime"),
            ("CreateSandbox", "agent.create_sandbox", "kata-agent"),
            ("sandbox.storages", "CreateSandbox", "kata-agent"),
            ("container.make", "sandbox start", "kata-runtime"),
            ("share.rootfs", "container.make", "kata-runtime"),
            ("agent.create_container", "container.make", "kata-runtime"),
            ("CreateContainer", "agent.create_container", "kata-agent"),
            ("container.create", "CreateContainer", "kata-agent"),
            ("agent.start_container", "sandbox start", "kata-runtime"),
            ("StartContainer", "agent.start_container", "kata-agent"),
        ] {
            let (of, span) = spans.get(name).unwrap_or_else(|| panic!("no span {name} in {:?}", spans.keys()));
            assert_eq!(of, service, "{name}");
            traces.push(span["traceId"].as_str().unwrap());
            let nanos = |span: &Value, key: &str| span[key].as_str().unwrap().parse::<u64>().unwrap();
            let (start, end) = (nanos(span, "startTimeUnixNano"), nanos(span, "endTimeUnixNano"));
            assert!(start <= end, "{name}");
            if let Some((_, above)) = spans.get(parent) {
                assert_eq!(span["parentSpanId"], above["spanId"], "{name}");
                let within = nanos(above, "startTimeUnixNano") <= start && end <= nanos(above, "endTimeUnixNano");
                assert!(within, "{name} is outside of {parent}");
            }
        }
        traces.dedup();
        assert_eq!(traces.len(), 1, "one trace");
        b.sandbox.kill("c1", "", 9, false).await.unwrap();
        b.wait("c1", "").await;
        b.end().await;
    });
}

pub fn operators_see_the_guest() {
    block_on(async {
        let b = Fixture::start();
        b.run("c1", "sleep 1000").await;
        let page = b.sandbox.guest_metrics().await.unwrap();
        let mut collection = Collection::default();
        collection.add(&page, &["kata_agent_", "kata_guest_"], &[], &[], Limits::default()).unwrap();
        for name in ["kata_guest_meminfo{item=\"mem_total\"}", "kata_agent_threads ", "kata_agent_scrape_count 1"] {
            assert!(page.contains(name), "{name} is not in:\n{page}");
        }
        assert_eq!(b.sandbox.container_ids(), ["c1"]);
        let machine = b.sandbox.machine_processes();
        assert!(machine.vmm.is_some() && machine.fs.is_some(), "{machine:?}");
        let url = b.sandbox.agent_url().unwrap();
        assert!(url.starts_with(&format!("serial://{}/", b.run_dir().display())), "{url}");
        // Off unless it is wanted.
        assert!(matches!(b.sandbox.console("ps").await.err(), Some(SandboxError::NoConsole)));
        // Each call to the agent is counted by upstream's name.
        let mut page = kata_metrics::Page::default();
        let agent = b.sandbox.connected_agent().unwrap();
        agent.calls().durations().write(&mut page, "d", "x");
        assert!(page.finish().contains("d_count{action=\"grpc.CreateContainerRequest\"} 1"));
        b.sandbox.kill("c1", "", 9, false).await.unwrap();
        b.wait("c1", "").await;
        b.end().await;
    });
}
