//! What a command fails with: one line, naming what and what to do. Engines read some of these words (runc's).

use std::path::PathBuf;

use thiserror::Error;

/// Why a command failed.
#[derive(Debug, Error)]
pub enum CliError {
    /// An id that is no id.
    #[error(transparent)]
    Id(#[from] kata_types::IdError),
    /// No such container.
    #[error("container \"{id}\" does not exist (under {root})", root = root.display())]
    NotFound {
        /// The id.
        id: String,
        /// `--root`.
        root: PathBuf,
    },
    /// The id is taken.
    #[error("container \"{id}\" already exists (under {root}); delete it first, or choose another id", root = root.display())]
    Exists {
        /// The id.
        id: String,
        /// `--root`.
        root: PathBuf,
    },
    /// Its process has ended. The words are runc's: containerd looks for them.
    #[error("container not running")]
    NotRunning,
    /// Not in this state.
    #[error("cannot {operation} container {id} that is {is}")]
    State {
        /// What was asked.
        operation: &'static str,
        /// The id.
        id: String,
        /// Its state.
        is: String,
    },
    /// The spec or process file.
    #[error(transparent)]
    Load(#[from] kata_oci::LoadError),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] kata_config::ConfigError),
    /// It belongs into a sandbox that is not there.
    #[error("container {id} belongs into the sandbox {sandbox}, which does not run; start that first")]
    NoSandbox {
        /// The container.
        id: String,
        /// The sandbox.
        sandbox: String,
    },
    /// Where it belongs cannot be told.
    #[error(transparent)]
    Place(#[from] kata_sandbox::PlaceError),
    /// The daemon did not start.
    #[error(transparent)]
    Launch(#[from] kata_sandbox::LaunchError),
    /// The daemon refused; its words.
    #[error("{0}")]
    Daemon(String),
    /// The daemon has not answered, and never will.
    #[error("{0}")]
    Lost(String),
    /// What a crash has left could not be removed.
    #[error(transparent)]
    Cleanup(#[from] kata_sandbox::CleanupError),
    /// The state file.
    #[error(transparent)]
    StateFile(#[from] kata_sandbox::StateError),
    /// The factory.
    #[error(transparent)]
    Factory(#[from] kata_factory::control::ControlError),
    /// Wrong use.
    #[error("{0}")]
    Usage(String),
    /// A file or system call.
    #[error("cannot {what} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// For `map_err`.
pub fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> CliError {
    let path = path.into();
    move |source| CliError::Io { what, path, source }
}
