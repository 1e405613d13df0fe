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

    fn sorted(&self) -> Vec<Duration> {
        let mut sorted = self.0.clone();
        sorted.sort();
        sorted
    }

    /// The middle one; of an even number, the mean of the two in the middle. 0 where there is none.
    pub fn median(&self) -> Duration {
        let sorted = self.sorted();
        match sorted.len() {
            0 => Duration::ZERO,
            n if n % 2 == 1 => sorted[n / 2],
            n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2,
        }
    }

    /// How many times longer than `other`, by the medians.
    pub fn over(&self, other: &Samples) -> f64 {
        self.median().as_secs_f64() / other.median().as_secs_f64()
    }
}

/// min/median/max in milliseconds.
impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sorted = self.sorted();
        let (Some(min), Some(max)) = (sorted.first(), sorted.last()) else { return f.write_str("-") };
        write!(f, "{}/{}/{}", min.as_millis(), self.median().as_millis(), max.as_millis())
    }
}

/// "12 ms".
pub fn milliseconds(duration: Duration) -> String {
    format!("{} ms", duration.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        let of = |ms: &[u64]| {
            let mut samples = Samples::default();
            ms.iter().for_each(|ms| samples.push_if(true, Duration::from_millis(*ms)));
            samples.push_if(false, Duration::from_secs(99));
            samples
        };
        assert_eq!(of(&[9, 1, 5]).to_string(), "1/5/9");
        assert_eq!(of(&[4, 2, 8, 6]).to_string(), "2/5/8");
        assert_eq!(of(&[]).to_string(), "-");
        assert!((of(&[30]).over(&of(&[10])) - 3.0).abs() < 1e-9);
    }
}
