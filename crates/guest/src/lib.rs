//! The agent: PID 1 of the guest.
//!
//! ```text
//! boot ─> transport ─> service ─> sandbox ─> container ─> engine (kata_jail)
//!             │           └─────> network
//!             └──────> attach <── pump <──────┘
//! ```
//! It has one thread that never blocks, and a few short-lived ones for calls that do (mounts, the engine). If it ends,
//! the kernel panics and the VMM exits, which the host reports.

mod attach;
mod boot;
mod console;
mod container;
mod copy;
mod devices;
mod engine;
mod failure;
mod fdio;
mod hotplug;
mod hugepages;
mod identity;
mod inodes;
mod json;
mod local;
mod logger;
mod metrics;
mod namespaces;
mod network;
mod observed;
mod oom;
mod params;
mod pci;
mod process;
mod procfs;
mod pump;
mod reaper;
mod recording;
mod run;
mod sandbox;
mod scope;
mod service;
mod storage;
mod transport;
mod watched;

pub use run::main;
