//! CRI-O, which Debian does not have: its calls, made as it makes them (its internal/oci/runtime_oci.go and runtime_vm.go,
//! crio.conf(5)), with the real conmon. A pod is a sandbox and containers that name it in their annotations.

mod conmon;
mod pod;
mod shim;

use std::time::Duration;

/// For what happens at once in a VM that runs, on a slow machine.
pub const SOON: Duration = Duration::from_secs(20);
/// Until a VM has started.
pub const STARTS: Duration = Duration::from_secs(60);
/// What CRI-O gives its monitors and runtimes of an environment (`monitor_env`'s default).
pub const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
