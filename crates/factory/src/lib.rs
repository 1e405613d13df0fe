//! What makes sandboxes before they are asked for, and gives them out.
//!
//! A **template** is a guest that was saved when it was ready for work; a new machine begins where it was. The **pool** is
//! whole sandboxes (daemon, file daemon, VMM) that wait for their name. Neither is ever needed: what the pool has not
//! comes from a template, what no template is there for boots its kernel, and the result is the same.
//!
//! ```text
//! door ── launch ──> pool has one?  rename its directory, hand over the name
//!                └─> else           a daemon of its own ── template there?  restore
//!                                                       └─ else             boot
//! keeper (one a configuration, started by a door that found the pool or the template missing): makes the template,
//!        fills the pool, gives way when memory is short, and ends when the configuration changes
//! ```
//!
//! A directory `/run/kata/pool/<key>/<member>` is a sandbox that waits. Taking one is one rename(2), to the run directory
//! of the sandbox that it becomes: of two takers one succeeds, and the keeper has no part in it. Waiting sandboxes hold a
//! pipe of their keeper's and end with it; once named they have nothing to do with it any more.

pub mod control;
mod driver;
pub mod handover;
pub mod keeper;
mod launch;
mod line;
mod pool;

pub use driver::{config, driver, forced_accel};
pub use launch::launch;
pub use line::IncomingLine;
pub use pool::{Pool, PoolError, READY_WORD, TAKEN_WORD, announce, pool_key};
