//! Requests and responses with their bodies whole.

use serde_json::json;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// "GET", "PUT".
    pub method: String,
    /// The path, as sent: not decoded.
    pub path: String,
    /// What comes after the `?`; empty where there is none.
    pub query: String,
    /// The body, whole.
    pub body: Vec<u8>,
}

impl Request {
    /// A request without a body; `target` is path and query.
    pub fn get(target: &str) -> Request {
        Request::with_body("GET", target, Vec::new())
    }

    /// A request with a body.
    pub fn with_body(method: &str, target: &str, body: Vec<u8>) -> Request {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Request { method: method.into(), path: path.into(), query: query.into(), body }
    }

    /// The value of a parameter of the query, with %XX and + decoded.
    pub fn parameter(&self, name: &str) -> Option<String> {
        let pairs = self.query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| decoded(value))
    }
}

fn decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match (first, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                rest = &after[2..];
            }
            (b'+', _) => out.push(b' '),
            (other, _) => out.push(*other),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// 200, 404.
    pub status: u16,
    /// Of the body.
    pub content_type: String,
    /// The body, whole.
    pub body: Vec<u8>,
}

impl Response {
    /// 200 with a text.
    pub fn text(body: impl Into<String>) -> Response {
        Response::of(200, "text/plain; charset=utf-8", body.into().into_bytes())
    }

    /// 200 with bytes.
    pub fn ok(content_type: &str, body: impl Into<Vec<u8>>) -> Response {
        Response::of(200, content_type, body.into())
    }

    /// A failure in JSON: `{"error": "..."}`.
    pub fn error(status: u16, error: impl AsRef<str>) -> Response {
        let body = json!({ "error": error.as_ref() }).to_string();
        Response::of(status, "application/json", body.into_bytes())
    }

    /// 501: an operation that does not exist here, and why: `{"unsupported": "...", "error": "..."}`.
    pub fn unsupported(operation: &str, why: &str) -> Response {
        let body = json!({ "unsupported": operation, "error": why }).to_string();
        Response::of(501, "application/json", body.into_bytes())
    }

    fn of(status: u16, content_type: &str, body: Vec<u8>) -> Response {
        Response { status, content_type: content_type.to_owned(), body }
    }

    /// The body as text, for messages.
    pub fn body_text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded() {
        let r = Request::get("/agent-url?sandbox=a%2Fb+c&x=%zz%4");
        assert_eq!((r.path.as_str(), r.parameter("sandbox").as_deref()), ("/agent-url", Some("a/b c")));
        assert_eq!((r.parameter("x").as_deref(), r.parameter("y")), (Some("%zz%4"), None));
    }

    #[test]
    fn failures_say_what_and_why() {
        let r = Response::unsupported("pprof", "no Go here");
        assert_eq!(r.status, 501);
        assert_eq!(r.body_text(), r#"{"error":"no Go here","unsupported":"pprof"}"#);
    }
}
