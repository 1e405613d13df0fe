//! What the guest tells of a call: distances from its arrival. The guest's clock is not the host's, and a guest may say
//! anything: what it tells is put into the time that the host saw the call take, and cut there.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::tracer::{Span, SpanId};

/// Phases of one call that are taken.
const MOST_PHASES: usize = 64;
/// Of a name.
const MOST_BYTES: usize = 64;

/// A call's phases.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Report {
    /// The host's span of the call.
    pub parent: SpanId,
    name: String,
    took: u64,
    /// Name, beginning, length; nanoseconds.
    phases: Vec<(String, u64, u64)>,
}

impl Report {
    /// From a line of the guest's log.
    pub fn parse(line: &Map<String, Value>) -> Option<Report> {
        let mut parent = [0; 8];
        hex::decode_to_slice(line.get("parent")?.as_str()?, &mut parent).ok()?;
        let phases = line.get("phases").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let phase = |p: &Value| Some((name(p.get("name")?)?, nanos(p.get("at_us")?)?, nanos(p.get("took_us")?)?));
        Some(Report {
            parent: SpanId(parent),
            name: name(line.get("msg")?)?,
            took: nanos(line.get("took_us")?)?,
            phases: phases.iter().take(MOST_PHASES).filter_map(phase).collect(),
        })
    }

    /// Its spans in the time of the call as the host saw it.
    pub fn spans(self, (start, end): (u64, u64)) -> Vec<Span> {
        let whole = end.saturating_sub(start);
        let took = self.took.min(whole);
        // Half of the rest was the way there.
        let begin = start + (whole - took) / 2;
        let span = |name: String, parent, at: u64, took_ns: u64| {
            let at = at.min(took);
            let (id, end) = (SpanId::random(), begin + at + took_ns.min(took - at));
            Span {
                id,
                parent: Some(parent),
                name: name.into(),
                about: String::new(),
                start: begin + at,
                end,
                error: None,
                guest: true,
            }
        };
        let call = span(self.name, self.parent, 0, took);
        let id = call.id;
        let phases = self.phases.into_iter().map(|(name, at, took)| span(name, id, at, took));
        std::iter::once(call).chain(phases).collect()
    }
}

fn name(value: &Value) -> Option<String> {
    let text = value.as_str()?;
    let plain = !text.is_empty() && text.len() <= MOST_BYTES && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    plain.then(|| text.to_owned())
}

fn nanos(micros: &Value) -> Option<u64> {
    u64::try_from(Duration::from_micros(micros.as_u64()?).as_nanos()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(text: &str) -> Option<Report> {
        Report::parse(serde_json::from_str::<Value>(text).unwrap().as_object()?)
    }

    #[test]
    fn a_guest_cannot_leave_the_time_of_its_call() {
        let max = u64::MAX;
        let text = format!(
            r#"{{"msg":"X","parent":"0102030405060708","took_us":{max},"phases":[{{"name":"p","at_us":{max},"took_us":{max}}}]}}"#
        );
        for span in report(&text).into_iter().flat_map(|r| r.spans((100, 200))) {
            assert!(span.start >= 100 && span.end <= 200 && span.start <= span.end, "{span:?}");
        }
        for bad in [
            "{}",
            r#"{"msg":"X","parent":"01","took_us":1}"#,
            r#"{"msg":"X","parent":"0102030405060708","took_us":-1}"#,
            r#"{"msg":"a\u001b[2J","parent":"0102030405060708","took_us":1}"#,
            r#"{"msg":"","parent":"0102030405060708","took_us":1}"#,
        ] {
            assert_eq!(report(bad), None, "{bad}");
        }
    }
}
