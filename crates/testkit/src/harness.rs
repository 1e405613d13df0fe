//! A test harness of a few lines for tests whose executable must also be the helper that the code under test starts.
//! Understands what `cargo test` and `cargo nextest` say to a test executable. One test after the other on the main
//! thread (children die with the thread that started them), each under a deadline.

use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// A name and what it does; it fails by panicking.
pub type Test = (&'static str, fn());

/// Runs what the arguments select. `at_most`: for each test, after which the process gives up.
pub fn run(args: &[OsString], tests: &[Test], at_most: Duration) -> ExitCode {
    let args: Vec<&str> = args.iter().filter_map(|a| a.to_str()).collect();
    if args.contains(&"--list") {
        if !args.contains(&"--ignored") {
            for (name, _) in tests {
                println!("{name}: test");
            }
        }
        return ExitCode::SUCCESS;
    }
    let exact = args.contains(&"--exact");
    let mut filters = Vec::new();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        match *arg {
            "--test-threads" | "--format" | "--color" | "--logfile" | "--skip" | "-Z" => {
                rest.next();
            }
            flag if flag.starts_with('-') => {}
            filter => filters.push(filter),
        }
    }
    let selected =
        |name: &str| filters.is_empty() || filters.iter().any(|f| if exact { name == *f } else { name.contains(f) });
    let mut failed = Vec::new();
    for (name, test) in tests.iter().filter(|(name, _)| selected(name)) {
        let begin = Instant::now();
        let (done, watch) = mpsc::channel::<()>();
        let watched = *name;
        let watchdog = std::thread::spawn(move || {
            if watch.recv_timeout(at_most) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("test {watched} did not end within {at_most:?}");
                std::process::exit(1);
            }
        });
        let outcome = catch_unwind(AssertUnwindSafe(test));
        drop(done);
        drop(watchdog.join());
        let took = begin.elapsed().as_millis();
        match outcome {
            Ok(()) => println!("test {name} ... ok ({took} ms)"),
            Err(_) => {
                println!("test {name} ... FAILED ({took} ms)");
                failed.push(*name);
            }
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("failed: {}", failed.join(", "));
    ExitCode::FAILURE
}

/// Runs a future on a current-thread runtime, as the daemon does.
///
/// # Panics
/// Without a runtime.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap_or_else(|e| panic!("no runtime: {e}")).block_on(future)
}
