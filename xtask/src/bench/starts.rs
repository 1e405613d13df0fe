//! Starts and execs: every engine with every contender, in turns.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;

use super::boot::Bare;
use super::contender::Contender;
use super::engine::docker::Network;
use super::engine::{Engine, Kept};
use super::report::Table;
use crate::run;

/// Execs in a container before those that count: what is asked for often is warm.
const WARM: usize = 2;

/// The name of the floor among the contenders.
pub const BARE: &str = "bare QEMU";

/// Fills the table; `skipped` gets those that do not work here, with the reason.
///
/// # Errors
/// Of the yardstick's, or ours: those must work.
pub fn measure(
    engines: &[&dyn Engine],
    contenders: &[Contender],
    mut bare: Option<&mut Bare>,
    rounds: usize,
    skipped: &mut Vec<String>,
) -> Result<Table> {
    let mut table = Table::default();
    let mut out = BTreeSet::new();
    run::step("measuring starts", || {
        for round in 0..=rounds {
            for (e, engine) in engines.iter().enumerate() {
                for turn in 0..contenders.len() {
                    // Another one begins each round: nobody always follows the same one.
                    let c = (turn + round) % contenders.len();
                    if out.contains(&(e, c)) {
                        continue;
                    }
                    let contender = &contenders[c];
                    match life(*engine, contender, &format!("s{round}-{c}")) {
                        Ok(steps) if round > 0 => {
                            steps
                                .iter()
                                .for_each(|(verb, took)| table.add(engine.name(), verb, &contender.name(), *took));
                        }
                        Ok(_) => {}
                        Err(err) if round == 0 && may_fail(contender) => {
                            skipped.push(format!("{} with {}: {}", contender.name(), engine.name(), err.root_cause()));
                            out.insert((e, c));
                        }
                        Err(err) => return Err(err),
                    }
                }
            }
            let Some(bare) = &mut bare else { continue };
            let (boot, restore) = (bare.boot()?, bare.restore()?);
            if round > 0 {
                table.add("floor", "boot", BARE, boot);
                table.add("floor", "restore", BARE, restore);
            }
        }
        Ok(())
    })?;
    run::step("measuring execs", || {
        for (e, engine) in engines.iter().enumerate() {
            let fit = contenders.iter().enumerate().filter(|(c, _)| !out.contains(&(e, *c)));
            let kept: Result<Vec<Kept>> =
                fit.map(|(c, contender)| Kept::start(*engine, contender, &format!("e{c}"))).collect();
            let kept = kept?;
            for nth in 0..WARM + rounds {
                for one in &kept {
                    let took = one.exec(nth)?;
                    if nth >= WARM {
                        table.add(engine.name(), "exec", &one.contender().name(), took);
                    }
                }
            }
            kept.into_iter().try_for_each(|one| one.remove().map(drop))?;
        }
        Ok(())
    })?;
    Ok(table)
}

/// What an interface adds to a whole run: docker's default network beside none, by the medians.
pub fn of_networks(table: &Table) -> String {
    let (with, without) = (Network::Bridge.engine(), Network::None.engine());
    let cost = |contender: &str| {
        let median = |engine| table.of(engine, "run", contender)?.median();
        Some(format!("{contender} {:.0} ms", median(with)? - median(without)?))
    };
    let costs: Vec<String> = table.contenders().iter().filter_map(|contender| cost(contender)).collect();
    format!("{without} run, what a network adds: {}", costs.join(", "))
}

/// One of those that are here for comparison only, and may want of this machine what it has not.
fn may_fail(contender: &Contender) -> bool {
    matches!(contender, Contender::Other(other, _) if other.name != "runc")
}

/// A container that runs `true`, and one that is made, started and removed step by step.
fn life(engine: &dyn Engine, contender: &Contender, id: &str) -> Result<Vec<(&'static str, Duration)>> {
    let ticket = contender.ready(1)?;
    let mut steps = vec![("run", engine.run(contender, id)?)];
    contender.came_true(ticket)?;
    let kept = Kept::start(engine, contender, &format!("{id}k"))?;
    steps.extend(kept.steps.iter().copied());
    steps.push(("delete", kept.remove()?));
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_costs_what_it_adds() {
        let mut table = Table::default();
        for (contender, without, with) in [("runc", 200, 290), ("kata pool", 250, 400)] {
            table.add("docker", "run", contender, Duration::from_millis(without));
            table.add("docker+net", "run", contender, Duration::from_millis(with));
        }
        table.add("ctr", "run", "crun", Duration::from_millis(1));
        assert_eq!(of_networks(&table), "docker run, what a network adds: runc 90 ms, kata pool 150 ms");
    }
}
