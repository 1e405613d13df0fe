//! What the guest sees of the host's files: one shared directory a sandbox, and the daemon that serves it.
//!
//! The share is a directory that is bind-mounted on itself with shared propagation, in the sandbox daemon's mount
//! namespace; each container's root file system and binds are mounted below it as they come. The file daemon's own
//! mount namespace is a slave of that, so it sees every later mount, and holds nothing of the host but the share.

mod daemon;
mod mountinfo;
mod options;
mod share;
mod view;
pub mod virtiofsd;

pub use daemon::{FsDaemon, FsDaemonError};
pub use mountinfo::root_of_mount;
pub use share::{RootfsMount, Share, ShareError, remove_run_dir};
pub use view::View;
