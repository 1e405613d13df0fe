//! Whether two things that were measured in turns differ beyond noise.

use super::stats::{Samples, percentile_of};

/// What the samples say about two things that were measured in turns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    /// The median of `b` over that of `a`.
    pub ratio: f64,
    /// How likely so great a difference in ranks is where there is none, 0 to 1 (Mann-Whitney, two-sided).
    pub chance: f64,
    /// The ratio is within these in 95 of 100 resamplings (bootstrap of the medians).
    pub within: (f64, f64),
}

/// Below this chance a difference is believed. Strict, because one run makes a dozen comparisons.
const BELIEVED: f64 = 0.01;
/// And only if it is at least so great: what a busy machine adds to one side by bad luck.
const MATTERS: f64 = 0.03;

impl Difference {
    /// Of `b` against `a`; `None` with fewer than three samples of either.
    pub fn of(a: &Samples, b: &Samples) -> Option<Difference> {
        let (a, b) = (a.raw(), b.raw());
        if a.len().min(b.len()) < 3 {
            return None;
        }
        let ratio = median_of(b.clone()) / median_of(a.clone());
        Some(Difference { ratio, chance: mann_whitney(&a, &b), within: bootstrap(&a, &b) })
    }

    /// Whether it is beyond noise: improbable by chance, and not too small to matter.
    pub fn is_beyond_noise(&self) -> bool {
        let apart = self.within.0 > 1.0 || self.within.1 < 1.0;
        self.chance < BELIEVED && apart && (self.ratio - 1.0).abs() >= MATTERS
    }
}

fn median_of(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    percentile_of(&values, 50.0).unwrap_or(f64::NAN)
}

/// The two-sided p-value of the rank-sum test by the normal approximation, with the corrections for ties and continuity.
fn mann_whitney(a: &[f64], b: &[f64]) -> f64 {
    let (n, m) = (a.len() as f64, b.len() as f64);
    let mut u = 0.0;
    for x in a {
        for y in b {
            u += if x < y {
                1.0
            } else if x > y {
                0.0
            } else {
                0.5
            };
        }
    }
    let mut all: Vec<f64> = a.iter().chain(b).copied().collect();
    all.sort_by(f64::total_cmp);
    let ties: f64 = all.chunk_by(|x, y| x == y).map(|run| (run.len() as f64).powi(3) - run.len() as f64).sum();
    let total = n + m;
    let variance = n * m / 12.0 * (total + 1.0 - ties / (total * (total - 1.0)));
    if variance <= 0.0 {
        return 1.0;
    }
    let z = (((u - n * m / 2.0).abs() - 0.5).max(0.0)) / variance.sqrt();
    (2.0 * upper_tail(z)).min(1.0)
}

/// How much of a normal distribution lies above `z` (Abramowitz and Stegun, 26.2.17; good to 1e-7).
fn upper_tail(z: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * z);
    let terms = [0.319_381_530, -0.356_563_782, 1.781_477_937, -1.821_255_978, 1.330_274_429];
    let sum: f64 = terms.iter().rev().fold(0.0, |sum, term| (sum + term) * t);
    (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt() * sum
}

/// Between what the ratio of the medians lies in 95 of 100 resamplings.
fn bootstrap(a: &[f64], b: &[f64]) -> (f64, f64) {
    const RESAMPLINGS: usize = 2000;
    // Always the same numbers, so that a report can be had again from the same samples (xorshift64).
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % below
    };
    let mut resampled = |from: &[f64]| median_of((0..from.len()).map(|_| from[next(from.len())]).collect());
    let mut ratios: Vec<f64> = (0..RESAMPLINGS).map(|_| resampled(b) / resampled(a)).collect();
    ratios.sort_by(f64::total_cmp);
    let at = |percent| percentile_of(&ratios, percent).unwrap_or(f64::NAN);
    (at(2.5), at(97.5))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn of(ms: &[u64]) -> Samples {
        let mut samples = Samples::default();
        ms.iter().for_each(|ms| samples.push_if(true, Duration::from_millis(*ms)));
        samples
    }

    #[test]
    fn the_normal_distribution_is_the_known_one() {
        for (z, above) in [(0.0, 0.5), (1.0, 0.158_655_3), (1.959_964, 0.025), (3.0, 0.001_349_9)] {
            assert!((upper_tail(z) - above).abs() < 1e-6, "{z}");
        }
    }

    #[test]
    fn ranks_give_the_chance_that_tables_give() {
        // By hand: U is 87.5 and z is 2.802.
        let a: Vec<f64> = (1..=10).map(f64::from).collect();
        let b: Vec<f64> = (6..=15).map(f64::from).collect();
        assert!((mann_whitney(&a, &b) - 0.005_075).abs() < 1e-5, "{}", mann_whitney(&a, &b));
        assert!((mann_whitney(&a, &a) - 1.0).abs() < 1e-6);
        assert!((mann_whitney(&[1.0; 5], &[1.0; 5]) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn noise_is_not_taken_for_a_change_nor_a_change_for_noise() {
        let a = of(&[100, 103, 98, 110, 101, 99, 104, 97, 102, 140]);
        let same = of(&[101, 99, 103, 100, 97, 105, 98, 102, 150, 104]);
        let slower = of(&[121, 119, 124, 118, 120, 126, 117, 123, 122, 160]);
        let same = Difference::of(&a, &same).unwrap();
        assert!(!same.is_beyond_noise(), "{same:?}");
        let slower = Difference::of(&a, &slower).unwrap();
        assert!(slower.is_beyond_noise() && slower.ratio > 1.15, "{slower:?}");
        assert!(slower.within.0 <= slower.ratio && slower.ratio <= slower.within.1);
        assert_eq!(Difference::of(&a, &of(&[1, 2])), None);
    }
}
