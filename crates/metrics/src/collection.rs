//! Reading pages of others, and putting many into one.

use std::collections::BTreeMap;
use std::fmt;

use crate::page::push_label;

/// What a page may have. One that has more is refused whole: half a page would look like a whole one.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of the page.
    pub bytes: usize,
    /// Lines.
    pub lines: usize,
}

impl Default for Limits {
    /// Ten times what a sandbox has to say (it says some 60 KB in 700 lines).
    fn default() -> Self {
        Limits { bytes: 1 << 20, lines: 10_000 }
    }
}

/// Why a page is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PageError {
    /// More bytes or lines than allowed.
    TooLong,
    /// Not in the format.
    Malformed {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A name that its writer may not use.
    Foreign {
        /// Counted from 1.
        line: usize,
    },
}

impl fmt::Display for PageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PageError::TooLong => f.write_str("the page of metrics is longer than allowed"),
            PageError::Malformed { line, why } => write!(f, "line {line} of the page of metrics: {why}"),
            PageError::Foreign { line } => {
                write!(f, "line {line} of the page of metrics has a name or label that is not its writer's to use")
            }
        }
    }
}

impl std::error::Error for PageError {}

#[derive(Debug, Default)]
struct Gathered {
    help: Option<String>,
    kind: Option<String>,
    samples: String,
}

/// Families of many pages, each family once and all its samples together, as the format demands.
#[derive(Debug, Default)]
pub struct Collection(BTreeMap<String, Gathered>);

impl Collection {
    /// Takes a page. `prefixes`: how its names may begin. `labels` are added to each sample; a page that has one of these
    /// labels itself, or one of `reserved`, is refused, so that nobody can pass for another.
    ///
    /// # Errors
    /// [`PageError`]; nothing of the page is taken then.
    pub fn add(
        &mut self,
        page: &str,
        prefixes: &[&str],
        labels: &[(&str, &str)],
        reserved: &[&str],
        limits: Limits,
    ) -> Result<(), PageError> {
        if page.len() > limits.bytes {
            return Err(PageError::TooLong);
        }
        let mut taken: BTreeMap<&str, Gathered> = BTreeMap::new();
        let mut extra = String::new();
        for (n, (name, value)) in labels.iter().enumerate() {
            if n > 0 {
                extra.push(',');
            }
            push_label(&mut extra, name, value);
        }
        let is_ours = |label: &str| reserved.contains(&label) || labels.iter().any(|(name, _)| *name == label);
        // The family that the last TYPE line has begun.
        let mut current = "";
        for (index, text) in page.lines().enumerate() {
            let line = index + 1;
            if line > limits.lines {
                return Err(PageError::TooLong);
            }
            let malformed = |why| PageError::Malformed { line, why };
            let own = |name: &str| {
                if prefixes.iter().any(|p| name.starts_with(p)) { Ok(()) } else { Err(PageError::Foreign { line }) }
            };
            if text.trim().is_empty() {
                continue;
            }
            if let Some(comment) = text.strip_prefix('#') {
                let Some((word, name, rest)) = meta(comment) else { continue };
                if !is_name(name) {
                    return Err(malformed("a family without a valid name"));
                }
                own(name)?;
                let gathered = taken.entry(name).or_default();
                if word == "HELP" {
                    gathered.help = Some(rest.to_owned());
                } else {
                    if !["counter", "gauge", "histogram", "summary", "untyped"].contains(&rest) {
                        return Err(malformed("a family of a kind that does not exist"));
                    }
                    gathered.kind = Some(rest.to_owned());
                    current = name;
                }
                continue;
            }
            let sample = Sample::parse(text).ok_or_else(|| malformed("neither a comment nor a sample"))?;
            own(sample.name)?;
            if sample.label_names.iter().any(|label| is_ours(label)) {
                return Err(PageError::Foreign { line });
            }
            let family = if belongs(sample.name, current) { current } else { sample.name };
            let out = &mut taken.entry(family).or_default().samples;
            out.push_str(sample.name);
            let comma = if sample.labels.is_empty() || extra.is_empty() { "" } else { "," };
            if !(sample.labels.is_empty() && extra.is_empty()) {
                for part in ["{", sample.labels, comma, &extra, "}"] {
                    out.push_str(part);
                }
            }
            out.push(' ');
            out.push_str(sample.value);
            out.push('\n');
        }
        for (name, family) in taken {
            let to = self.0.entry(name.to_owned()).or_default();
            // Whoever came first says what it is.
            to.help = to.help.take().or(family.help);
            to.kind = to.kind.take().or(family.kind);
            to.samples.push_str(&family.samples);
        }
        Ok(())
    }

    /// The page of all. A family without samples is left out.
    pub fn finish(self) -> String {
        let mut out = String::new();
        for (name, family) in self.0.into_iter().filter(|(_, family)| !family.samples.is_empty()) {
            for (word, text) in [("HELP", family.help), ("TYPE", family.kind)] {
                if let Some(text) = text {
                    for part in ["# ", word, " ", &name, " ", &text, "\n"] {
                        out.push_str(part);
                    }
                }
            }
            out.push_str(&family.samples);
        }
        out
    }
}

/// `HELP` or `TYPE`, the name, the rest; `None` for any other comment.
fn meta(comment: &str) -> Option<(&str, &str, &str)> {
    let mut words = comment.trim_start().splitn(3, ' ');
    let (word, name) = (words.next()?, words.next()?);
    (word == "HELP" || word == "TYPE").then(|| (word, name, words.next().unwrap_or_default().trim()))
}

/// Whether a sample is one of a family's: its own name, or one of those that histograms and summaries have.
fn belongs(sample: &str, family: &str) -> bool {
    !family.is_empty()
        && sample.strip_prefix(family).is_some_and(|suffix| ["", "_bucket", "_sum", "_count"].contains(&suffix))
}

fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_' || b == b':')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':')
}

struct Sample<'a> {
    name: &'a str,
    /// As they stand between the braces.
    labels: &'a str,
    label_names: Vec<&'a str>,
    value: &'a str,
}

impl<'a> Sample<'a> {
    fn parse(text: &'a str) -> Option<Sample<'a>> {
        let end = text.find(['{', ' '])?;
        let (name, rest) = text.split_at(end);
        let (labels, label_names, rest) = match rest.strip_prefix('{') {
            Some(inside) => {
                let (length, names) = labels(inside)?;
                let (labels, rest) = inside.split_at(length);
                (labels.strip_suffix(',').unwrap_or(labels), names, rest.strip_prefix('}')?)
            }
            None => ("", Vec::new(), rest),
        };
        let mut words = rest.split_ascii_whitespace();
        let value = words.next()?;
        // A timestamp is dropped: these pages are made when they are asked for.
        let stamp = words.next().is_none_or(|stamp| stamp.parse::<i64>().is_ok());
        let ok = is_name(name) && is_number(value) && stamp && words.next().is_none();
        ok.then_some(Sample { name, labels, label_names, value })
    }
}

fn is_number(text: &str) -> bool {
    matches!(text, "NaN" | "+Inf" | "-Inf")
        || (text.parse::<f64>().is_ok() && !text.contains(|c: char| c.is_ascii_alphabetic() && c != 'e' && c != 'E'))
}

/// How long the labels are, up to their closing brace, and what they are called.
fn labels(text: &str) -> Option<(usize, Vec<&str>)> {
    let mut names = Vec::new();
    let mut at = 0;
    loop {
        let rest = &text[at..];
        if rest.starts_with('}') {
            return Some((at, names));
        }
        let equals = rest.find("=\"")?;
        let name = &rest[..equals];
        if !is_name(name) {
            return None;
        }
        names.push(name);
        at += equals + 2;
        let mut escaped = false;
        let mut closed = None;
        for (n, c) in text[at..].char_indices() {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => {
                    closed = Some(n);
                    break;
                }
                _ => {}
            }
        }
        at += closed? + 1;
        match text[at..].chars().next()? {
            ',' => at += 1,
            '}' => {}
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: &str = "# HELP kata_shim_fds Open files.\n# TYPE kata_shim_fds gauge\nkata_shim_fds 7\n\n\
                        # anything\n# TYPE kata_shim_h histogram\nkata_shim_h_bucket{le=\"+Inf\"} 2\n\
                        kata_shim_h_sum 1.5e3\nkata_shim_h_count 2 1700000000\n";

    fn add(c: &mut Collection, page: &str, id: &str) -> Result<(), PageError> {
        c.add(page, &["kata_"], &[("sandbox_id", id)], &["cri_name"], Limits::default())
    }

    #[test]
    fn families_of_many_pages_are_one_each_and_samples_tell_whose_they_are() {
        let mut c = Collection::default();
        add(&mut c, PAGE, "a").unwrap();
        add(&mut c, PAGE, "b\"").unwrap();
        assert_eq!(
            c.finish(),
            "# HELP kata_shim_fds Open files.\n# TYPE kata_shim_fds gauge\n\
             kata_shim_fds{sandbox_id=\"a\"} 7\nkata_shim_fds{sandbox_id=\"b\\\"\"} 7\n\
             # TYPE kata_shim_h histogram\n\
             kata_shim_h_bucket{le=\"+Inf\",sandbox_id=\"a\"} 2\nkata_shim_h_sum{sandbox_id=\"a\"} 1.5e3\n\
             kata_shim_h_count{sandbox_id=\"a\"} 2\n\
             kata_shim_h_bucket{le=\"+Inf\",sandbox_id=\"b\\\"\"} 2\nkata_shim_h_sum{sandbox_id=\"b\\\"\"} 1.5e3\n\
             kata_shim_h_count{sandbox_id=\"b\\\"\"} 2\n"
        );
    }

    #[test]
    fn nobody_passes_for_another_and_a_wrong_page_leaves_nothing() {
        let mut c = Collection::default();
        for (page, part) in [
            ("kata_x{sandbox_id=\"b\"} 1\n", "not its writer's"),
            ("kata_x{cri_name=\"b\"} 1\n", "not its writer's"),
            ("kata_good 1\nup 1\n", "line 2"),
            ("# TYPE up gauge\n", "not its writer's"),
            ("kata_x{a=\"b} 1\n", "neither"),
            ("kata_x{a=\"b\"}\n", "neither"),
            ("kata_x{a=\"b\" c=\"d\"} 1\n", "neither"),
            ("kata_x one\n", "neither"),
            ("kata_x inf\n", "neither"),
            ("kata_x 1 2 3\n", "neither"),
            ("kata-x 1\n", "neither"),
            ("# TYPE kata_x sum\n", "kind"),
        ] {
            let err = add(&mut c, page, "a").unwrap_err().to_string();
            assert!(err.contains(part), "{page:?}: {err}");
        }
        assert_eq!(c.finish(), "");
    }

    #[test]
    fn a_page_has_bounds() {
        let mut c = Collection::default();
        let limits = Limits { bytes: 100, lines: 2 };
        assert_eq!(c.add(&"x".repeat(101), &["kata_"], &[], &[], limits), Err(PageError::TooLong));
        assert_eq!(c.add("kata_x 1\nkata_x 2\nkata_x 3\n", &["kata_"], &[], &[], limits), Err(PageError::TooLong));
    }

    proptest! {
        #[test]
        fn no_page_breaks_it_and_what_comes_out_goes_in_again(page in "(kata_[a-z]{1,3}|[{}\"=, \\\\#a-z0-9\n]|\\PC){0,80}") {
            let mut c = Collection::default();
            if c.add(&page, &["kata_"], &[("id", "x")], &[], Limits::default()).is_ok() {
                let once = c.finish();
                let mut again = Collection::default();
                again.add(&once, &["kata_"], &[], &[], Limits::default()).unwrap();
                prop_assert_eq!(again.finish(), once);
            }
        }
    }
}
