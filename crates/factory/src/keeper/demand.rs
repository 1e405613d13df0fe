//! How many sandboxes should wait: as many as configured, more after many were taken, none when memory is short.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What was taken so recently counts as demand.
const RECENT: Duration = Duration::from_secs(10);
/// However many are taken, at most this many times the configured number wait.
const AT_MOST_TIMES: usize = 4;
/// With less than this part of the host's memory available none waits, until twice as much is.
const SHORT: u64 = 20;

/// Watches what is taken, and the host's memory.
pub(super) struct Demand {
    configured: usize,
    taken: VecDeque<Instant>,
    short: bool,
}

impl Demand {
    pub(super) fn new(configured: u32) -> Demand {
        Demand { configured: configured as usize, taken: VecDeque::new(), short: false }
    }

    /// One was taken.
    pub(super) fn taken(&mut self, now: Instant) {
        self.taken.push_back(now);
        self.forget(now);
    }

    fn forget(&mut self, now: Instant) {
        while self.taken.front().is_some_and(|then| now.duration_since(*then) > RECENT) {
            self.taken.pop_front();
        }
    }

    /// Looks at the clock and at the host's memory.
    pub(super) fn look(&mut self, now: Instant) {
        self.forget(now);
        if let Some((available, total)) = std::fs::read_to_string("/proc/meminfo").ok().as_deref().and_then(parse) {
            self.memory(available, total);
        }
    }

    fn memory(&mut self, available: u64, total: u64) {
        let enough = if self.short { total / SHORT * 2 } else { total / SHORT };
        self.short = available < enough;
    }

    /// How many should wait now.
    pub(super) fn wanted(&self) -> usize {
        if self.short { 0 } else { self.taken.len().clamp(self.configured, self.configured * AT_MOST_TIMES) }
    }
}

/// What is available and what there is, in KiB (proc_meminfo(5)).
fn parse(meminfo: &str) -> Option<(u64, u64)> {
    let field =
        |name: &str| meminfo.lines().find_map(|l| l.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
    Some((field("MemAvailable:")?, field("MemTotal:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demand_raises_what_waits_and_passes() {
        let mut demand = Demand::new(2);
        let now = Instant::now();
        assert_eq!(demand.wanted(), 2);
        for _ in 0..5 {
            demand.taken(now);
        }
        assert_eq!(demand.wanted(), 5);
        for _ in 0..50 {
            demand.taken(now);
        }
        assert_eq!(demand.wanted(), 8);
        demand.taken(now + RECENT * 2);
        assert_eq!(demand.wanted(), 2);
    }

    #[test]
    fn when_memory_is_short_none_waits_until_there_is_plenty() {
        let mut demand = Demand::new(2);
        demand.memory(49, 1000);
        assert_eq!(demand.wanted(), 0);
        demand.memory(70, 1000);
        assert_eq!(demand.wanted(), 0, "not to and fro");
        demand.memory(100, 1000);
        assert_eq!(demand.wanted(), 2);
        assert_eq!(parse("MemTotal:  100 kB\nMemFree: 3 kB\nMemAvailable:   50 kB\n"), Some((50, 100)));
    }
}
