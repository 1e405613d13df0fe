//! exec, attach and port-forward, as kubectl does them with the streaming server of the runtime.

use std::time::Duration;

use serde_json::{Value, json};

use crate::spdy::{Connection, Received, Stream};

/// The sub-protocol of exec and attach: exit codes are told on a stream of their own, window sizes on another.
const REMOTE_COMMAND: &str = "v4.channel.k8s.io";
const PORT_FORWARD: &str = "portforward.k8s.io";

/// The streams of a process in a container.
pub struct Streams {
    stdin: Stream,
    stdout: Stream,
    stderr: Option<Stream>,
    resize: Option<Stream>,
    error: Stream,
    _connection: Connection,
}

/// How it ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// The exit code; `None` if the server told another failure.
    pub code: Option<i32>,
    /// What the server told.
    pub message: String,
    /// All of it.
    pub stdout: Vec<u8>,
    /// All of it.
    pub stderr: Vec<u8>,
}

impl Streams {
    /// Of the address that the runtime gave.
    ///
    /// # Panics
    /// When the server does not take it.
    pub fn open(url: &str, tty: bool) -> Streams {
        let connection = Connection::open(url, REMOTE_COMMAND).unwrap_or_else(|e| panic!("{url}: {e}"));
        let stream = |kind: &str| {
            connection.stream(&[("streamtype", kind)]).unwrap_or_else(|e| panic!("{url}: the stream {kind}: {e}"))
        };
        let error = stream("error");
        let stdin = stream("stdin");
        let stdout = stream("stdout");
        let (stderr, resize) = if tty { (None, Some(stream("resize"))) } else { (Some(stream("stderr")), None) };
        Streams { stdin, stdout, stderr, resize, error, _connection: connection }
    }

    /// Writes to its stdin.
    ///
    /// # Panics
    /// When the connection is gone.
    pub fn write(&self, bytes: &[u8]) {
        self.stdin.send(bytes).unwrap_or_else(|e| panic!("writing to stdin: {e}"));
    }

    /// Ends its stdin.
    ///
    /// # Panics
    /// When the connection is gone.
    pub fn close_stdin(&self) {
        self.stdin.close().unwrap_or_else(|e| panic!("closing stdin: {e}"));
    }

    /// Tells the terminal's size.
    ///
    /// # Panics
    /// Without a terminal, or when the connection is gone.
    pub fn resize(&self, rows: u16, columns: u16) {
        let resize = self.resize.as_ref().expect("a stream with a terminal");
        let size = json!({ "Width": columns, "Height": rows }).to_string();
        resize.send(size.as_bytes()).unwrap_or_else(|e| panic!("telling the terminal's size: {e}"));
    }

    /// Whether its stdout has this, now or soon.
    pub fn said(&self, text: &str, within: Duration) -> bool {
        let has = |received: &Received| String::from_utf8_lossy(&received.bytes).contains(text);
        has(&self.stdout.until(within, has))
    }

    /// Waits until its stdout has this.
    ///
    /// # Panics
    /// When it has not in time.
    pub fn says(&self, text: &str, within: Duration) {
        assert!(
            self.said(text, within),
            "no {text:?} in {:?}; the server says {:?}",
            String::from_utf8_lossy(&self.stdout.received().bytes),
            String::from_utf8_lossy(&self.error.received().bytes)
        );
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn end(self, within: Duration) -> Ended {
        let error = self.error.until(within, |_| false);
        let stdout = self.stdout.until(within, |_| false);
        let stderr = self.stderr.as_ref().map(|stderr| stderr.until(within, |_| false)).unwrap_or_default();
        assert!(error.ended && stdout.ended, "no end of the streams; stdout so far: {} bytes", stdout.bytes.len());
        let message = String::from_utf8_lossy(&error.bytes).into_owned();
        Ended { code: exit_code(&message), message, stdout: stdout.bytes, stderr: stderr.bytes }
    }
}

/// What a `Status` of Kubernetes' says of the exit.
fn exit_code(status: &str) -> Option<i32> {
    let status: Value = serde_json::from_str(status).ok()?;
    if status["status"] == "Success" {
        return Some(0);
    }
    let causes = status["details"]["causes"].as_array()?;
    let code = causes.iter().find(|cause| cause["reason"] == "ExitCode")?;
    code["message"].as_str()?.parse().ok()
}

/// Connections to a port of a pod.
pub struct Forward {
    connection: Connection,
    port: String,
    next: std::cell::Cell<u32>,
}

impl Forward {
    /// Of the address that the runtime gave.
    ///
    /// # Panics
    /// When the server does not take it.
    pub fn open(url: &str, port: u16) -> Forward {
        let connection = Connection::open(url, PORT_FORWARD).unwrap_or_else(|e| panic!("{url}: {e}"));
        Forward { connection, port: port.to_string(), next: std::cell::Cell::new(0) }
    }

    /// Sends a request through a connection of its own, ends our half, and reads the answer to its end; or what the
    /// server told instead.
    ///
    /// # Errors
    /// The server's words, when there is no connection to the port.
    ///
    /// # Panics
    /// When nothing comes in time, or the connection is gone.
    pub fn request(&self, request: &[u8], within: Duration) -> Result<Vec<u8>, String> {
        let id = self.next.get().to_string();
        self.next.set(self.next.get() + 1);
        let stream = |kind: &str| {
            let headers = [("streamtype", kind), ("port", self.port.as_str()), ("requestid", id.as_str())];
            self.connection.stream(&headers).unwrap_or_else(|e| panic!("the stream {kind} of a port: {e}"))
        };
        let error = stream("error");
        error.close().unwrap_or_else(|e| panic!("closing our half of the errors: {e}"));
        let data = stream("data");
        // A server that refused may have gone.
        let sent = data.send(request).and_then(|()| data.close());
        let answer = data.until(within, |_| false);
        let failure = error.until(within, |_| false);
        assert!(answer.ended && failure.ended, "no end of a forwarded connection ({sent:?}): {answer:?}, {failure:?}");
        if failure.bytes.is_empty() {
            Ok(answer.bytes)
        } else {
            Err(String::from_utf8_lossy(&failure.bytes).into_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_read_from_a_status() {
        assert_eq!(exit_code(r#"{"metadata":{},"status":"Success"}"#), Some(0));
        let failed = r#"{"status":"Failure","reason":"NonZeroExitCode",
            "details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#;
        assert_eq!(exit_code(failed), Some(7));
        assert_eq!(exit_code(r#"{"status":"Failure","message":"no such container"}"#), None);
        assert_eq!(exit_code(""), None);
    }
}
