//! Prometheus' text format (its "exposition formats", version 0.0.4), as the daemon, the agent and the monitor speak it:
//! written by [`Page`], and read back, bounded and checked, by [`Collection`]. No IO.
//!
//! `prometheus-client` was weighed: it writes OpenMetrics, which gives every counter a name that ends in `_total`, where
//! upstream's names do not; and the harder half, pages of guests that nobody trusts, it does not read.

mod collection;
mod histogram;
mod page;
mod process;

pub use collection::{Collection, Limits, PageError};
pub use histogram::{Durations, Histogram};
pub use page::{CONTENT_TYPE, Family, Kind, Page};
pub use process::{Around, Items, Process, netdev, proc_stat};
