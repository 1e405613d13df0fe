//! The flags: runc's, and a few of our own.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

/// What `--version` says after the name, as runc lays it out: docker and podman read it.
pub const VERSION: &str = concat!("version ", env!("CARGO_PKG_VERSION"), "\nspec: 1.0.2");

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "kata-runtime", version = VERSION, disable_help_subcommand = true)]
#[command(about = "Runs OCI containers, each in a virtual machine of its own")]
pub struct Args {
    /// Directory for the state of containers.
    #[arg(long, default_value = "/run/kata-containers")]
    pub root: PathBuf,
    /// File to log errors to, beside stderr.
    #[arg(long)]
    pub log: Option<PathBuf>,
    /// Form of that file.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Log more, here and in the sandbox.
    #[arg(long)]
    pub debug: bool,
    /// Take linux.cgroupsPath for "slice:prefix:name". (Told by its form; the flag is taken for runc's sake.)
    #[arg(long)]
    pub systemd_cgroup: bool,
    /// Taken for runc's sake: there is no checkpointing.
    #[arg(long, hide = true)]
    pub criu: Option<String>,
    /// Taken for runc's sake: "false" and "auto" change nothing.
    #[arg(long, hide = true)]
    pub rootless: Option<String>,
    /// Configuration file, instead of the usual ones.
    #[arg(long = "kata-config", alias = "config", env = "KATA_CONF_FILE")]
    pub config: Option<PathBuf>,
    #[command(subcommand)]
    pub verb: Verb,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// key=value.
    Text,
    /// One JSON object a line.
    Json,
}

/// Form of an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns.
    Table,
    /// JSON.
    Json,
}

/// `create` and `run`.
#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// Directory with config.json.
    #[arg(short, long, default_value = ".")]
    pub bundle: PathBuf,
    /// Unix socket that gets the terminal's master.
    #[arg(long)]
    pub console_socket: Option<PathBuf>,
    /// File that gets the pid of the process that stands for the container.
    #[arg(long)]
    pub pid_file: Option<PathBuf>,
    /// Taken for runc's sake: the guest's root is its own.
    #[arg(long)]
    pub no_pivot: bool,
    /// Taken for runc's sake: keyrings are the guest's.
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Descriptors cannot be passed into a virtual machine: only 0 is possible.
    #[arg(long, default_value_t = 0)]
    pub preserve_fds: u32,
    /// `run` only: do not wait for its end.
    #[arg(short, long)]
    pub detach: bool,
    /// `run` only: keep the container when its process has ended.
    #[arg(long)]
    pub keep: bool,
    /// `run` only; taken for runc's sake.
    #[arg(long)]
    pub no_subreaper: bool,
    /// The container's id.
    pub id: String,
}

/// `exec`.
#[derive(Debug, clap::Args)]
pub struct ExecArgs {
    /// Unix socket that gets the terminal's master.
    #[arg(long)]
    pub console_socket: Option<PathBuf>,
    /// Working directory.
    #[arg(long)]
    pub cwd: Option<String>,
    /// Environment, KEY=value.
    #[arg(short, long)]
    pub env: Vec<String>,
    /// A terminal.
    #[arg(short, long)]
    pub tty: bool,
    /// uid or uid:gid.
    #[arg(short, long)]
    pub user: Option<String>,
    /// Supplementary groups.
    #[arg(short = 'g', long)]
    pub additional_gids: Vec<u32>,
    /// File with the process in JSON, instead of a command.
    #[arg(short, long)]
    pub process: Option<PathBuf>,
    /// Do not wait for its end.
    #[arg(short, long)]
    pub detach: bool,
    /// File that gets the pid.
    #[arg(long)]
    pub pid_file: Option<PathBuf>,
    /// Taken for runc's sake: labels are the host's.
    #[arg(long)]
    pub process_label: Option<String>,
    /// Taken for runc's sake: profiles are the host's.
    #[arg(long)]
    pub apparmor: Option<String>,
    /// Set no_new_privs.
    #[arg(long)]
    pub no_new_privs: bool,
    /// Capabilities to add.
    #[arg(short, long)]
    pub cap: Vec<String>,
    /// Descriptors cannot be passed into a virtual machine: only 0 is possible.
    #[arg(long, default_value_t = 0)]
    pub preserve_fds: u32,
    /// Also in a paused container (the process is then frozen too).
    #[arg(long)]
    pub ignore_paused: bool,
    /// The container's id.
    pub id: String,
    /// The command.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// `update`.
#[derive(Debug, clap::Args)]
pub struct UpdateArgs {
    /// File with linux.resources in JSON; "-" is stdin. Then no other limit is read.
    #[arg(short, long)]
    pub resources: Option<PathBuf>,
    /// Microseconds.
    #[arg(long)]
    pub cpu_period: Option<u64>,
    /// Microseconds in a period; -1: no limit.
    #[arg(long, allow_hyphen_values = true)]
    pub cpu_quota: Option<i64>,
    /// Relative weight.
    #[arg(long)]
    pub cpu_share: Option<u64>,
    /// CPUs of the host, such as 0-3,7.
    #[arg(long, default_value = "")]
    pub cpuset_cpus: String,
    /// Memory nodes of the host.
    #[arg(long, default_value = "")]
    pub cpuset_mems: String,
    /// Bytes, or with k, m, g; -1: no limit.
    #[arg(long, allow_hyphen_values = true)]
    pub memory: Option<String>,
    /// Soft limit.
    #[arg(long, allow_hyphen_values = true)]
    pub memory_reservation: Option<String>,
    /// Memory and swap together.
    #[arg(long, allow_hyphen_values = true)]
    pub memory_swap: Option<String>,
    /// Tasks; -1: no limit.
    #[arg(long, allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,
    /// 10 to 1000.
    #[arg(long)]
    pub blkio_weight: Option<u16>,
    /// The container's id.
    pub id: String,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Makes a container whose process waits for `start`.
    Create(CreateArgs),
    /// Starts a created container.
    Start {
        /// The container's id.
        id: String,
    },
    /// `create`, `start`, wait, and `delete`.
    Run(CreateArgs),
    /// Prints a container's state in JSON.
    State {
        /// The container's id.
        id: String,
    },
    /// Sends a signal.
    Kill {
        /// To every process of the container.
        #[arg(short, long)]
        all: bool,
        /// The container's id.
        id: String,
        /// Name or number.
        #[arg(default_value = "SIGTERM")]
        signal: String,
    },
    /// Removes a stopped container.
    Delete {
        /// Also a running one, and what a crash has left.
        #[arg(short, long)]
        force: bool,
        /// The container's id.
        id: String,
    },
    /// Runs another process in a container.
    Exec(ExecArgs),
    /// Lists a container's processes: the guest's in a table; the host's pids that stand for them in JSON.
    Ps {
        /// Form.
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        format: Format,
        /// The container's id.
        id: String,
        /// Options for the guest's listing.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Lists containers.
    List {
        /// Form.
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        format: Format,
        /// Ids only.
        #[arg(short, long)]
        quiet: bool,
    },
    /// Freezes a container.
    Pause {
        /// The container's id.
        id: String,
    },
    /// Thaws it.
    Resume {
        /// The container's id.
        id: String,
    },
    /// Changes limits.
    Update(UpdateArgs),
    /// Prints events and statistics in JSON.
    Events {
        /// Between two statistics: seconds, or with a unit (ms, s, m).
        #[arg(long, default_value = "5s")]
        interval: String,
        /// Statistics once.
        #[arg(long)]
        stats: bool,
        /// The container's id.
        id: String,
    },
    /// Writes a config.json to start from.
    Spec {
        /// Where.
        #[arg(short, long, default_value = ".")]
        bundle: PathBuf,
        /// Taken for runc's sake: the VMM has no root in any case; refused.
        #[arg(long)]
        rootless: bool,
    },
    /// Prints what this runtime can do, in the specification's JSON (features.md).
    Features,
    /// Prints the version.
    Version,
    /// Says what this host has and lacks, and what follows.
    #[command(alias = "kata-check")]
    Check {
        /// Say more.
        #[arg(short, long)]
        verbose: bool,
    },
    /// VMs that begin before they are asked for.
    #[command(subcommand)]
    Factory(Factory),
    /// Looks around in the guest of a sandbox of any engine on this host (needs debug_console_enabled in [agent.kata]).
    DebugConsole {
        /// The sandbox's id.
        sandbox: String,
        /// One command; none: those that are typed. "help" lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Prints the metrics of a sandbox of any engine on this host, in Prometheus' format.
    Metrics {
        /// The sandbox's id.
        sandbox: String,
    },
    /// The packet filter of a sandbox's guest.
    #[command(subcommand)]
    Iptables(Iptables),
    /// Prints the configuration in force.
    #[command(alias = "kata-env")]
    Env {
        /// As JSON instead of TOML.
        #[arg(long)]
        json: bool,
    },
}

/// `iptables`.
#[derive(Debug, Subcommand)]
pub enum Iptables {
    /// Prints it, as iptables-save(8) does.
    Get {
        /// The sandbox's id.
        #[arg(long)]
        sandbox_id: String,
        /// The one for IPv6.
        #[arg(long)]
        v6: bool,
    },
    /// Replaces it, as iptables-restore(8) does.
    Set {
        /// The sandbox's id.
        #[arg(long)]
        sandbox_id: String,
        /// The one for IPv6.
        #[arg(long)]
        v6: bool,
        /// The rules; none or "-": stdin.
        file: Option<PathBuf>,
    },
}

/// `factory`.
#[derive(Debug, Subcommand)]
pub enum Factory {
    /// Makes the template and fills the pool of the configuration in force, and waits until that is done.
    Init,
    /// Shows templates and pools, and where a sandbox would come from now.
    Status {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Ends the pool of the configuration in force and removes all its templates. Containers that run go on.
    Destroy,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_command_lines_are_understood() {
        let ok = |line: &str| Args::try_parse_from(line.split(' ')).unwrap_or_else(|e| panic!("{line}: {e}"));
        ok("kata-runtime --root /run/x --log /l --log-format json create --bundle /b --pid-file /p id");
        ok("kata-runtime --root /r --systemd-cgroup --log-format=json --log=/l delete --force id");
        ok("kata-runtime exec --process /p --console-socket /c --detach --pid-file /f id");
        let a = ok("kata-runtime exec -t -e A=b id ls -l /");
        assert!(matches!(a.verb, Verb::Exec(e) if e.command == ["ls", "-l", "/"]));
        ok("kata-runtime kill --all id 9");
        ok("kata-runtime ps --format json id");
        ok("kata-runtime update --memory 64m --cpu-quota -1 --cpuset-cpus 0-1 --cpuset-mems 0 id");
        ok("kata-runtime ps id -ef");
        let a = ok("kata-runtime debug-console pod ls -l /");
        assert!(matches!(a.verb, Verb::DebugConsole { command, .. } if command == ["ls", "-l", "/"]));
        ok("kata-runtime iptables set --v6 --sandbox-id x -");
    }
}
