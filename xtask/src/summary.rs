//! Counting what test programs did, from what they print.
//!
//! Rust's own harness ends with `test result: …`, which is what counts there: its lines for single tests may be torn
//! apart by what a test's children print. A test program with a `main` of its own prints `test NAME ... ok` or
//! `test NAME ... FAILED` for each test. Under both, a test that cannot run prints `SKIP: reason` and returns.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;

use anyhow::{Context, Result};

/// What a test prints that cannot run here, with its reason after it.
const SKIP: &str = "SKIP: ";
/// So many of the last lines that a failed test printed are told once more at the end.
const TOLD: usize = 40;

/// How many tests did what.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Ran and held.
    pub passed: usize,
    /// Ran and did not hold, or did not even start.
    pub failed: usize,
    /// The reason of each that could not run.
    pub skips: Vec<String>,
    /// What each failed test printed last, under its name: whoever has only the end of the output shall know what failed.
    pub failures: Vec<Failure>,
    /// Between `running N tests` and `test result:`.
    in_harness: bool,
    /// In the part of the output that repeats what failed tests printed.
    in_failures: bool,
    /// In the first half of it: before the names alone.
    repeating: bool,
    /// Skips of the program that is running: to its harness they will have passed.
    pending: usize,
}

/// A failed test.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Failure {
    /// As its harness names it.
    pub name: String,
    /// The last [`TOLD`] lines that it printed, where its harness keeps them apart from others'.
    pub last: VecDeque<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failed: {}", self.name)?;
        self.last.iter().try_for_each(|line| write!(f, "\n      {line}"))
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skips.len())
    }
}

impl Summary {
    /// Takes in one line of what `cargo test -- --show-output` prints.
    pub fn line(&mut self, line: &str) {
        match line {
            // Twice: before what the failed tests printed, and before the list of their names.
            "failures:" => (self.in_failures, self.repeating) = (true, !self.in_failures),
            "successes:" => (self.in_failures, self.repeating) = (false, false),
            _ if self.repeating => self.failure(line),
            _ => {}
        }
        if line.strip_prefix("running ").is_some_and(|rest| rest.ends_with(" tests") || rest.ends_with(" test")) {
            (self.in_harness, self.pending) = (true, 0);
        } else if let Some(result) = line.strip_prefix("test result: ") {
            (self.in_harness, self.in_failures, self.repeating) = (false, false, false);
            self.passed += count(result, " passed").saturating_sub(std::mem::take(&mut self.pending));
            self.failed += count(result, " failed");
        } else if let Some(name) = ignored(line) {
            self.skips.push(name);
        } else if let Some(reason) = line.trim_start().strip_prefix(SKIP)
            && !self.in_failures
        {
            self.pending += 1;
            self.skips.push(reason.trim().to_owned());
        } else if !self.in_harness
            && let Some((name, outcome)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... "))
        {
            if outcome.starts_with("FAILED") {
                self.failures.push(Failure { name: name.to_owned(), ..Failure::default() });
                self.failed += 1;
                self.pending = 0;
            } else if outcome.starts_with("ok") && self.pending > 0 {
                self.pending -= 1;
            } else if outcome.starts_with("ok") {
                self.passed += 1;
            }
        }
    }

    /// One line of what a harness repeats of its failed tests: `---- NAME stdout ----`, and what that one printed.
    fn failure(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            self.failures.push(Failure { name: name.to_owned(), ..Failure::default() });
        } else if let Some(failure) = self.failures.last_mut()
            && !line.is_empty()
        {
            failure.last.push_back(line.to_owned());
            if failure.last.len() > TOLD {
                failure.last.pop_front();
            }
        }
    }

    /// The end of one `cargo test`, with how it exited: without a failed test it may still have failed.
    pub fn end(&mut self, what: &str, success: bool, failed_before: usize) {
        (self.in_harness, self.in_failures, self.repeating, self.pending) = (false, false, false, 0);
        if !success && self.failed == failed_before {
            let name = format!("{what}: did not build, or died before it could say which test failed");
            self.failures.push(Failure { name, ..Failure::default() });
            self.failed += 1;
        }
    }

    /// Those skips that the list does not expect.
    pub fn unexpected<'a>(&'a self, expected: &Expected) -> Vec<&'a str> {
        self.skips.iter().map(String::as_str).filter(|reason| !expected.has(reason)).collect()
    }
}

/// The number before " passed" in "ok. 3 passed; 0 failed; 1 ignored; ...".
fn count(result: &str, what: &str) -> usize {
    let before = result.split([';', '.']).find_map(|part| part.trim_end().strip_suffix(what));
    before.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
}

/// "test a::b ... ignored, why" is a skip whose reason is "why", or the test's name.
fn ignored(line: &str) -> Option<String> {
    let (name, outcome) = line.strip_prefix("test ")?.split_once(" ... ignored")?;
    let reason = outcome.trim_start_matches(',').trim();
    Some(if reason.is_empty() { format!("{name} is ignored") } else { reason.to_owned() })
}

/// The skips that are in order, from a file: one a line, the beginning of the reason, ` -- `, and why it is in order.
pub struct Expected(BTreeSet<String>);

impl Expected {
    /// Reads the list; empty lines and those that begin with '#' are skipped.
    ///
    /// # Errors
    /// A line without ` -- `: an expected skip says why.
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines
            .map(|line| {
                let (reason, _why) = line.split_once(" -- ").with_context(|| {
                    format!("the expected skip {line:?} does not say, after ` -- `, why it is in order")
                })?;
                Ok(reason.trim().to_owned())
            })
            .collect::<Result<_>>()
            .map(Expected)
    }

    fn has(&self, reason: &str) -> bool {
        self.0.iter().any(|expected| reason.starts_with(expected.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(text: &str) -> Summary {
        let mut summary = Summary::default();
        text.lines().for_each(|line| summary.line(line));
        summary
    }

    #[test]
    fn results_of_several_programs_add_up() {
        let got = summary(
            "running 3 tests\ntest a ... ok\ntest b ... ignored, needs a NIC\ntest c ... ok\n\nsuccesses:\n\n\
             ---- a stdout ----\nSKIP: no vsock here\n\n\nsuccesses:\n    a\n\n\
             test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s\n\
             running 2 tests\ntest d ... FAILED\nfailures:\n---- d stdout ----\nSKIP: not really\nfailures:\n    d\n\
             test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s\n",
        );
        assert_eq!(got.to_string(), "2 passed, 1 failed, 2 skipped");
        assert_eq!(got.skips, ["needs a NIC", "no vsock here"]);
        assert_eq!(got.failures.len(), 1);
        assert_eq!(got.failures[0].to_string(), "failed: d\n      SKIP: not really");
    }

    #[test]
    fn of_a_failed_test_the_last_lines_are_told_and_of_one_that_held_none() {
        let long: String = (0..100).map(|n| format!("line {n}\n")).collect();
        let got = summary(&format!(
            "running 3 tests\ntest a ... FAILED\nsuccesses:\n---- b stdout ----\nfine\nsuccesses:\n    b\n\nfailures:\n\n\
             ---- a stdout ----\n{long}\n---- c stdout ----\nassertion failed\n\nfailures:\n    a\n    c\n\n\
             test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured\nnot its own\n"
        ));
        let [a, c] = got.failures.as_slice() else { panic!("{:?}", got.failures) };
        assert_eq!((a.name.as_str(), a.last.len(), a.last[TOLD - 1].as_str()), ("a", TOLD, "line 99"));
        assert_eq!((c.name.as_str(), c.last.len()), ("c", 1));
    }

    #[test]
    fn a_skip_that_comes_before_its_result_is_not_lost() {
        let got = summary("successes:\nSKIP: x\ntest result: ok. 1 passed; 0 failed; 0 ignored\n");
        assert_eq!((got.passed, got.skips.len()), (0, 1));
    }

    #[test]
    fn a_harness_of_ones_own_is_counted_line_by_line() {
        let got = summary(
            "test a ... ok (3 ms)\nSKIP: no cgroup2\ntest b ... ok (0 ms)\ntest c ... FAILED (9 ms)\nfailed: c\n\
             running 1 test\ntest d ... what its child printed\nok\n\
             test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured\ntest e ... ok\n",
        );
        assert_eq!(got.to_string(), "3 passed, 1 failed, 1 skipped");
        assert_eq!(got.failures[0].name, "c");
    }

    #[test]
    fn a_program_that_dies_counts_as_failed() {
        let mut got = summary("test result: ok. 5 passed; 0 failed; 0 ignored\n");
        got.end("x", false, 0);
        assert_eq!(got.failed, 1);
        got.end("y", true, 1);
        assert_eq!(got.failed, 1);
    }

    #[test]
    fn an_unexpected_skip_is_found_and_an_expected_one_says_why() {
        let expected = Expected::parse("# list\n\nno vsock -- the proxy is what is tested there\n").unwrap();
        let got = summary("SKIP: no vsock on this host\nSKIP: no time\n");
        assert_eq!(got.unexpected(&expected), ["no time"]);
        assert!(Expected::parse("no vsock\n").is_err());
    }
}
