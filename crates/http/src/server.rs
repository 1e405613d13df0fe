//! Serving.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use crate::{Request, Response};

/// hyper's least: request line and headers together may not be longer.
const HEAD_BYTES: usize = 8 * 1024;
/// Accepting again after it failed: out of descriptors, it would spin.
const AGAIN: Duration = Duration::from_millis(100);

/// What a service allows.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Connections at once; more wait.
    pub connections: usize,
    /// Bytes of a request's body.
    pub body: usize,
    /// For a request's head to come, and so for a connection to be idle.
    pub head_within: Duration,
    /// For a request's body to come and its answer to be made.
    pub answer_within: Duration,
    /// For a whole connection.
    pub connection_within: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds {
            connections: 16,
            body: 1 << 20,
            head_within: Duration::from_secs(10),
            answer_within: Duration::from_secs(60),
            connection_within: Duration::from_secs(600),
        }
    }
}

/// What answers requests.
pub trait Handler: Send + Sync + 'static {
    /// Answers one.
    fn handle(&self, request: Request) -> Pin<Box<dyn Future<Output = Response> + Send + '_>>;
}

/// Serves connections of a unix socket until the task is dropped.
pub async fn serve_unix(listener: UnixListener, handler: Arc<dyn Handler>, bounds: Bounds) {
    serve(|cx| listener.poll_accept(cx).map_ok(|(stream, _)| stream), handler, bounds).await;
}

/// The same for TCP.
pub async fn serve_tcp(listener: TcpListener, handler: Arc<dyn Handler>, bounds: Bounds) {
    serve(|cx| listener.poll_accept(cx).map_ok(|(stream, _)| stream), handler, bounds).await;
}

async fn serve<T>(accept: impl Fn(&mut Context<'_>) -> Poll<io::Result<T>>, handler: Arc<dyn Handler>, bounds: Bounds)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let room = Arc::new(Semaphore::new(bounds.connections));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        match poll_fn(&accept).await {
            Ok(stream) => {
                let handler = Arc::clone(&handler);
                tokio::spawn(async move {
                    connection(stream, handler, bounds).await;
                    drop(permit);
                });
            }
            Err(err) => {
                tracing::warn!("an HTTP client cannot be served: {err}");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

async fn connection<T>(io: T, handler: Arc<dyn Handler>, bounds: Bounds)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let handler = Arc::clone(&handler);
        async move {
            let answer = tokio::time::timeout(bounds.answer_within, answer(request, &*handler, bounds.body)).await;
            let late = || Response::error(503, format!("no answer within {} s", bounds.answer_within.as_secs()));
            Ok::<_, Infallible>(rendered(answer.unwrap_or_else(|_| late())))
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.head_within)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(io), service);
    match tokio::time::timeout(bounds.connection_within, served).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(err)) => tracing::debug!("an HTTP connection has ended: {err}"),
    }
}

async fn answer(request: hyper::Request<Incoming>, handler: &dyn Handler, limit: usize) -> Response {
    let (head, body) = request.into_parts();
    let body = match Limited::new(body, limit).collect().await {
        Ok(body) => body.to_bytes().to_vec(),
        Err(err) if err.is::<http_body_util::LengthLimitError>() => {
            return Response::error(413, format!("a body may have {limit} bytes"));
        }
        Err(err) => return Response::error(400, format!("the body cannot be read: {err}")),
    };
    let request = Request {
        method: head.method.as_str().to_owned(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        body,
    };
    handler.handle(request).await
}

fn rendered(response: Response) -> hyper::Response<Full<Bytes>> {
    let mut out = hyper::Response::new(Full::new(Bytes::from(response.body)));
    *out.status_mut() =
        hyper::StatusCode::from_u16(response.status).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    if let Ok(kind) = HeaderValue::from_str(&response.content_type) {
        out.headers_mut().insert(CONTENT_TYPE, kind);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ClientError, Target, send};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    struct Echo;
    impl Handler for Echo {
        fn handle(&self, r: Request) -> Pin<Box<dyn Future<Output = Response> + Send + '_>> {
            Box::pin(async move {
                if r.path == "/slow" {
                    tokio::time::sleep(Duration::from_secs(60)).await;
                }
                Response::text(format!("{} {} {} {}", r.method, r.path, r.query, r.body.len()))
            })
        }
    }

    fn with_server(bounds: Bounds, test: impl AsyncFnOnce(std::path::PathBuf)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        rt.block_on(async {
            let listener = UnixListener::bind(&path).unwrap();
            tokio::spawn(serve_unix(listener, Arc::new(Echo), bounds));
            tokio::time::timeout(Duration::from_secs(20), test(path)).await.unwrap();
        });
    }

    #[test]
    fn requests_are_answered() {
        with_server(Bounds::default(), async |path| {
            let to = Target::Unix(path);
            let second = Duration::from_secs(5);
            let got = send(&to, Request::get("/a/b?c=d"), second, 1000).await.unwrap();
            assert_eq!((got.status, got.body_text().as_str()), (200, "GET /a/b c=d 0"));
            let put = Request::with_body("PUT", "/x", vec![1; 70_000]);
            assert_eq!(send(&to, put, second, 1000).await.unwrap().body_text(), "PUT /x  70000");
            let err = send(&to, Request::get(&format!("/{}", "x".repeat(100))), second, 50).await.unwrap_err();
            assert!(matches!(err, ClientError::TooLong { limit: 50, .. }), "{err}");
        });
    }

    #[test]
    fn too_much_and_too_slow_are_refused() {
        let bounds = Bounds {
            connections: 1,
            body: 10,
            head_within: Duration::from_millis(300),
            answer_within: Duration::from_millis(200),
            ..Bounds::default()
        };
        with_server(bounds, async |path| {
            let to = Target::Unix(path.clone());
            let second = Duration::from_secs(5);
            let long = Request::with_body("PUT", "/x", vec![1; 11]);
            assert_eq!(send(&to, long, second, 1000).await.unwrap().status, 413);
            assert_eq!(send(&to, Request::get("/slow"), second, 1000).await.unwrap().status, 503);
            let head = Request::get(&format!("/{}", "x".repeat(HEAD_BYTES)));
            let refused = send(&to, head, second, 1000).await.map(|r| r.status).unwrap_or(431);
            assert!((400..500).contains(&refused), "{refused}");
            // One that says nothing holds the only place, and not for ever.
            let mut silent = UnixStream::connect(&path).await.unwrap();
            silent.write_all(b"GET / HT").await.unwrap();
            assert_eq!(send(&to, Request::get("/"), second, 1000).await.unwrap().status, 200);
            drop(silent.read(&mut [0; 100]).await);
        });
    }

    #[test]
    fn a_server_that_hangs_is_left_at_the_deadline() {
        with_server(Bounds::default(), async |path| {
            let slow = send(&Target::Unix(path), Request::get("/slow"), Duration::from_millis(100), 1000).await;
            assert!(matches!(slow.unwrap_err(), ClientError::Late { .. }));
        });
    }
}
