//! What the whole-system tests stand on. Everything here panics with what it saw: a test has nobody else to tell.
//!
//! - [`cmd`]: commands that never hang
//! - [`leaks`]: what was there before a test, and what is there after it
//! - [`bundle`], [`rootfs`], [`image`]: what containers are made of
//! - [`runtime`]: our own command line with a root of its own
//! - [`oracle`]: the same with another runtime
//! - [`kubelet`]: volumes as Kubernetes gives them
//! - [`engine`]: containerd, Docker and Podman, each in directories of its own
//! - [`fake`]: a VMM without a machine
//! - [`noise`]: bytes to be counted
//! - [`harness`]: for test programs that are their own helpers
//! - [`console`]: the receiving end of a `--console-socket`, and pseudo-terminals

pub mod bundle;
pub mod cmd;
pub mod console;
pub mod engine;
pub mod fake;
pub mod harness;
pub mod image;
pub mod kubelet;
pub mod leaks;
pub mod noise;
pub mod oracle;
pub mod programs;
pub mod rootfs;
pub mod runtime;
pub mod wait;

/// Ends a test that cannot run here, saying why: `cargo xtask test` counts these, and fails for one that
/// tests/expected-skips.txt does not expect.
#[macro_export]
macro_rules! skip {
    ($($why:tt)*) => {{
        println!("SKIP: {}", format_args!($($why)*));
        return;
    }};
}
