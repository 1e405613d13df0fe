//! Waiting for something that happens by itself.

use std::time::{Duration, Instant};

/// How often it is looked at.
const STEP: Duration = Duration::from_millis(20);

/// Asks until there is an answer.
///
/// # Panics
/// When there is none in time, naming `what` was waited for.
pub fn until<T>(what: &str, deadline: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < deadline, "no {what} within {} s", deadline.as_secs_f32());
        std::thread::sleep(STEP);
    }
}
