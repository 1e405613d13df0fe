//! What sandboxes that do nothing cost the host's CPUs.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::contender::Contender;
use super::engine::{Engine, Kept};
use super::processes::{self, Role};

/// Guests' timers of the start run out meanwhile.
const SETTLE: Duration = Duration::from_secs(5);
/// Clock ticks a second (times(2)); Linux shows this number to programs on every architecture of ours.
const TICKS: f64 = 100.0;

/// Idle sandboxes of one contender.
#[derive(Debug)]
pub struct Idle {
    /// Whose.
    pub contender: String,
    /// How many.
    pub sandboxes: usize,
    /// For how long they were watched.
    pub watched: Duration,
    /// What all of them used of the VMM's time, in seconds.
    pub vmm: f64,
    /// And of everything else's.
    pub rest: f64,
}

impl Idle {
    /// Of one core, for one sandbox.
    pub fn percent(&self) -> f64 {
        (self.vmm + self.rest) / self.watched.as_secs_f64() / self.sandboxes as f64 * 100.0
    }

    /// One line.
    pub fn line(&self) -> String {
        format!(
            "{} idle sandboxes, {}: {:.2} % of a core each, {:.2} s CPU in {:.0} s (VMMs {:.2} s)",
            self.sandboxes,
            self.contender,
            self.percent(),
            self.vmm + self.rest,
            self.watched.as_secs_f64(),
            self.vmm
        )
    }

    /// In seconds.
    pub fn json(&self) -> Value {
        json!({
            "contender": self.contender, "sandboxes": self.sandboxes, "watched": self.watched.as_secs_f64(),
            "vmm": self.vmm, "rest": self.rest,
        })
    }
}

/// Keeps `sandboxes` of each contender running at the same time and watches them for so long.
///
/// # Errors
/// The engine's, or one of their processes that ends meanwhile.
pub fn measure(
    engine: &dyn Engine,
    contenders: &[&Contender],
    sandboxes: usize,
    watched: Duration,
) -> Result<Vec<Idle>> {
    let mut kept: Vec<Kept> = Vec::new();
    for n in 0..sandboxes {
        for (c, contender) in contenders.iter().enumerate() {
            kept.push(Kept::start(engine, contender, &format!("i{c}-{n}"))?);
        }
    }
    std::thread::sleep(SETTLE);
    let all: Vec<_> = kept.iter().map(|one| processes::of_container(&one.id)).collect::<Result<_>>()?;
    let before = used(&all);
    let start = Instant::now();
    std::thread::sleep(watched);
    let watched = start.elapsed();
    let after = used(&all);
    let mut idle = Vec::new();
    for contender in contenders {
        let of = |used: &[(u64, u64)]| {
            let mine = kept.iter().zip(used).filter(|(one, _)| one.contender().name() == contender.name());
            mine.fold((0, 0), |sum, (_, (vmm, rest))| (sum.0 + vmm, sum.1 + rest))
        };
        let (before, after) = (of(&before), of(&after));
        ensure!(after >= before && after.1 >= before.1, "a process of {} ended while it was idle", contender.name());
        idle.push(Idle {
            contender: contender.name(),
            sandboxes,
            watched,
            vmm: (after.0 - before.0) as f64 / TICKS,
            rest: (after.1 - before.1) as f64 / TICKS,
        });
    }
    kept.into_iter().try_for_each(|one| one.remove().map(drop))?;
    Ok(idle)
}

/// Ticks of each sandbox so far: its VMM's, and all others'.
fn used(all: &[Vec<processes::Process>]) -> Vec<(u64, u64)> {
    let sandbox = |processes: &Vec<processes::Process>| {
        processes.iter().fold((0, 0), |(vmm, rest), process| {
            let ticks = processes::ticks(process.pid);
            if process.role == Role::Vmm { (vmm + ticks, rest) } else { (vmm, rest + ticks) }
        })
    };
    all.iter().map(sandbox).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_of_one_core_and_for_one_sandbox() {
        let idle = Idle { contender: "x".into(), sandboxes: 10, watched: Duration::from_secs(20), vmm: 0.3, rest: 0.1 };
        assert!((idle.percent() - 0.2).abs() < 1e-9);
        assert!(idle.line().contains("0.20 %"), "{}", idle.line());
    }
}
