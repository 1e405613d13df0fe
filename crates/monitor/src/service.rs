//! The endpoints.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::{Duration, Instant};

use kata_http::{Handler, Request, Response};
use kata_metrics::{CONTENT_TYPE, Collection, Page};
use kata_sandbox::{Found, find};

use crate::own::Own;
use crate::scrape;

const INDEX: &str = "\
kata-monitor
/metrics               the metrics of all sandboxes and of this monitor
/metrics?sandbox=ID    those of one, as it tells them
/sandboxes             the ids of those that run
/agent-url?sandbox=ID  where a sandbox's agent is
";
const GO: &str = "it is an interface of Go programs, and this is none; use perf(1) or gdb(1)";

/// The monitor.
pub struct Monitor {
    parent: PathBuf,
    own: Own,
    within: Duration,
}

impl Monitor {
    /// Of the sandboxes whose directories are in `parent`.
    pub fn new(parent: &Path) -> Monitor {
        Monitor { parent: parent.to_owned(), own: Own::default(), within: scrape::ANSWER_WITHIN }
    }

    async fn answer(&self, request: Request) -> Response {
        if request.method != "GET" {
            return Response::error(405, "only GET is taken");
        }
        match request.path.as_str() {
            "/" => Response::text(INDEX),
            "/metrics" => match request.parameter("sandbox") {
                Some(id) => self.of_one(&id, "/metrics", CONTENT_TYPE).await,
                None => self.metrics().await,
            },
            "/sandboxes" => {
                let ids: String = find(&self.parent).into_iter().map(|found| found.state.id + "\n").collect();
                Response::text(ids)
            }
            "/agent-url" => match request.parameter("sandbox") {
                Some(id) => self.of_one(&id, "/agent-url", "text/plain; charset=utf-8").await,
                None => Response::error(400, "/agent-url?sandbox=ID"),
            },
            "/debug/vars" => Response::unsupported("debug vars", GO),
            path if path == "/debug/pprof" || path.starts_with("/debug/pprof/") => Response::unsupported("pprof", GO),
            _ => Response::error(404, "there are /metrics, /sandboxes and /agent-url"),
        }
    }

    async fn metrics(&self) -> Response {
        let begun = Instant::now();
        let found = find(&self.parent);
        let mut collection = Collection::default();
        let failed = scrape::all(&found, &mut collection, self.within).await;
        self.own.scraped(begun.elapsed(), failed);
        let mut page = Page::default();
        self.own.write(&mut page, found.len());
        page.append(&collection.finish());
        Response::ok(CONTENT_TYPE, page.finish())
    }

    async fn of_one(&self, id: &str, path: &str, content_type: &str) -> Response {
        let mut found: Vec<Found> = find(&self.parent).into_iter().filter(|found| found.state.id == id).collect();
        match (found.pop(), found.is_empty()) {
            (None, _) => Response::error(404, format!("no sandbox {id:?} runs here")),
            (Some(_), false) => Response::error(409, format!("several sandboxes are called {id:?}")),
            (Some(one), true) => match scrape::get(&one, path, self.within).await {
                Ok(text) => Response::ok(content_type, text),
                Err(why) => Response::error(502, why),
            },
        }
    }
}

impl Handler for Monitor {
    fn handle(&self, request: Request) -> Pin<Box<dyn Future<Output = Response> + Send + '_>> {
        Box::pin(self.answer(request))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use kata_http::{Bounds, serve_unix};
    use kata_sandbox::{ContainerRecord, StateFile, monitor_socket};
    use tokio::net::UnixListener;

    /// A sandbox that says this, after this time.
    struct Says(&'static str, Duration);
    impl Handler for Says {
        fn handle(&self, r: Request) -> Pin<Box<dyn Future<Output = Response> + Send + '_>> {
            Box::pin(async move {
                tokio::time::sleep(self.1).await;
                Response::text(if r.path == "/metrics" { self.0 } else { "vsock://3:1024" })
            })
        }
    }

    fn sandbox(parent: &Path, key: char, id: &str, page: &'static str, after: Duration) {
        let dir = parent.join(key.to_string().repeat(32));
        std::fs::create_dir(&dir).unwrap();
        let mut state = StateFile::new(id);
        let annotations = [("io.kubernetes.cri.sandbox-name".to_owned(), "web".to_owned())].into();
        state.containers.insert(id.into(), ContainerRecord { annotations, ..ContainerRecord::default() });
        state.save(&dir).unwrap();
        let listener = UnixListener::bind(monitor_socket(&dir)).unwrap();
        tokio::spawn(serve_unix(listener, Arc::new(Says(page, after)), Bounds::default()));
    }

    fn test(test: impl AsyncFnOnce(&Path, Monitor)) {
        let dir = tempfile::tempdir().unwrap();
        let monitor = Monitor { within: Duration::from_millis(500), ..Monitor::new(dir.path()) };
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        rt.block_on(async { tokio::time::timeout(Duration::from_secs(20), test(dir.path(), monitor)).await.unwrap() });
    }

    const PAGE: &str = "# HELP kata_shim_fds Open files.\n# TYPE kata_shim_fds gauge\nkata_shim_fds 7\n";

    #[test]
    fn all_sandboxes_are_on_one_page_and_one_that_hangs_or_lies_stops_nobody() {
        test(async |dir, monitor| {
            sandbox(dir, 'a', "one", PAGE, Duration::ZERO);
            sandbox(dir, 'b', "two", PAGE, Duration::ZERO);
            sandbox(dir, 'c', "hangs", PAGE, Duration::from_secs(60));
            sandbox(dir, 'd', "lies", "kata_shim_fds{sandbox_id=\"one\"} 9\n", Duration::ZERO);
            let begun = Instant::now();
            let page = monitor.answer(Request::get("/metrics")).await.body_text();
            assert!(begun.elapsed() < Duration::from_secs(5));
            for line in [
                "kata_shim_fds{sandbox_id=\"one\",cri_name=\"web\"} 7",
                "kata_shim_fds{sandbox_id=\"two\",cri_name=\"web\"} 7",
                "kata_monitor_running_shim_count 4",
                "kata_monitor_scrape_count 1",
                "kata_monitor_scrape_failed_count 2",
                "kata_monitor_scrape_durations_histogram_milliseconds_count 1",
            ] {
                assert!(page.lines().any(|l| l == line), "{line} is not in:\n{page}");
            }
            assert_eq!(page.matches("# TYPE kata_shim_fds ").count(), 1);
            assert!(!page.contains("kata_shim_fds{sandbox_id=\"one\"} 9"), "{page}");
            let ids = monitor.answer(Request::get("/sandboxes")).await.body_text();
            assert_eq!(ids, "hangs\nlies\none\ntwo\n");
        });
    }

    #[test]
    fn one_sandbox_is_asked_by_its_id() {
        test(async |dir, monitor| {
            sandbox(dir, 'a', "one", PAGE, Duration::ZERO);
            sandbox(dir, 'b', "twin", PAGE, Duration::ZERO);
            sandbox(dir, 'c', "twin", PAGE, Duration::ZERO);
            let get = async |target: &str| monitor.answer(Request::get(target)).await;
            assert_eq!(get("/agent-url?sandbox=one").await.body_text(), "vsock://3:1024");
            assert_eq!(get("/metrics?sandbox=one").await.body_text(), PAGE);
            for (target, status) in [
                ("/agent-url?sandbox=none", 404),
                ("/agent-url?sandbox=twin", 409),
                ("/agent-url", 400),
                ("/debug/pprof/heap", 501),
                ("/nothing", 404),
                ("/", 200),
            ] {
                assert_eq!(get(target).await.status, status, "{target}");
            }
            // Two of one name are told apart.
            let page = get("/metrics").await.body_text();
            assert!(page.contains(&format!("sandbox_id=\"twin\",sandbox_dir=\"{}\"", "b".repeat(32))), "{page}");
        });
    }
}
