//! Sending spans: OTLP's JSON over HTTP (opentelemetry-proto, `ExportTraceServiceRequest`; JSON as its specification words
//! it: ids in hexadecimal, 64-bit numbers as strings).

use std::fmt;
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use kata_http::{Request, Target, send_over};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::Tracer;
use crate::tracer::{Batch, Span};

/// After a part of the trace is whole, what the guest tells of it may still be under way.
const QUIET: Duration = Duration::from_millis(500);
/// How long the collector may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Bytes of its answer, which says nothing.
const MOST: usize = 64 << 10;
/// SPAN_KIND_INTERNAL, STATUS_CODE_ERROR.
const INTERNAL: u32 = 1;
const FAILED: u32 = 2;

/// Connects to "host:port", within some seconds; it may block. The sandbox's daemon is in its container's network, and what it
/// sends for the operator must not go there.
pub type Connect = Arc<dyn Fn(&str) -> io::Result<TcpStream> + Send + Sync>;

/// Connects by the network of the thread that asks.
///
/// # Errors
/// No address, or none that answers in time.
pub fn connect(address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, ANSWER_WITHIN) {
            Ok(stream) => return Ok(stream),
            Err(err) => last = err,
        }
    }
    Err(last)
}

/// Where spans are sent. Clones send one after the other.
#[derive(Clone)]
pub struct Collector {
    connect: Connect,
    address: String,
    path: String,
    sending: Arc<Mutex<()>>,
}

/// Why an address is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectorError(String);

impl fmt::Display for CollectorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CollectorError {}

impl Collector {
    /// From a URL, `http://HOST[:PORT][/PATH]`; the port is OTLP's 4318 and the path `/v1/traces` unless given.
    ///
    /// # Errors
    /// Another scheme, or no host.
    pub fn new(url: &str, connect: Connect) -> Result<Collector, CollectorError> {
        let bad =
            |why: &str| CollectorError(format!("{url:?} {why}; give http://HOST:4318/v1/traces, where OTLP is taken"));
        let rest = url.strip_prefix("http://").ok_or_else(|| bad("is no http:// address"))?;
        let (host, path) = rest.split_once('/').map_or((rest, "v1/traces"), |(host, path)| (host, path));
        if path == "api/traces" {
            return Err(bad("is where Jaeger takes its own protocol, which is not spoken here"));
        }
        let path = if path.is_empty() { "v1/traces" } else { path };
        if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c == '@') {
            return Err(bad("has no valid host"));
        }
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let address = if has_port { host.to_owned() } else { format!("{host}:4318") };
        Ok(Collector { connect, address, path: format!("/{path}"), sending: Arc::default() })
    }

    /// Sends what is recorded, each time that a part is whole, until the task is dropped.
    pub async fn follow(self, tracer: Tracer) {
        loop {
            tracer.until_due().await;
            tokio::time::sleep(QUIET).await;
            self.send(&tracer).await;
        }
    }

    /// Sends what is recorded now. A collector that does not take it is told in the log; the spans are gone.
    pub async fn send(&self, tracer: &Tracer) {
        let _one = self.sending.lock().await;
        let Some(batch) = tracer.take() else { return };
        let body = document(&batch).to_string().into_bytes();
        let target = Target::Tcp(self.address.clone());
        let stream = match self.connected().await {
            Ok(stream) => stream,
            Err(err) => return tracing::warn!("a trace was not sent: cannot connect to {target}: {err}"),
        };
        let request = Request::with_body("POST", &self.path, body);
        match send_over(stream, &target, request, ANSWER_WITHIN, MOST).await {
            Ok(answer) if (200..300).contains(&answer.status) => {
                tracing::debug!(trace = hex::encode(batch.trace), spans = batch.spans.len(), "a trace was sent");
            }
            Ok(answer) => tracing::warn!("the collector of traces at {target} answers {}", answer.status),
            Err(err) => tracing::warn!("a trace was not sent: {err}"),
        }
    }
}

impl Collector {
    async fn connected(&self) -> io::Result<tokio::net::TcpStream> {
        let (connect, address) = (Arc::clone(&self.connect), self.address.clone());
        let stream = tokio::task::spawn_blocking(move || connect(&address)).await.map_err(io::Error::other)??;
        stream.set_nonblocking(true)?;
        tokio::net::TcpStream::from_std(stream)
    }
}

fn document(batch: &Batch) -> Value {
    let resource = |service: &str, guest: bool| {
        let spans: Vec<Value> =
            batch.spans.iter().filter(|span| span.guest == guest).map(|span| one(&batch.trace, span)).collect();
        (!spans.is_empty()).then(|| {
            json!({
                "resource": { "attributes": [
                    attribute("service.name", service),
                    attribute("service.version", env!("CARGO_PKG_VERSION")),
                    attribute("kata.sandbox_id", &batch.sandbox),
                ] },
                "scopeSpans": [{ "scope": { "name": "kata" }, "spans": spans }],
            })
        })
    };
    let resources: Vec<Value> =
        [resource("kata-runtime", false), resource("kata-agent", true)].into_iter().flatten().collect();
    json!({ "resourceSpans": resources })
}

fn attribute(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": { "stringValue": value } })
}

fn one(trace: &[u8; 16], span: &Span) -> Value {
    let mut out = json!({
        "traceId": hex::encode(trace),
        "spanId": hex::encode(span.id.0),
        "name": span.name,
        "kind": INTERNAL,
        "startTimeUnixNano": span.start.to_string(),
        "endTimeUnixNano": span.end.to_string(),
    });
    if let Some(parent) = span.parent {
        out["parentSpanId"] = hex::encode(parent.0).into();
    }
    if !span.about.is_empty() {
        out["attributes"] = json!([attribute("kata.id", &span.about)]);
    }
    if let Some(error) = &span.error {
        out["status"] = json!({ "code": FAILED, "message": error });
    }
    out
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::Pin;
    use std::sync::Mutex;

    use super::*;
    use crate::{phase, within};
    use kata_http::{Bounds, Handler, Response, serve_tcp};
    use tokio::net::TcpListener;

    #[derive(Default)]
    struct Taken(Mutex<Vec<(String, Value)>>);
    impl Handler for Taken {
        fn handle(&self, r: Request) -> Pin<Box<dyn Future<Output = Response> + Send + '_>> {
            self.0.lock().unwrap().push((r.path, serde_json::from_slice(&r.body).unwrap()));
            Box::pin(async { Response::ok("application/json", "{}") })
        }
    }

    #[test]
    fn a_collector_gets_the_spans_when_they_are_whole() {
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        rt.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let taken = Arc::new(Taken::default());
            tokio::spawn(serve_tcp(listener, taken.clone(), Bounds::default()));
            let tracer = Tracer::new("s1", false);
            tokio::spawn(Collector::new(&url, Arc::new(connect)).unwrap().follow(tracer.clone()));
            within(Some(&tracer), async { phase("boot", async { Err::<(), _>("no KVM") }).await }).await.unwrap_err();
            tracer.due();
            for _ in 0..200 {
                if !taken.0.lock().unwrap().is_empty() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let (path, document) = taken.0.lock().unwrap().pop().expect("a document");
            assert_eq!(path, "/v1/traces");
            let resource = &document["resourceSpans"][0];
            assert_eq!(resource["resource"]["attributes"][0]["value"]["stringValue"], "kata-runtime");
            let spans = resource["scopeSpans"][0]["spans"].as_array().unwrap();
            let boot = spans.iter().find(|s| s["name"] == "boot").unwrap();
            let root = spans.iter().find(|s| s["name"] == "sandbox start").unwrap();
            assert_eq!(boot["parentSpanId"], root["spanId"]);
            assert_eq!(boot["traceId"].as_str().unwrap().len(), 32);
            assert_eq!(boot["status"], json!({ "code": 2, "message": "no KVM" }));
            assert!(boot["startTimeUnixNano"].as_str().unwrap().parse::<u64>().unwrap() > 1_600_000_000_000_000_000);
        });
    }

    #[test]
    fn addresses_are_understood_or_explained() {
        let of = |url: &str| {
            Collector::new(url, Arc::new(connect))
                .map(|c| format!("{}{}", c.address, c.path))
                .map_err(|e| e.to_string())
        };
        assert_eq!(of("http://h").unwrap(), "h:4318/v1/traces");
        assert_eq!(of("http://[::1]:9/x/y").unwrap(), "[::1]:9/x/y");
        for (bad, part) in [
            ("https://h", "no http://"),
            ("http://localhost:14268/api/traces", "Jaeger"),
            ("http:///v1/traces", "host"),
            ("h:4318", "no http://"),
        ] {
            assert!(of(bad).unwrap_err().contains(part), "{bad}");
        }
    }
}
