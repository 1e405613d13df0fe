//! The guest's log in the host's: with its level and its fields.

use kata_agent_client::AgentClient;
use kata_trace::Tracer;
use serde_json::{Map, Value};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

/// A line longer than this is cut: the guest is not trusted with the host's memory.
const MAX_LINE: u64 = 16 << 10;

/// What the target of a line is that tells of a traced call's phases.
const SPAN: &str = "kata_guest::span";

/// Passes the agent's log on until the connection ends. What it tells of phases goes to the tracer, where there is one.
pub async fn follow(agent: AgentClient, tracer: Option<Tracer>) {
    let stream = match agent.log().await {
        Ok(stream) => stream,
        Err(err) => {
            tracing::warn!("the guest's log cannot be read: {err}");
            return;
        }
    };
    let mut reader = BufReader::with_capacity(4096, stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => pass_on(&line, tracer.as_ref()),
        }
    }
}

fn pass_on(line: &[u8], tracer: Option<&Tracer>) {
    let fields = match serde_json::from_slice(line) {
        Ok(Value::Object(fields)) => Some(fields),
        _ => None,
    };
    if let Some(fields) = fields.as_ref().filter(|f| f.get("target").and_then(Value::as_str) == Some(SPAN)) {
        if let Some(tracer) = tracer {
            tracer.guest_line(fields);
        }
        return;
    }
    let (level, text) = worded(line, fields);
    match level {
        tracing::Level::ERROR => tracing::error!(target: "guest", "{text}"),
        tracing::Level::WARN => tracing::warn!(target: "guest", "{text}"),
        tracing::Level::INFO => tracing::info!(target: "guest", "{text}"),
        _ => tracing::debug!(target: "guest", "{text}"),
    }
}

/// The level, and "target: message key=value ...".
fn worded(line: &[u8], fields: Option<Map<String, Value>>) -> (tracing::Level, String) {
    let Some(fields) = fields else {
        return (tracing::Level::INFO, String::from_utf8_lossy(line).trim().escape_debug().to_string());
    };
    let text = |key: &str| fields.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let level = match text("level").to_ascii_lowercase().as_str() {
        "error" => tracing::Level::ERROR,
        "warn" => tracing::Level::WARN,
        "info" => tracing::Level::INFO,
        _ => tracing::Level::DEBUG,
    };
    let mut out = format!("{}: {}", text("target"), text("msg"));
    for (key, value) in &fields {
        if !matches!(key.as_str(), "level" | "target" | "msg") {
            out.push_str(&format!(" {key}={value}"));
        }
    }
    (level, out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &[u8]) -> (tracing::Level, String) {
        let fields = serde_json::from_slice::<Value>(line).ok().and_then(|v| v.as_object().cloned());
        worded(line, fields)
    }

    #[test]
    fn levels_and_fields_come_through_and_rubbish_is_harmless() {
        let (level, text) = parse(br#"{"level":"warn","target":"agent","msg":"late","pid":4}"#);
        assert_eq!((level, text.as_str()), (tracing::Level::WARN, "agent: late pid=4"));
        assert_eq!(parse(b"\x1b[2Jhi\n").1, "\\u{1b}[2Jhi");
    }
}
