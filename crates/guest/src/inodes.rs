//! The host's file daemon holds a descriptor for every inode that this kernel remembers, and on some hosts it may not
//! hold many (20,000 where root cannot raise the limit; one `find` over a tree of 25,000 files is too much). The kernel
//! forgets inodes only for want of memory, so this has it forget them in time.

use std::fs;
use std::time::Duration;

/// "nr_inodes nr_free_inodes" (proc_sys_fs(5)): of all file systems, most of them virtio-fs's when it matters.
const COUNT: &str = "/proc/sys/fs/inode-nr";
/// Writing 2 frees what is cached of names and inodes and not in use (proc_sys_vm(5)).
const DROP: &str = "/proc/sys/vm/drop_caches";
/// Far from the limit, unless the host says otherwise, and near it. Looking up a name takes 10 us at the very least.
const RELAXED: Duration = Duration::from_millis(200);
const ALERT: Duration = Duration::from_millis(10);
/// With a limit above this, memory runs out first, and the kernel forgets by itself.
const ENOUGH: u64 = 200_000;

/// The option of a virtio-fs storage that tells the limit: `inode_limit=N`.
const OPTION: &str = "inode_limit=";

/// The option that tells how many milliseconds may pass between two looks far from the limit: each costs an idle guest
/// time, and where lookups are slow there may be more between them. `inode_pause=N`.
const PAUSE_OPTION: &str = "inode_pause=";

/// A limit to mind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Limit {
    inodes: u64,
    pause: Duration,
}

/// The limit that a storage's driver options tell, if it is one to mind.
pub fn limit(options: &[String]) -> Option<Limit> {
    let number = |name: &str| options.iter().find_map(|option| option.strip_prefix(name)?.parse::<u64>().ok());
    let inodes = number(OPTION).filter(|limit| *limit < ENOUGH)?;
    Some(Limit { inodes, pause: number(PAUSE_OPTION).map_or(RELAXED, Duration::from_millis) })
}

/// Keeps the number of inodes below `limit`. Runs until it is dropped.
pub async fn keep_below(limit: Limit) {
    let mut pace = Pace::new(limit);
    loop {
        let Some(count) = count() else {
            log::warn!("{COUNT} cannot be read: large trees may fail with \"Too many open files in system\"");
            return;
        };
        if pace.must_drop(count) {
            // It may take a while; containers go on meanwhile.
            let dropped = tokio::task::spawn_blocking(|| fs::write(DROP, "2")).await;
            if let Ok(Err(e)) = dropped {
                log::warn!("{DROP} cannot be written: {e}");
            }
            pace.dropped(self::count().unwrap_or(count));
        }
        tokio::time::sleep(pace.pause(count)).await;
    }
}

fn count() -> Option<u64> {
    parse(&fs::read_to_string(COUNT).ok()?)
}

/// Those in use: all but the free ones.
fn parse(text: &str) -> Option<u64> {
    let mut numbers = text.split_ascii_whitespace().map(str::parse::<u64>);
    let (all, free) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some(all.saturating_sub(free))
}

/// When to look, and when to act.
struct Pace {
    limit: u64,
    drop_at: u64,
    relaxed: Duration,
}

impl Pace {
    fn new(limit: Limit) -> Self {
        Pace { limit: limit.inodes, drop_at: limit.inodes / 2, relaxed: limit.pause }
    }

    fn must_drop(&self, count: u64) -> bool {
        count >= self.drop_at
    }

    /// What is left is in use, or another file system's: dropping again would gain nothing until there is more.
    fn dropped(&mut self, left: u64) {
        self.drop_at = (self.limit / 2).max(left + self.limit / 8);
    }

    fn pause(&self, count: u64) -> Duration {
        if count >= self.limit / 4 { ALERT } else { self.relaxed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_minded_if_it_is_low() {
        let options = |text: &str| limit(&[text.to_owned()]);
        assert_eq!(options("inode_limit=19390"), Some(Limit { inodes: 19_390, pause: RELAXED }));
        let both = ["inode_limit=9".to_owned(), "inode_pause=1000".to_owned()];
        assert_eq!(limit(&both), Some(Limit { inodes: 9, pause: Duration::from_secs(1) }));
        assert_eq!(options("inode_limit=1000000"), None);
        assert_eq!((options("inode_limit=many"), options("other=1"), limit(&[])), (None, None, None));
    }

    #[test]
    fn inodes_are_dropped_in_time_and_not_again_and_again() {
        let mut pace = Pace::new(Limit { inodes: 16_000, pause: RELAXED });
        assert!(!pace.must_drop(7_999) && pace.must_drop(8_000));
        pace.dropped(1_000);
        assert!(!pace.must_drop(7_999) && pace.must_drop(8_000));
        // 9,000 are in use.
        pace.dropped(9_000);
        assert!(!pace.must_drop(10_999) && pace.must_drop(11_000));
        assert!(pace.pause(3_999) > pace.pause(4_000));
    }

    #[test]
    fn free_inodes_do_not_count() {
        assert_eq!(parse("1200\t200\n"), Some(1000));
        assert_eq!(parse("x"), None);
        assert!(count().is_some());
    }
}
