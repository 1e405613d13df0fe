//! What was measured, as a table, as raw numbers, and against what is promised.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use super::stats::Samples;

/// Samples of one step of one contender in one engine.
#[derive(Debug)]
pub struct Row {
    /// The engine.
    pub engine: String,
    /// The step.
    pub verb: String,
    /// Who.
    pub contender: String,
    /// How long.
    pub samples: Samples,
}

/// Rows in the order in which they first came.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Row>,
}

/// The yardstick's name.
const YARDSTICK: &str = "runc";

impl Table {
    /// Adds one sample.
    pub fn add(&mut self, engine: &str, verb: &str, contender: &str, took: Duration) {
        let at = self.position(engine, verb, contender).unwrap_or_else(|| {
            let (engine, verb, contender) = (engine.to_owned(), verb.to_owned(), contender.to_owned());
            self.rows.push(Row { engine, verb, contender, samples: Samples::default() });
            self.rows.len() - 1
        });
        self.rows[at].samples.push_if(true, took);
    }

    fn position(&self, engine: &str, verb: &str, contender: &str) -> Option<usize> {
        self.rows.iter().position(|row| row.engine == engine && row.verb == verb && row.contender == contender)
    }

    /// Who was measured, in the order in which they first came.
    pub fn contenders(&self) -> Vec<&str> {
        let mut all: Vec<&str> = Vec::new();
        for row in &self.rows {
            if !all.contains(&row.contender.as_str()) {
                all.push(&row.contender);
            }
        }
        all
    }

    /// The samples, if there are any.
    pub fn of(&self, engine: &str, verb: &str, contender: &str) -> Option<&Samples> {
        self.position(engine, verb, contender).map(|at| &self.rows[at].samples)
    }

    /// The rows by engine and step.
    pub fn groups(&self) -> Vec<(String, Vec<&Row>)> {
        let mut groups: Vec<(String, Vec<&Row>)> = Vec::new();
        for row in &self.rows {
            let title = format!("{} {}", row.engine, row.verb);
            match groups.iter_mut().find(|(name, _)| *name == title) {
                Some((_, rows)) => rows.push(row),
                None => groups.push((title, vec![row])),
            }
        }
        for (_, rows) in &mut groups {
            // Whoever came first in the first round.
            rows.sort_by_key(|row| (row.contender.contains(' '), row.contender != YARDSTICK));
        }
        groups
    }

    /// In Markdown, in milliseconds; the ratio is to the yardstick's in the same engine, by the medians.
    pub fn markdown(&self) -> String {
        let mut out = String::new();
        let head = ["", "", "n", "min", "P50", "P95", "P99", "x runc"];
        let _ = writeln!(
            out,
            "| {:<20} | {:<15} | {:>3} | {:>6} | {:>6} | {:>6} | {:>6} | {:>6} |",
            head[0], head[1], head[2], head[3], head[4], head[5], head[6], head[7]
        );
        let _ = writeln!(out, "|{0:-<22}|{0:-<17}|{0:->5}|{0:->8}|{0:->8}|{0:->8}|{0:->8}|{0:->8}|", "-");
        for (title, rows) in self.groups() {
            for row in rows {
                let at = |percent| row.samples.percentile(percent).map_or("-".to_owned(), |ms| format!("{ms:.0}"));
                let yardstick = self.of(&row.engine, &row.verb, YARDSTICK);
                let ratio = yardstick.and_then(|yardstick| row.samples.over(yardstick));
                let _ = writeln!(
                    out,
                    "| {title:<20} | {:<15} | {:>3} | {:>6} | {:>6} | {:>6} | {:>6} | {:>6} |",
                    row.contender,
                    row.samples.raw().len(),
                    at(0.0),
                    at(50.0),
                    at(95.0),
                    at(99.0),
                    ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"))
                );
            }
        }
        out
    }

    /// Every sample, in milliseconds, in the order in which they came.
    pub fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            json!({ "engine": row.engine, "verb": row.verb, "contender": row.contender, "ms": row.samples.raw() })
        });
        Value::Array(rows.collect())
    }
}

/// Something that is promised.
#[derive(Debug)]
pub struct Check {
    /// What.
    pub what: String,
    /// What it is.
    pub value: f64,
    /// What it may be at most.
    pub limit: f64,
    /// Of both.
    pub unit: &'static str,
}

impl Check {
    /// Whether the promise is kept.
    pub fn holds(&self) -> bool {
        self.value <= self.limit
    }

    /// One line.
    pub fn line(&self) -> String {
        let verdict = if self.holds() { "holds" } else { "does NOT hold" };
        format!("{:<58} {:>8.2} <= {:>8.2} {:<8} {verdict}", self.what, self.value, self.limit, self.unit)
    }

    /// For the raw results.
    pub fn json(&self) -> Value {
        json!({ "what": self.what, "value": self.value, "limit": self.limit, "unit": self.unit, "holds": self.holds() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_grouped_and_compared_with_the_yardstick_of_their_group() {
        let mut table = Table::default();
        let ms = Duration::from_millis;
        table.add("ctr", "run", "kata pool", ms(150));
        table.add("ctr", "run", "runc", ms(100));
        table.add("ctr", "run", "runc", ms(100));
        table.add("docker", "run", "runc", ms(300));
        table.add("floor", "boot", "bare QEMU", ms(700));
        let text = table.markdown();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[2].contains("ctr run") && lines[2].contains("runc") && lines[2].contains("1.00"), "{text}");
        assert!(lines[3].contains("kata pool") && lines[3].contains("1.50"), "{text}");
        assert!(lines[5].contains("floor boot") && !lines[5].contains("nan"), "{text}");
        assert_eq!(table.json()[1]["ms"].as_array().unwrap().len(), 2);
        assert!(table.of("docker", "exec", "runc").is_none());
    }

    #[test]
    fn a_promise_is_an_upper_bound() {
        let of = |value| Check { what: "x".into(), value, limit: 1.5, unit: "x" };
        assert!(of(1.5).holds() && !of(1.51).holds() && !of(f64::NAN).holds());
        assert!(of(2.0).line().contains("NOT"));
    }
}
