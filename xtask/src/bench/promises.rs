//! What SPEC.md promises, against what was measured. A promise is a ratio within one run, or an amount of memory or CPU.

use super::contender::OTHERS;
use super::idle::Idle;
use super::memory::Memory;
use super::report::{Check, Table};
use super::scale::Scale;
use super::starts::BARE;

const COLD: &str = "kata cold";
const TEMPLATE: &str = "kata template";
const POOL: &str = "kata pool";
const ENGINES: [&str; 3] = ["ctr", "runtime", "docker"];

/// Times runc's, in the same engine.
const START_OF_POOL: f64 = 1.5;
const EXEC: f64 = 2.0;
/// Times our own cold start.
const START_OF_TEMPLATE: f64 = 0.4;
/// Times a bare boot and runc's start.
const COLD_START: f64 = 1.25;
/// MB, PSS of all processes of an idle sandbox.
const IDLE_COLD: f64 = 110.0;
const IDLE_TEMPLATE: f64 = 80.0;
/// MB, PSS.
const DAEMON: f64 = 3.0;
/// Percent of a core.
const IDLE_CPU: f64 = 0.2;
/// Times the first ones' start.
const LATE_START: f64 = 1.2;
/// How many at once, and how many times longer than the CPUs need.
const AT_ONCE: usize = 20;
const SPREAD: f64 = 1.3;

/// Of starts and execs, by the medians.
pub fn of_starts(table: &Table) -> Vec<Check> {
    let runc = OTHERS[0].name;
    let median = |engine: &str, verb: &str, contender: &str| table.of(engine, verb, contender)?.median();
    let mut checks = Vec::new();
    let mut add = |what: String, value: Option<f64>, limit: f64, unit| {
        if let Some(value) = value {
            checks.push(Check { what, value, limit, unit });
        }
    };
    let ratio = |a: Option<f64>, b: Option<f64>| Some(a? / b?);
    for engine in ENGINES {
        let runs = |contender| median(engine, "run", contender);
        add(format!("{engine} run from the pool"), ratio(runs(POOL), runs(runc)), START_OF_POOL, "x runc");
        for contender in [COLD, TEMPLATE, POOL] {
            let execs = ratio(median(engine, "exec", contender), median(engine, "exec", runc));
            add(format!("{engine} exec in {contender}"), execs, EXEC, "x runc");
        }
        add(format!("{engine} run from the template"), ratio(runs(TEMPLATE), runs(COLD)), START_OF_TEMPLATE, "x cold");
        let floor = median("floor", "boot", BARE).zip(runs(runc)).map(|(boot, runc)| boot + runc);
        add(format!("{engine} run, cold"), ratio(runs(COLD), floor), COLD_START, "x floor");
    }
    checks
}

/// Of idle sandboxes.
pub fn of_memory(memory: &Memory) -> Vec<Check> {
    let mut checks = Vec::new();
    for (contender, limit) in [(COLD, IDLE_COLD), (TEMPLATE, IDLE_TEMPLATE)] {
        if let Some(sandbox) = memory.of(contender) {
            checks.push(Check {
                what: format!("idle sandbox, {contender}, PSS"),
                value: sandbox.total_mb(),
                limit,
                unit: "MB",
            });
        }
    }
    for (contender, sandbox) in memory.ours() {
        checks.push(Check {
            what: format!("daemon, {contender}, PSS"),
            value: sandbox.daemon_mb(),
            limit: DAEMON,
            unit: "MB",
        });
    }
    checks
}

/// Of what doing nothing costs.
pub fn of_idle(idle: &[Idle]) -> Vec<Check> {
    let check = |idle: &Idle| Check {
        what: format!("idle CPU, {}", idle.contender),
        value: idle.percent(),
        limit: IDLE_CPU,
        unit: "% core",
    };
    idle.iter().map(check).collect()
}

/// Of many.
pub fn of_scale(scale: &Scale) -> Vec<Check> {
    let mut checks = Vec::new();
    for burst in scale.bursts.iter().filter(|burst| burst.many == AT_ONCE && burst.contender != OTHERS[0].name) {
        checks.push(Check {
            what: format!("{AT_ONCE} at once, {}", burst.contender),
            value: burst.over_bound(),
            limit: SPREAD,
            unit: "x CPU",
        });
    }
    for burst in scale.bursts.iter().filter(|burst| burst.failed > 0) {
        let what = format!("failures of {} at once, {}", burst.many, burst.contender);
        checks.push(Check { what, value: burst.failed as f64, limit: 0.0, unit: "starts" });
    }
    for series in &scale.series {
        if let Some(value) = series.start_growth() {
            let what = format!("start of the last of {}, {}", series.starts.len(), series.contender);
            checks.push(Check { what, value, limit: LATE_START, unit: "x first" });
        }
    }
    checks
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn starts_are_held_against_runc_cold_and_the_floor() {
        let mut table = Table::default();
        let rows = [
            ("ctr", "run", "runc", 100),
            ("ctr", "run", POOL, 140),
            ("ctr", "run", TEMPLATE, 450),
            ("ctr", "run", COLD, 1000),
            ("ctr", "exec", "runc", 40),
            ("ctr", "exec", POOL, 90),
            ("floor", "boot", BARE, 700),
        ];
        for (engine, verb, contender, ms) in rows {
            table.add(engine, verb, contender, Duration::from_millis(ms));
        }
        let checks = of_starts(&table);
        let verdict = |what: &str| checks.iter().find(|check| check.what == what).map(Check::holds);
        assert_eq!(verdict("ctr run from the pool"), Some(true));
        assert_eq!(verdict("ctr exec in kata pool"), Some(false));
        assert_eq!(verdict("ctr run from the template"), Some(false));
        assert_eq!(verdict("ctr run, cold"), Some(true));
        assert_eq!(verdict("docker run from the pool"), None);
    }
}
