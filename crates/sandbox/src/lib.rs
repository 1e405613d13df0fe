//! THE engine: one sandbox is one machine and the containers in it. Both doors (containerd's Task API and the OCI
//! command line) lead here; there is no second lifecycle.

mod cleanup;
mod convert;
mod cpuset;
mod error;
mod events;
mod found;
mod guest_log;
mod hooks;
mod hostcgroup;
mod key;
mod launch;
mod machine;
// Public for its benchmark.
mod network;
mod origin;
mod place;
#[doc(hidden)]
pub mod plan;
mod pod_files;
mod process;
mod retire;
mod role;
mod sandbox;
mod shared;
mod sizing;
mod state;
mod stdio;
mod sweep;
mod systemd;
mod template;

pub use cleanup::{CleanupError, Remains, cleanup, cleanup_container, has_died};
pub use error::SandboxError;
pub use events::{Event, Events};
pub use found::{Found, find};
pub use hooks::{HookError, run as run_hooks};
pub use hostcgroup::{CgroupError, HostCgroup};
pub use key::{Owner, attach_socket, key, monitor_socket, run_dir, task_socket};
pub use launch::{Launch, LaunchError, Ready, launch};
pub use machine::{
    BeginSpec, BootError, DiskError, ExerciseError, Identity, Machine, begin as begin_machine, vm_shape,
};
pub use network::{Joined as JoinedNetwork, NetworkError, NetworkRecord};
pub use origin::Origin;
pub use place::{Place, PlaceError, place};
pub use plan::PlanError;
pub use pod_files::{PodFiles, PodFilesError, PodNames};
pub use process::{Exit, Process};
pub use retire::retire;
pub use role::{Role, RoleError, joined_pids, role};
pub use sandbox::{CreateRequest, MachineProcesses, Options, Sandbox};
pub use shared::SharedError;
pub use state::{ContainerRecord, ProcessRecord, StateError, StateFile};
pub use stdio::{Endpoint, Opened, StdioError, StdioSpec};
pub use sweep::sweep;
pub use template::{BuildError, Template, TemplateError, Templates, build as build_template};
