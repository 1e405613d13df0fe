//! Writing a page.

use std::fmt::{Display, Write};

/// What such a page is called in HTTP.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What kind of numbers a family holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts in buckets.
    Histogram,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// A page that is being written.
#[derive(Debug, Default)]
pub struct Page(String);

impl Page {
    /// Begins a family: its name, what it is, and of which kind.
    pub fn family(&mut self, name: &'static str, help: &str, kind: Kind) -> Family<'_> {
        self.family_named(name, help, kind)
    }

    /// The same for a name that is put together.
    pub fn family_named(&mut self, name: impl Into<String>, help: &str, kind: Kind) -> Family<'_> {
        let name = name.into();
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a String cannot fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {}\n", kind.word());
        Family { page: self, name }
    }

    /// A family of one number without labels.
    pub fn single(&mut self, name: &'static str, help: &str, kind: Kind, value: impl Display) {
        self.family(name, help, kind).sample(&[], value);
    }

    /// Appends what is a page already.
    pub fn append(&mut self, text: &str) {
        self.0.push_str(text);
    }

    /// The text.
    pub fn finish(self) -> String {
        self.0
    }
}

/// A family on a page.
pub struct Family<'a> {
    page: &'a mut Page,
    name: String,
}

impl Family<'_> {
    /// One number. Labels' values may be any text.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.suffixed("", labels, value);
    }

    /// One number of a histogram: `_bucket`, `_sum`, `_count`.
    pub(crate) fn suffixed(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        let out = &mut self.page.0;
        out.push_str(&self.name);
        out.push_str(suffix);
        push_labels(out, labels);
        // Writing to a String cannot fail.
        let _ = writeln!(out, " {value}");
    }
}

fn push_labels(out: &mut String, labels: &[(&str, &str)]) {
    if labels.is_empty() {
        return;
    }
    out.push('{');
    for (n, (name, value)) in labels.iter().enumerate() {
        if n > 0 {
            out.push(',');
        }
        push_label(out, name, value);
    }
    out.push('}');
}

pub(crate) fn push_label(out: &mut String, name: &str, value: &str) {
    out.push_str(name);
    out.push_str("=\"");
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_as_the_format_wants_it() {
        let mut page = Page::default();
        page.single("kata_shim_fds", "Open files.", Kind::Gauge, 7);
        let mut family = page.family("kata_guest_load", "The guest's load.", Kind::Gauge);
        family.sample(&[("item", "load1"), ("odd", "a\"b\\c\nd")], 0.25);
        assert_eq!(
            page.finish(),
            "# HELP kata_shim_fds Open files.\n# TYPE kata_shim_fds gauge\nkata_shim_fds 7\n\
             # HELP kata_guest_load The guest's load.\n# TYPE kata_guest_load gauge\n\
             kata_guest_load{item=\"load1\",odd=\"a\\\"b\\\\c\\nd\"} 0.25\n"
        );
    }
}
