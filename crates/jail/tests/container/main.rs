//! Containers for real: a root filesystem of busybox, made in a mount namespace of the test's own. The test program is its
//! own helper, so it has its own main. Wants root, busybox-static and cgroup2 somewhere; says so and stops where they
//! are missing.
//!
//! `cargo test -p kata-jail --test container [name...]` runs those whose names contain one of the words.

mod support;

use std::process::ExitCode;

use support::{Outcome, Test};

mod cgroups;
mod files;
mod processes;
mod terminals;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|a| a == "jail-init") {
        kata_jail::helper_main();
    }
    if let [mode, rootfs, cgroup] = &args[..]
        && mode == "short-lived-agent"
    {
        processes::short_lived_agent(rootfs, cgroup);
    }
    if let Err(why) = support::prepare() {
        println!("SKIP: {why}");
        return ExitCode::SUCCESS;
    }
    let words: Vec<&String> = args.iter().filter(|a| !a.starts_with('-')).collect();
    let all: Vec<Test> = [processes::TESTS, files::TESTS, terminals::TESTS, cgroups::TESTS].concat();
    let mut failed = 0;
    for (name, test) in all {
        if !words.is_empty() && !words.iter().any(|w| name.contains(w.as_str())) {
            continue;
        }
        let begin = std::time::Instant::now();
        match support::run_test(name, test) {
            Outcome::Passed => println!("test {name} ... ok ({} ms)", begin.elapsed().as_millis()),
            Outcome::Skipped(why) => println!("SKIP: {why}\ntest {name} ... ok"),
            Outcome::Failed(why) => {
                failed += 1;
                println!("test {name} ... FAILED: {why}");
            }
        }
    }
    let clean = support::finish();
    if clean && failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
