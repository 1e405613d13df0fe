//! Huge pages that are set aside for volumes (Documentation/admin-guide/mm/hugetlbpage.rst): the guest boots with none.

use std::fs;
use std::path::{Path, PathBuf};

use thiserror::Error;

const POOLS: &str = "/sys/kernel/mm/hugepages";
const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";
const COMPACT: &str = "/proc/sys/vm/compact_memory";

/// Why pages were not set aside.
#[derive(Debug, Error)]
pub enum HugePageError {
    /// The request.
    #[error("the options {0:?} do not say a page size and a size of whole pages")]
    Options(Vec<String>),
    /// This kernel has no pages of that size, or its pool cannot be changed.
    #[error("cannot change {path}")]
    Pool {
        /// The pool's file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not enough memory in one piece.
    #[error("{wanted} pages of {page_kib} KiB are needed, and the guest's memory has {got}; give the pod more memory")]
    TooFew {
        /// How many were asked for.
        wanted: u64,
        /// How many there are.
        got: u64,
        /// The size of one.
        page_kib: u64,
    },
}

/// Pages that were set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pages {
    page_kib: u64,
    count: u64,
}

fn pool(page_kib: u64, dir: &Path) -> PathBuf {
    dir.join(format!("hugepages-{page_kib}kB/nr_hugepages"))
}

/// Sets pages aside, as many as the mount options `pagesize=` and `size=` (in bytes) say. Blocks.
///
/// # Errors
/// [`HugePageError`]; nothing is set aside then.
pub fn set_aside(options: &[String]) -> Result<Pages, HugePageError> {
    set_aside_in(options, Path::new(POOLS))
}

fn set_aside_in(options: &[String], dir: &Path) -> Result<Pages, HugePageError> {
    let number = |name: &str| options.iter().find_map(|o| o.strip_prefix(name)?.parse::<u64>().ok());
    let (page, size) = (number("pagesize=").unwrap_or(0), number("size=").unwrap_or(0));
    let page_kib = page >> 10;
    if page_kib == 0 || size == 0 {
        return Err(HugePageError::Options(options.to_owned()));
    }
    let wanted = Pages { page_kib, count: size.div_ceil(page) };
    let path = pool(page_kib, dir);
    let fail = |source| HugePageError::Pool { path: path.clone(), source };
    let count = || -> std::io::Result<u64> {
        let text = fs::read_to_string(&path)?;
        text.trim().parse().map_err(|_| std::io::ErrorKind::InvalidData.into())
    };
    let before = count().map_err(fail)?;
    let target = before.saturating_add(wanted.count);
    for attempt in 0..2 {
        if attempt == 1 {
            // What caches hold, and what lies scattered, is made room of; if that fails there is just no more room.
            let _ = fs::write(DROP_CACHES, "3");
            let _ = fs::write(COMPACT, "1");
        }
        fs::write(&path, target.to_string()).map_err(fail)?;
        if count().map_err(fail)? >= target {
            return Ok(wanted);
        }
    }
    let got = count().map_err(fail)?.saturating_sub(before);
    fs::write(&path, before.to_string()).map_err(fail)?;
    Err(HugePageError::TooFew { wanted: wanted.count, got, page_kib })
}

impl Pages {
    /// The reverse.
    pub fn give_back(self) {
        self.give_back_in(Path::new(POOLS));
    }

    fn give_back_in(self, dir: &Path) {
        let path = pool(self.page_kib, dir);
        let now = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0);
        if let Err(e) = fs::write(&path, now.saturating_sub(self.count).to_string()) {
            log::warn!("{} huge pages stay set aside: {e}", self.count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_added_to_the_pool_and_taken_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = pool(2048, dir.path());
        fs::create_dir(path.parent().unwrap()).unwrap();
        fs::write(&path, "3\n").unwrap();
        let options = |size: &str| vec!["pagesize=2097152".to_owned(), format!("size={size}")];
        let pages = set_aside_in(&options("4194305"), dir.path()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "6");
        pages.give_back_in(dir.path());
        assert_eq!(fs::read_to_string(&path).unwrap(), "3");
        assert!(matches!(set_aside_in(&options("0"), dir.path()), Err(HugePageError::Options(_))));
        let other = ["pagesize=1073741824".to_owned(), "size=1073741824".to_owned()];
        assert!(matches!(set_aside_in(&other, dir.path()), Err(HugePageError::Pool { .. })));
    }
}
