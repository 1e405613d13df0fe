//! What can go wrong, and what to do then.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why nothing, or not all, was done.
#[derive(Debug, Error)]
pub enum DeployError {
    /// A file or directory.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A place that may not be written.
    #[error("{} cannot be written ({source}): run this as root, and give a container that place read-write", path.display())]
    NotWritable {
        /// The place.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// An argument that must be absolute.
    #[error("--{name} must be an absolute path, and {} is not", path.display())]
    NotAbsolute {
        /// The flag.
        name: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// A prefix that would put our directories among other things.
    #[error("{} holds {found:?}, which no installation of ours has there: choose another --prefix", path.display())]
    ForeignPrefix {
        /// The prefix.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// What is to be copied is no installation.
    #[error("{} is no installation to copy: it has no {missing}; name one with --source", source_dir.display())]
    NotAnInstallation {
        /// The source.
        source_dir: PathBuf,
        /// What it lacks.
        missing: &'static str,
    },
    /// Symbolic links in a circle.
    #[error("{} leads through too many symbolic links", path.display())]
    Links {
        /// Where it began.
        path: PathBuf,
    },
    /// Somebody else is at it.
    #[error("another kata-deploy works on {}: try again when it has ended", path.display())]
    Busy {
        /// The prefix.
        path: PathBuf,
    },
    /// No engine.
    #[error("no containerd and no CRI-O was found on the node below {}: name one with --engine", root.display())]
    NoEngine {
        /// The node's root.
        root: PathBuf,
    },
    /// Two engines.
    #[error("both containerd and CRI-O are {how} on the node: say with --engine which one kubelet uses")]
    TwoEngines {
        /// "running" or "installed".
        how: &'static str,
    },
    /// A configuration that is no TOML.
    #[error("{} is not TOML: {source}", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml_edit::TomlError>,
    },
    /// A containerd configuration of a version that we do not know how to edit.
    #[error(
        "{} is of configuration version {version}, and 2 and 3 are what can be edited: migrate it with `containerd config migrate`",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: i64,
    },
    /// The plugin that would use the runtime is off.
    #[error("{} turns off the plugin {plugin:?}, without which Kubernetes cannot use this containerd: take it out of disabled_plugins", path.display())]
    CriDisabled {
        /// The file.
        path: PathBuf,
        /// As it is written there.
        plugin: String,
    },
    /// Something that is no table where a table must be.
    #[error("in {}, {key} is no table", path.display())]
    NoTable {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A runtime of our name that is not ours.
    #[error(
        "{} has a runtime \"kata\" already, which was not put there by this: remove it (upstream's kata-deploy has its own clean-up), \
         or take its place with --replace-upstream",
        path.display()
    )]
    Taken {
        /// The file.
        path: PathBuf,
    },
    /// A record that cannot be read.
    #[error("{} is damaged or of a newer kata-deploy ({why}): use the one that wrote it", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The restart of the engine.
    #[error("the engine was not restarted: `{command}` {how}; everything else is done, restart it by hand")]
    Restart {
        /// The command.
        command: String,
        /// What came of it.
        how: String,
    },
}

/// For `map_err`: what was tried with which path.
pub fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DeployError {
    let path = path.to_owned();
    move |source| match source.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem if what != "read" => {
            DeployError::NotWritable { path, source }
        }
        _ => DeployError::Io { what, path, source },
    }
}
