//! Asking.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::{Request, Response};

/// Whom to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A unix socket.
    Unix(PathBuf),
    /// "host:port".
    Tcp(String),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Unix(path) => write!(f, "{}", path.display()),
            Target::Tcp(address) => f.write_str(address),
        }
    }
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody is there.
    #[error("cannot connect to {target}: {source}")]
    Connect {
        /// Whom.
        target: Target,
        /// Why not.
        source: std::io::Error,
    },
    /// Not in time.
    #[error("{target} did not answer within {} ms", limit.as_millis())]
    Late {
        /// Whom.
        target: Target,
        /// How long we waited.
        limit: Duration,
    },
    /// Not HTTP, or it broke off.
    #[error("{target} did not answer as it should: {reason}")]
    Broken {
        /// Whom.
        target: Target,
        /// What came of it.
        reason: String,
    },
    /// More than we take.
    #[error("{target} answers with more than {limit} bytes")]
    TooLong {
        /// Whom.
        target: Target,
        /// Bytes.
        limit: usize,
    },
}

/// Sends a request on a connection of its own and waits for the whole answer, of at most `most` bytes, until the deadline
/// `within` is over.
///
/// # Errors
/// [`ClientError`]. An answer with a status of failure is an answer.
pub async fn send(target: &Target, request: Request, within: Duration, most: usize) -> Result<Response, ClientError> {
    let asked = async {
        let connect = |source| ClientError::Connect { target: target.clone(), source };
        match target {
            Target::Unix(path) => {
                exchange(UnixStream::connect(path).await.map_err(connect)?, target, request, most).await
            }
            Target::Tcp(address) => {
                exchange(TcpStream::connect(address).await.map_err(connect)?, target, request, most).await
            }
        }
    };
    let late = |_| ClientError::Late { target: target.clone(), limit: within };
    tokio::time::timeout(within, asked).await.map_err(late)?
}

/// The same on a connection that there is already; `target` is for messages, and for the name of the host.
///
/// # Errors
/// [`ClientError`].
pub async fn send_over<T>(
    io: T,
    target: &Target,
    request: Request,
    within: Duration,
    most: usize,
) -> Result<Response, ClientError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let late = |_| ClientError::Late { target: target.clone(), limit: within };
    tokio::time::timeout(within, exchange(io, target, request, most)).await.map_err(late)?
}

async fn exchange<T>(io: T, target: &Target, request: Request, most: usize) -> Result<Response, ClientError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let broken = |reason: String| ClientError::Broken { target: target.clone(), reason };
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(|e| broken(e.to_string()))?;
    let question = if request.query.is_empty() { "" } else { "?" };
    let mut builder = hyper::Request::builder()
        .method(request.method.as_str())
        .uri(format!("{}{question}{}", request.path, request.query))
        .header(HOST, if let Target::Tcp(address) = target { address } else { "localhost" });
    if !request.body.is_empty() {
        builder = builder.header(CONTENT_TYPE, "application/json");
    }
    let request = builder.body(Full::new(Bytes::from(request.body))).map_err(|e| broken(e.to_string()))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|e| broken(e.to_string()))?;
        let (head, body) = response.into_parts();
        let body = match Limited::new(body, most).collect().await {
            Ok(body) => body.to_bytes().to_vec(),
            Err(err) if err.is::<http_body_util::LengthLimitError>() => {
                return Err(ClientError::TooLong { target: target.clone(), limit: most });
            }
            Err(err) => return Err(broken(err.to_string())),
        };
        let content_type = head.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        Ok(Response { status: head.status.as_u16(), content_type, body })
    };
    // The connection moves the bytes; it goes with this call.
    let mut answer = std::pin::pin!(answer);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        answer = &mut answer => answer,
        ended = &mut connection => match ended {
            // All has come by then, or it says why not.
            Ok(()) => answer.await,
            Err(err) => Err(broken(err.to_string())),
        },
    }
}
