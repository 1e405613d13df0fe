//! The management socket of a sandbox: HTTP on a unix socket in its directory, with upstream's name and endpoints. What
//! makes no sense here is answered with 501 and the reason.

mod overhead;
mod page;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use kata_agent_client::CallError;
use kata_http::{Bounds, Handler, Request, Response};
use kata_metrics::{CONTENT_TYPE, Durations};
use kata_sandbox::{Sandbox, SandboxError};
use tokio::net::UnixListener;
use tokio::sync::Mutex;

use overhead::Overhead;

/// Rules of a packet filter: some thousands.
const MAX_BODY: usize = 1 << 20;
/// Longer than a call to a slow guest.
const ANSWER_WITHIN: Duration = Duration::from_secs(45);

/// Serves the socket until the task is dropped.
pub async fn serve(listener: UnixListener, sandbox: Arc<Sandbox>, tasks: Arc<Durations>) {
    let bounds = Bounds { connections: 8, body: MAX_BODY, answer_within: ANSWER_WITHIN, ..Bounds::default() };
    let management = Management { sandbox, tasks, overhead: Mutex::default() };
    kata_http::serve_unix(listener, Arc::new(management), bounds).await;
}

struct Management {
    sandbox: Arc<Sandbox>,
    tasks: Arc<Durations>,
    overhead: Mutex<Overhead>,
}

/// What there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endpoint {
    Metrics,
    AgentUrl,
    PacketFilter {
        ipv6: bool,
    },
    /// Upstream's, and not here: the operation, and why.
    Missing(&'static str, &'static str),
}

const VOLUMES: &str = "this version has no direct-assigned volumes";
const POLICY: &str = "this version's agent has no policy engine";
const GO: &str =
    "it is an interface of the Go runtime, of which nothing is here; use perf(1) or gdb(1) on the daemon's pid";

impl Endpoint {
    fn of(path: &str) -> Option<Endpoint> {
        Some(match path {
            "/metrics" => Endpoint::Metrics,
            "/agent-url" => Endpoint::AgentUrl,
            "/iptables" => Endpoint::PacketFilter { ipv6: false },
            "/ip6tables" => Endpoint::PacketFilter { ipv6: true },
            "/policy" => Endpoint::Missing("policy", POLICY),
            "/direct-volume/resize" => Endpoint::Missing("direct-volume resize", VOLUMES),
            "/debug/vars" => Endpoint::Missing("debug vars", GO),
            path if path == "/direct-volume/stats" || path.starts_with("/direct-volume/stats/") => {
                Endpoint::Missing("direct-volume stats", VOLUMES)
            }
            path if path == "/debug/pprof" || path.starts_with("/debug/pprof/") => Endpoint::Missing("pprof", GO),
            _ => return None,
        })
    }

    fn takes(self, method: &str) -> bool {
        match self {
            Endpoint::Metrics | Endpoint::AgentUrl => method == "GET",
            Endpoint::PacketFilter { .. } => method == "GET" || method == "PUT",
            Endpoint::Missing(..) => true,
        }
    }
}

impl Handler for Management {
    fn handle(&self, request: Request) -> Pin<Box<dyn Future<Output = Response> + Send + '_>> {
        Box::pin(self.answer(request))
    }
}

impl Management {
    async fn answer(&self, request: Request) -> Response {
        let Some(endpoint) = Endpoint::of(&request.path) else {
            return Response::error(404, "there are /metrics, /agent-url, /iptables and /ip6tables");
        };
        if !endpoint.takes(&request.method) {
            return Response::error(405, format!("{} does not take {}", request.path, request.method));
        }
        match endpoint {
            Endpoint::Metrics => {
                let page = page::page(&self.sandbox, &self.tasks, &mut *self.overhead.lock().await).await;
                Response::ok(CONTENT_TYPE, page)
            }
            Endpoint::AgentUrl => match self.sandbox.agent_url() {
                Some(url) => Response::text(url),
                None => Response::error(503, "the sandbox has no agent yet"),
            },
            Endpoint::PacketFilter { ipv6 } => {
                let done = if request.method == "PUT" {
                    self.sandbox.set_packet_filter(ipv6, request.body).await
                } else {
                    self.sandbox.packet_filter(ipv6).await
                };
                match done {
                    Ok(text) => Response::ok("text/plain; charset=utf-8", text),
                    Err(err) => failed("packet filter of the guest", &err),
                }
            }
            Endpoint::Missing(operation, why) => Response::unsupported(operation, why),
        }
    }
}

fn failed(operation: &str, err: &SandboxError) -> Response {
    match err {
        SandboxError::Agent(CallError::Refused { unsupported: true, message, .. }) => {
            Response::unsupported(operation, message)
        }
        SandboxError::Agent(CallError::Timeout { .. }) => Response::error(504, err.to_string()),
        SandboxError::Dead(_) | SandboxError::Agent(CallError::Lost { .. }) => Response::error(503, err.to_string()),
        _ => Response::error(500, err.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_of_upstreams_is_here_or_says_why_not() {
        for (path, method) in [("/metrics", "GET"), ("/agent-url", "GET"), ("/iptables", "PUT"), ("/ip6tables", "GET")]
        {
            assert!(Endpoint::of(path).unwrap().takes(method), "{path}");
        }
        for path in [
            "/policy",
            "/direct-volume/stats",
            "/direct-volume/stats/L3ZvbA==",
            "/direct-volume/resize",
            "/debug/vars",
            "/debug/pprof/",
            "/debug/pprof/heap",
        ] {
            assert!(matches!(Endpoint::of(path), Some(Endpoint::Missing(..))), "{path}");
        }
        assert_eq!(Endpoint::of("/debug/pprofx"), None);
        assert!(!Endpoint::Metrics.takes("PUT") && !Endpoint::AgentUrl.takes("POST"));
    }

    #[test]
    fn failures_have_their_status() {
        let refused = |unsupported| {
            SandboxError::Agent(CallError::Refused {
                call: "get_ip_tables",
                not_found: false,
                unsupported,
                message: "no".into(),
            })
        };
        assert_eq!(failed("x", &refused(true)).status, 501);
        assert_eq!(failed("x", &refused(false)).status, 500);
        assert_eq!(failed("x", &SandboxError::Dead("gone".into())).status, 503);
    }
}
