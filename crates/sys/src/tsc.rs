//! The processor's time-stamp counter, which QEMU without KVM shows its guests as their own.

use std::time::{Duration, Instant};

/// Reads clock and counter together, as close to each other as a few tries come.
#[cfg(target_arch = "x86_64")]
fn read() -> (Instant, u64) {
    const TRIES: usize = 16;
    let one = || {
        let before = Instant::now();
        // SAFETY: every x86_64 has the instruction; where the kernel forbids it to programs (PR_TSC_SIGSEGV), nobody asked it to.
        let counter = unsafe { core::arch::x86_64::_rdtsc() };
        (before.elapsed(), before, counter)
    };
    let (_, at, counter) = (0..TRIES).map(|_| one()).min().unwrap_or_else(one);
    (at, counter)
}

/// Its frequency in kHz, measured against the clock for `over`; `None` on other architectures and for one that stands still.
#[cfg(target_arch = "x86_64")]
pub fn frequency_khz(over: Duration) -> Option<u64> {
    let (began, first) = read();
    std::thread::sleep(over);
    let (ended, last) = read();
    let nanos = ended.duration_since(began).as_nanos();
    let ticks = u128::from(last.checked_sub(first)?);
    let khz = u64::try_from((ticks * 1_000_000 + nanos / 2) / nanos).ok()?;
    (khz > 0).then_some(khz)
}

/// Its frequency in kHz, measured against the clock for `over`; `None` on other architectures and for one that stands still.
#[cfg(not(target_arch = "x86_64"))]
pub fn frequency_khz(_over: Duration) -> Option<u64> {
    None
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        let one = frequency_khz(Duration::from_millis(20)).unwrap();
        let two = frequency_khz(Duration::from_millis(40)).unwrap();
        assert!(one.abs_diff(two) < one / 500, "{one} kHz and {two} kHz");
    }
}
