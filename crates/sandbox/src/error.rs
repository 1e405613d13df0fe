//! What can go wrong with a request to the engine.

use kata_agent_client::CallError;
use thiserror::Error;

use crate::hostcgroup::CgroupError;
use crate::plan::PlanError;
use crate::state::StateError;
use crate::stdio::StdioError;

/// Why a request failed.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// No such container or exec.
    #[error("{0} does not exist")]
    NotFound(String),
    /// The id is in use.
    #[error("{0} already exists")]
    Exists(String),
    /// Not in this state.
    #[error("cannot {operation} {what}: it is {is}")]
    State {
        /// What was asked.
        operation: &'static str,
        /// The container or exec.
        what: String,
        /// Its state.
        is: String,
    },
    /// Something that a container which only stands for its pod cannot do.
    #[error("cannot {operation} container {container}: it stands for its pod and has no process in the guest")]
    Stands {
        /// What was asked.
        operation: &'static str,
        /// The container.
        container: String,
    },
    /// A pod's container that was brought to another's sandbox.
    #[error("container {container} belongs to the sandbox {belongs}, and this is {this}")]
    Elsewhere {
        /// The container.
        container: String,
        /// Its sandbox.
        belongs: String,
        /// This one.
        this: String,
    },
    /// Annotations.
    #[error(transparent)]
    Role(#[from] crate::role::RoleError),
    /// Namespaces.
    #[error(transparent)]
    Shared(#[from] crate::shared::SharedError),
    /// The process to be signalled has ended.
    #[error("process already finished")]
    Finished,
    /// An id that is no id.
    #[error(transparent)]
    Id(#[from] kata_types::IdError),
    /// The bundle's spec.
    #[error(transparent)]
    Spec(#[from] kata_oci::LoadError),
    /// What the spec asks for.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// No machine. The text names the stage.
    #[error("{0}")]
    Boot(String),
    /// The debug console.
    #[error(
        "the debug console is off; set debug_console_enabled = true in [agent.kata], for sandboxes that start afterwards"
    )]
    NoConsole,
    /// The machine has ended.
    #[error("the sandbox is gone: {0}")]
    Dead(String),
    /// Files for the guest.
    #[error("{}", crate::machine::chain(.0))]
    Share(#[from] kata_storage::ShareError),
    /// A block device for the guest.
    #[error("{}", crate::machine::chain(.0))]
    Disk(#[from] crate::machine::DiskError),
    /// The mount namespace that the daemon came from.
    #[error("cannot enter the mount namespace in which the sandbox was made: {0}")]
    View(#[source] std::io::Error),
    /// The agent.
    #[error(transparent)]
    Agent(#[from] CallError),
    /// stdio.
    #[error("{}", crate::machine::chain(.0))]
    Stdio(#[from] StdioError),
    /// A hook.
    #[error(transparent)]
    Hook(#[from] crate::hooks::HookError),
    /// The network.
    #[error(transparent)]
    Network(#[from] crate::network::NetworkError),
    /// The state file.
    #[error(transparent)]
    StateFile(#[from] StateError),
    /// The host's cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The VM's size.
    #[error("cannot resize the virtual machine: {0}")]
    Resize(String),
}
