//! What happened, for whoever tells the engine outside.

use std::path::PathBuf;
use std::time::SystemTime;

use tokio::sync::mpsc;

/// One event. They are sent in the order in which things happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// A container was made.
    Created {
        /// Which.
        container: String,
        /// Its bundle.
        bundle: PathBuf,
        /// The pid that stands for it.
        pid: i32,
    },
    /// Its first process was started.
    Started {
        /// Which.
        container: String,
        /// The pid that stands for it.
        pid: i32,
    },
    /// An exec was registered.
    ExecAdded {
        /// Where.
        container: String,
        /// Which.
        exec: String,
    },
    /// An exec was started.
    ExecStarted {
        /// Where.
        container: String,
        /// Which.
        exec: String,
        /// The pid that stands for it.
        pid: i32,
    },
    /// A process ended.
    Exited {
        /// Where.
        container: String,
        /// Empty: the container's first process.
        exec: String,
        /// The pid that stood for it.
        pid: i32,
        /// As a shell says it.
        status: i32,
        /// When.
        at: SystemTime,
    },
    /// The guest's kernel killed something of the container for want of memory.
    OutOfMemory {
        /// Which.
        container: String,
    },
    /// A container was frozen.
    Paused {
        /// Which.
        container: String,
    },
    /// It was thawed.
    Resumed {
        /// Which.
        container: String,
    },
    /// It was removed.
    Deleted {
        /// Which.
        container: String,
        /// The pid that stood for it.
        pid: i32,
        /// Its exit status.
        status: i32,
        /// When it ended.
        at: SystemTime,
    },
}

/// Where events go. Never blocks the engine.
pub type Events = mpsc::UnboundedSender<Event>;
