//! The samples as a picture: a strip for each contender in each group, a dot for each sample, a bar at the median.

use std::fmt::Write;

use super::report::Table;

/// Pixels.
const WIDTH: f64 = 960.0;
const LEFT: f64 = 230.0;
const RIGHT: f64 = 70.0;
const STRIP: f64 = 18.0;
const TITLE: f64 = 30.0;
const AXIS: f64 = 30.0;

/// Colours that can be told apart also by those who see fewer of them (Okabe and Ito).
const COLOURS: [&str; 7] = ["#0072b2", "#56b4e9", "#009e73", "#d55e00", "#e69f00", "#cc79a7", "#666666"];

/// The table as a picture. Time is logarithmic: the same ratio is the same distance anywhere.
pub fn plot(table: &Table, title: &str) -> String {
    let groups = table.groups();
    let all: Vec<f64> = groups.iter().flat_map(|(_, rows)| rows.iter().flat_map(|row| row.samples.raw())).collect();
    let low = all.iter().copied().reduce(f64::min).unwrap_or(1.0).max(0.1);
    let high = all.iter().copied().fold(low * 2.0, f64::max);
    let ticks = ticks(low, high);
    let (low, high) = (ticks.first().copied().unwrap_or(1.0), ticks.last().copied().unwrap_or(10.0));
    let x = |ms: f64| LEFT + (ms.max(low) / low).ln() / (high / low).ln() * (WIDTH - LEFT - RIGHT);
    let strips: usize = groups.iter().map(|(_, rows)| rows.len()).sum();
    let height = TITLE * 2.0 + groups.len() as f64 * TITLE + strips as f64 * STRIP + AXIS;

    let mut out = String::new();
    let _ = writeln!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="12">"#
    );
    let _ = writeln!(out, r#"<rect width="100%" height="100%" fill="white"/>"#);
    let _ = writeln!(out, r#"<text x="10" y="22" font-size="15">{}</text>"#, escape(title));
    let bottom = height - AXIS;
    for tick in &ticks {
        let x = x(*tick);
        let _ = writeln!(out, r##"<line x1="{x:.1}" y1="{TITLE}" x2="{x:.1}" y2="{bottom}" stroke="#ddd"/>"##);
        let _ = writeln!(out, r#"<text x="{x:.1}" y="{:.1}" text-anchor="middle">{tick} ms</text>"#, bottom + 16.0);
    }
    let mut names: Vec<&str> = Vec::new();
    let mut y = TITLE;
    for (title, rows) in &groups {
        y += TITLE;
        let _ = writeln!(out, r#"<text x="10" y="{:.1}" font-weight="bold">{}</text>"#, y - 6.0, escape(title));
        for row in rows {
            let index = names.iter().position(|name| *name == row.contender).unwrap_or_else(|| {
                names.push(&row.contender);
                names.len() - 1
            });
            let colour = COLOURS[index % COLOURS.len()];
            let middle = y + STRIP / 2.0;
            let _ = writeln!(out, r#"<text x="24" y="{:.1}">{}</text>"#, middle + 4.0, escape(&row.contender));
            for ms in row.samples.raw() {
                let x = x(ms);
                let _ =
                    writeln!(out, r#"<circle cx="{x:.1}" cy="{middle:.1}" r="3" fill="{colour}" fill-opacity="0.4"/>"#);
            }
            if let Some(median) = row.samples.median() {
                let x = x(median);
                let (top, end) = (middle - 8.0, middle + 8.0);
                let _ = writeln!(
                    out,
                    r#"<line x1="{x:.1}" y1="{top:.1}" x2="{x:.1}" y2="{end:.1}" stroke="{colour}" stroke-width="3"/>"#
                );
                let _ = writeln!(
                    out,
                    r#"<text x="{:.1}" y="{:.1}">{median:.0}</text>"#,
                    WIDTH - RIGHT + 12.0,
                    middle + 4.0
                );
            }
            y += STRIP;
        }
    }
    out.push_str("</svg>\n");
    out
}

/// 1, 2, 5, 10, … around `low` and `high`, both in milliseconds.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let steps: Vec<f64> = (-1..7).flat_map(|power| [1.0, 2.0, 5.0].map(|step| step * 10f64.powi(power))).collect();
    let first = steps.iter().rposition(|step| *step <= low).unwrap_or(0);
    let last = steps.iter().position(|step| *step >= high).unwrap_or(steps.len() - 1).max(first + 1);
    // 0.1 + 0.2 is not 0.3: without the noise of the last digits.
    steps[first..=last].iter().map(|step| (step * 10.0).round() / 10.0).collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn ticks_enclose_what_is_plotted() {
        assert_eq!(ticks(30.0, 120.0), [20.0, 50.0, 100.0, 200.0]);
        assert_eq!(ticks(0.3, 1.0), [0.2, 0.5, 1.0]);
        assert_eq!(ticks(10.0, 10.0), [10.0, 20.0]);
    }

    #[test]
    fn every_sample_is_a_dot_within_the_picture() {
        let mut table = Table::default();
        for ms in [90, 100, 2000] {
            table.add("ctr", "run", "a<b", Duration::from_millis(ms));
        }
        let svg = plot(&table, "x & y");
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.contains("a&lt;b") && svg.contains("x &amp; y"));
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        for part in svg.split("cx=\"").skip(1) {
            let x: f64 = part.split('"').next().unwrap().parse().unwrap();
            assert!((LEFT..=WIDTH - RIGHT).contains(&x), "{x}");
        }
        assert!(plot(&Table::default(), "").contains("</svg>"));
    }
}
