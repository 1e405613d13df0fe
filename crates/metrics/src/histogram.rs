//! How long things took.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::page::Page;
use crate::{Family, Kind};

/// Upper bounds of the buckets in milliseconds: powers of two, upstream's ten and four more, since a start without KVM takes
/// seconds.
const BOUNDS: [u32; 14] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192];

/// Durations counted in buckets.
#[derive(Debug, Clone, Default)]
pub struct Histogram {
    /// By bound; those beyond the last are in the count only.
    buckets: [u64; BOUNDS.len()],
    count: u64,
    sum_ms: f64,
}

impl Histogram {
    /// Counts one.
    pub fn observe(&mut self, took: Duration) {
        let ms = took.as_secs_f64() * 1000.0;
        if let Some(bucket) = BOUNDS.iter().position(|bound| ms <= f64::from(*bound)) {
            self.buckets[bucket] += 1;
        }
        self.count += 1;
        self.sum_ms += ms;
    }

    /// Writes it with these labels.
    pub fn write(&self, family: &mut Family<'_>, labels: &[(&str, &str)]) {
        let mut bucket = |bound: &str, n: u64| {
            let mut all = labels.to_vec();
            all.push(("le", bound));
            family.suffixed("_bucket", &all, n);
        };
        let mut below = 0;
        for (bound, n) in BOUNDS.iter().zip(self.buckets) {
            below += n;
            bucket(&bound.to_string(), below);
        }
        bucket("+Inf", self.count);
        family.suffixed("_sum", labels, self.sum_ms);
        family.suffixed("_count", labels, self.count);
    }
}

/// A histogram for each of a fixed set of actions. Shared by reference.
#[derive(Debug, Default)]
pub struct Durations(Mutex<BTreeMap<&'static str, Histogram>>);

impl Durations {
    fn all(&self) -> MutexGuard<'_, BTreeMap<&'static str, Histogram>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one.
    pub fn observe(&self, action: &'static str, took: Duration) {
        self.all().entry(action).or_default().observe(took);
    }

    /// Writes all, with the label `action`.
    pub fn write(&self, page: &mut Page, name: &'static str, help: &str) {
        let mut family = page.family(name, help, Kind::Histogram);
        for (action, histogram) in self.all().iter() {
            histogram.write(&mut family, &[("action", action)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_what_is_not_longer() {
        let durations = Durations::default();
        for ms in [1, 3, 4, 100_000] {
            durations.observe("start", Duration::from_millis(ms));
        }
        let mut page = Page::default();
        durations.write(&mut page, "d", "How long.");
        let text = page.finish();
        for line in [
            "d_bucket{action=\"start\",le=\"1\"} 1",
            "d_bucket{action=\"start\",le=\"2\"} 1",
            "d_bucket{action=\"start\",le=\"4\"} 3",
            "d_bucket{action=\"start\",le=\"8192\"} 3",
            "d_bucket{action=\"start\",le=\"+Inf\"} 4",
            "d_sum{action=\"start\"} 100008",
            "d_count{action=\"start\"} 4",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
    }
}
