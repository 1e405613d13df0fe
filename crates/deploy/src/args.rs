//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "kata-deploy", version, disable_help_subcommand = true)]
#[command(about = "Installs this beside a node's container engine, and takes it away again")]
pub struct Args {
    #[command(subcommand)]
    pub verb: Verb,
}

/// Where the node is.
#[derive(Debug, Clone, clap::Args)]
pub struct Place {
    /// The node's root directory: not "/" in a container that has it mounted elsewhere.
    #[arg(long, default_value = "/")]
    pub host_root: PathBuf,
    /// Where the installation is on the node.
    #[arg(long, default_value = "/opt/kata")]
    pub prefix: PathBuf,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Copies this installation to the node and adds the runtime "kata" to its engine's configuration.
    Install(Install),
    /// Undoes exactly what `install` did. Ends with code 3 while processes run from the installation.
    Remove(Remove),
    /// Says what is installed.
    Status(Status),
}

/// `install`.
#[derive(Debug, Clone, clap::Args)]
pub struct Install {
    #[command(flatten)]
    pub place: Place,
    /// The installation to copy: a prefix with bin/ and share/. Default: the one this program is in.
    #[arg(long)]
    pub source: Option<PathBuf>,
    /// The engine. "auto": the one that runs, else the one that is installed.
    #[arg(long, value_enum, default_value_t = EngineArg::Auto)]
    pub engine: EngineArg,
    /// containerd's configuration file on the node. Default: /etc/containerd/config.toml.
    #[arg(long)]
    pub engine_config: Option<PathBuf>,
    /// How CRI-O shall call us: "vm" is the shim, "oci" the command line behind conmon.
    #[arg(long, value_enum, default_value_t = CrioType::Vm)]
    pub crio_type: CrioType,
    /// Takes the place of a runtime "kata" that somebody else has configured; `remove` brings it back.
    #[arg(long)]
    pub replace_upstream: bool,
    /// Restarts the engine if its configuration has changed since it started. Containers keep running.
    #[arg(long)]
    pub restart_engine: bool,
}

/// `remove`.
#[derive(Debug, Clone, clap::Args)]
pub struct Remove {
    #[command(flatten)]
    pub place: Place,
    /// Restarts the engine if its configuration was changed. Containers keep running.
    #[arg(long)]
    pub restart_engine: bool,
}

/// `status`.
#[derive(Debug, Clone, clap::Args)]
pub struct Status {
    #[command(flatten)]
    pub place: Place,
    /// As JSON.
    #[arg(long)]
    pub json: bool,
}

/// `--engine`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EngineArg {
    Auto,
    Containerd,
    Crio,
}

/// `--crio-type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CrioType {
    Vm,
    Oci,
}
