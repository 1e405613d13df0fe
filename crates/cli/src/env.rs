//! `env`: the configuration in force.

use std::path::{Path, PathBuf};

use kata_config::Loaded;
use kata_vmm::choose_accel;
use serde::Serialize;

use crate::error::CliError;

/// The configuration, as the daemon will load it.
///
/// # Errors
/// [`kata_config::ConfigError`].
pub fn load(file: Option<&Path>) -> Result<Loaded, CliError> {
    Ok(kata_factory::config(file)?)
}

#[derive(Serialize)]
struct Environment {
    runtime: RuntimeInfo,
    host: HostInfo,
    sandbox: SandboxInfo,
    configuration: kata_config::Config,
}

#[derive(Serialize)]
struct RuntimeInfo {
    version: &'static str,
    path: PathBuf,
    configuration_files: Vec<PathBuf>,
}

#[derive(Serialize)]
struct HostInfo {
    kernel: String,
    architecture: &'static str,
    accelerator: String,
    accelerator_reason: String,
}

#[derive(Serialize)]
struct SandboxInfo {
    /// Where the next one would come from.
    comes_from: String,
    /// How it has its template's memory.
    memory: &'static str,
}

/// `env`.
pub fn env(file: Option<&Path>, as_json: bool) -> Result<u8, CliError> {
    let loaded = load(file)?;
    let choice = choose_accel(kata_factory::forced_accel(&loaded.config));
    let environment = Environment {
        runtime: RuntimeInfo {
            version: env!("CARGO_PKG_VERSION"),
            path: std::env::current_exe().unwrap_or_default(),
            configuration_files: loaded.files,
        },
        host: HostInfo {
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            architecture: std::env::consts::ARCH,
            accelerator: format!("{:?}", choice.accel).to_lowercase(),
            accelerator_reason: choice.reason,
        },
        sandbox: SandboxInfo {
            // What is wrong is said by those who start one.
            comes_from: kata_factory::control::status(file).map_or_else(|e| e.to_string(), |status| status.next),
            memory: "its own (a template's is copied): the file daemon has to share it",
        },
        configuration: loaded.config,
    };
    let text = if as_json {
        serde_json::to_string_pretty(&environment).map_err(|e| CliError::Daemon(e.to_string()))?
    } else {
        toml::to_string_pretty(&environment).map_err(|e| CliError::Daemon(e.to_string()))?
    };
    println!("{}", text.trim_end());
    Ok(0)
}
