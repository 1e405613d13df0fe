//! Many at once, and many kept: whether the n-th is as quick and as small as the first.

use std::fmt::Write;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};

use super::contender::Contender;
use super::engine::{Engine, Kept};
use super::memory::Sandbox;

/// How many start at once.
const AT_ONCE: [usize; 5] = [1, 2, 5, 10, 20];
/// A sandbox is let settle for so long before it is measured among many.
const SETTLE: Duration = Duration::from_millis(500);
/// So many at either end are compared, by their medians: one alone is chance.
const ENDS: usize = 10;
/// No more are started when less than this is left, in MiB.
const RESERVE: u64 = 2048;

/// So many containers that were run at the same time.
#[derive(Debug)]
pub struct Burst {
    /// Whose.
    pub contender: String,
    /// How many.
    pub many: usize,
    /// From the first command's start to the last one's end.
    pub took: Duration,
    /// How long the machine's CPUs would have taken if none had ever rested: all CPU time that was used on this machine
    /// meanwhile, by its number of CPUs. What others used is in it, as those CPUs were not to be had; so it says how well
    /// the work was spread, and not how much of it there was.
    pub bound: Duration,
    /// How many did not succeed.
    pub failed: usize,
}

impl Burst {
    /// How many times longer than the CPUs needed.
    pub fn over_bound(&self) -> f64 {
        self.took.as_secs_f64() / self.bound.as_secs_f64()
    }
}

/// Sandboxes that were started one after the other and kept.
#[derive(Debug)]
pub struct Series {
    /// Whose.
    pub contender: String,
    /// How long each took to start.
    pub starts: Vec<Duration>,
    /// MB of PSS of each when it was the newest.
    pub memory: Vec<f64>,
}

impl Series {
    /// How long the last ones took to start, as a multiple of the first ones; `None` if there are too few.
    pub fn start_growth(&self) -> Option<f64> {
        growth(&self.starts.iter().map(Duration::as_secs_f64).collect::<Vec<f64>>())
    }

    /// The same of their memory.
    pub fn memory_growth(&self) -> Option<f64> {
        growth(&self.memory)
    }
}

fn growth(values: &[f64]) -> Option<f64> {
    if values.len() < 2 * ENDS {
        return None;
    }
    let median = |part: &[f64]| {
        let mut part = part.to_vec();
        part.sort_by(f64::total_cmp);
        (part[(ENDS - 1) / 2] + part[ENDS / 2]) / 2.0
    };
    Some(median(&values[values.len() - ENDS..]) / median(&values[..ENDS]))
}

/// What was found.
#[derive(Debug, Default)]
pub struct Scale {
    /// By contender, and how many at once.
    pub bursts: Vec<Burst>,
    /// By contender.
    pub series: Vec<Series>,
}

/// Runs `true` in 1 to 20 containers at once.
///
/// # Errors
/// The engine's.
pub fn bursts(engine: &(dyn Engine + Sync), contenders: &[&Contender], rounds: usize) -> Result<Vec<Burst>> {
    let mut bursts = Vec::new();
    for many in AT_ONCE {
        for contender in contenders {
            let mut tries = Vec::new();
            for round in 0..rounds {
                tries.push(burst(engine, contender, many, &format!("b{many}-{round}"))?);
            }
            // Of several rounds the one in the middle, with what failed in any.
            let failed = tries.iter().map(|burst| burst.failed).sum();
            tries.sort_by_key(|burst| burst.took);
            bursts.push(Burst { failed, ..tries.swap_remove(tries.len() / 2) });
        }
    }
    Ok(bursts)
}

fn burst(engine: &(dyn Engine + Sync), contender: &Contender, many: usize, id: &str) -> Result<Burst> {
    let ticket = contender.ready(many)?;
    let busy = Busy::now()?;
    let start = Instant::now();
    let failures: Vec<anyhow::Error> = thread::scope(|scope| {
        let threads: Vec<_> =
            (0..many).map(|n| scope.spawn(move || engine.run(contender, &format!("{id}-{n}")))).collect();
        let ended = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("a panic"))));
        ended.filter_map(Result::err).collect()
    });
    let took = start.elapsed();
    let bound = busy.since()?;
    // A start that fails among many is a result: the rest is measured all the same.
    failures.iter().for_each(|err| eprintln!("    {err:#}"));
    contender.came_true(ticket)?;
    Ok(Burst { contender: contender.name(), many, took, bound, failed: failures.len() })
}

/// Keeps `many` sandboxes running, as far as memory goes.
///
/// # Errors
/// The engine's.
pub fn series(engine: &dyn Engine, contender: &Contender, many: usize) -> Result<Series> {
    let mut series = Series { contender: contender.name(), starts: Vec::new(), memory: Vec::new() };
    let mut kept: Vec<Kept> = Vec::new();
    for n in 0..many {
        if available_mib()? < RESERVE {
            eprintln!("    memory is short: {n} of {many} sandboxes");
            break;
        }
        let one = Kept::start(engine, contender, &format!("n{n}"))?;
        thread::sleep(SETTLE);
        series.starts.push(one.steps.iter().map(|(_, took)| *took).sum());
        series.memory.push(Sandbox::of(&one.id)?.total_mb());
        kept.push(one);
    }
    kept.into_iter().try_for_each(|one| one.remove().map(drop))?;
    Ok(series)
}

/// In MiB (proc_meminfo(5)).
fn available_mib() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let kib =
        text.lines().find_map(|l| l.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kib.context("no MemAvailable in /proc/meminfo")? / 1024)
}

/// How long the CPUs have worked.
struct Busy {
    ticks: u64,
    cpus: u64,
}

impl Busy {
    fn now() -> Result<Busy> {
        busy(&fs::read_to_string("/proc/stat")?).context("no CPUs in /proc/stat")
    }

    /// What has been worked since, by each CPU in the mean.
    fn since(&self) -> Result<Duration> {
        let now = Busy::now()?;
        ensure!(now.ticks >= self.ticks, "/proc/stat runs backwards");
        Ok(Duration::from_millis((now.ticks - self.ticks) * 10 / now.cpus))
    }
}

/// user, nice, system, irq, softirq and steal of the first line, in ticks of 1/100 s; and the number of CPUs (proc_stat(5)).
fn busy(stat: &str) -> Option<Busy> {
    let fields: Vec<u64> =
        stat.lines().next()?.split_ascii_whitespace().skip(1).map_while(|f| f.parse().ok()).collect();
    let ticks = [0, 1, 2, 5, 6, 7].into_iter().filter_map(|at| fields.get(at)).sum();
    let is_cpu =
        |line: &&str| line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    let cpus = stat.lines().filter(is_cpu).count() as u64;
    (cpus > 0).then_some(Busy { ticks, cpus })
}

impl Scale {
    /// Tables.
    pub fn markdown(&self) -> String {
        let mut out = String::from("so many `run true` at once, by the runtime's command line\n\n");
        let _ = writeln!(out, "| {:<15} | at once | s in all | s each | x CPU-bound | failed |", "");
        let _ = writeln!(out, "|{:-<17}|--------:|---------:|-------:|------------:|-------:|", "");
        for burst in &self.bursts {
            let took = burst.took.as_secs_f64();
            let _ = writeln!(
                out,
                "| {:<15} | {:>7} | {took:>8.2} | {:>6.2} | {:>11.2} | {:>6} |",
                burst.contender,
                burst.many,
                took / burst.many as f64,
                burst.over_bound(),
                burst.failed
            );
        }
        for series in &self.series {
            let _ = writeln!(out, "\n{} sandboxes of {}, kept", series.starts.len(), series.contender);
            for (name, growth) in [("start", series.start_growth()), ("memory", series.memory_growth())] {
                if let Some(growth) = growth {
                    let _ = writeln!(out, "    the last {ENDS} against the first {ENDS}: {name} {growth:.2} x");
                }
            }
            let shown = [0, 1, 9, 24, 49, 74, 99].into_iter().filter(|n| *n < series.starts.len());
            for n in shown {
                let (start, memory) = (series.starts[n].as_millis(), series.memory[n]);
                let _ = writeln!(out, "    {:>4}: {start:>5} ms {memory:>7.1} MB", n + 1);
            }
        }
        out
    }

    /// In seconds and MB.
    pub fn json(&self) -> Value {
        let bursts = self.bursts.iter().map(|b| {
            json!({ "contender": b.contender, "many": b.many, "s": b.took.as_secs_f64(), "bound_s": b.bound.as_secs_f64(), "failed": b.failed })
        });
        let series = self.series.iter().map(|s| {
            let starts: Vec<f64> = s.starts.iter().map(Duration::as_secs_f64).collect();
            json!({ "contender": s.contender, "starts_s": starts, "memory_mb": s.memory })
        });
        json!({ "bursts": bursts.collect::<Vec<_>>(), "series": series.collect::<Vec<_>>() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_work_is_what_is_neither_idle_nor_waiting() {
        let text = "cpu  100 1 50 9000 700 3 4 2 33 0\ncpu0 50 0 25 4500 0 0 0 0 0 0\ncpu1 1 1 1 1\nintr 5\n";
        let busy = busy(text).unwrap();
        assert_eq!((busy.ticks, busy.cpus), (160, 2));
        assert!(super::busy("").is_none());
        assert!(Busy::now().unwrap().since().is_ok());
    }

    #[test]
    fn growth_compares_the_ends() {
        assert_eq!(growth(&[1.0; 19]), None);
        let mut values = vec![1.0; 50];
        values.extend([2.0; 10]);
        values[3] = 9.0;
        values[57] = 70.0;
        assert!((growth(&values).unwrap() - 2.0).abs() < 1e-9);
    }
}
