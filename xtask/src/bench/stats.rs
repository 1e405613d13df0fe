//! Samples of a duration.

use std::fmt;
use std::time::Duration;

/// Some measurements of one thing.
#[derive(Debug, Default, Clone)]
pub struct Samples(Vec<Duration>);

impl Samples {
    /// Adds one, unless it belongs to the warm-up.
    pub fn push_if(&mut self, counts: bool, sample: Duration) {
        if counts {
            self.0.push(sample);
        }
    }

    /// As they came, in milliseconds.
    pub fn raw(&self) -> Vec<f64> {
        self.0.iter().map(|d| d.as_secs_f64() * 1e3).collect()
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.raw();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    /// The value, in milliseconds, that `percent` of the samples do not exceed, between neighbours in proportion.
    /// `None` where there is none. With few samples a high percentile is the largest of them, or close to it.
    pub fn percentile(&self, percent: f64) -> Option<f64> {
        percentile_of(&self.sorted(), percent)
    }

    /// The middle one, in milliseconds; of an even number, the mean of the two in the middle.
    pub fn median(&self) -> Option<f64> {
        self.percentile(50.0)
    }

    /// How many times longer than `other`, by the medians.
    pub fn over(&self, other: &Samples) -> Option<f64> {
        Some(self.median()? / other.median()?)
    }
}

/// min/median/max in milliseconds.
impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |percent| self.percentile(percent);
        match (of(0.0), of(50.0), of(100.0)) {
            (Some(min), Some(median), Some(max)) => write!(f, "{min:.0}/{median:.0}/{max:.0}"),
            _ => f.write_str("-"),
        }
    }
}

/// As [`Samples::percentile`], of values that are sorted.
pub fn percentile_of(sorted: &[f64], percent: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let at = percent / 100.0 * last as f64;
    let (below, part) = (at.floor(), at.fract());
    let low = sorted[(below as usize).min(last)];
    let high = sorted[(below as usize + 1).min(last)];
    Some(low + (high - low) * part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ms: &[u64]) -> Samples {
        let mut samples = Samples::default();
        ms.iter().for_each(|ms| samples.push_if(true, Duration::from_millis(*ms)));
        samples.push_if(false, Duration::from_secs(99));
        samples
    }

    #[test]
    fn percentiles_lie_between_neighbours() {
        assert_eq!(of(&[9, 1, 5]).to_string(), "1/5/9");
        assert_eq!(of(&[4, 2, 8, 6]).to_string(), "2/5/8");
        assert_eq!(of(&[]).to_string(), "-");
        assert_eq!(of(&[]).median(), None);
        let hundred = of(&(0..=100).collect::<Vec<u64>>());
        assert!((hundred.percentile(95.0).unwrap() - 95.0).abs() < 1e-9);
        assert!((of(&[10, 20]).percentile(99.0).unwrap() - 19.9).abs() < 1e-9);
        assert!((of(&[30]).over(&of(&[10])).unwrap() - 3.0).abs() < 1e-9);
    }
}
