//! `kata factory-daemon`: the process of a pool's keeper, and of whoever makes a template.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use kata_factory::keeper::Keeper;

use crate::logging;

/// Where a keeper without a pool logs what went wrong.
const LOG: &str = "factory.log";

/// Runs until there is nothing to keep. `args`: without the mode's word.
pub fn main(args: Vec<OsString>) -> ExitCode {
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            tracing::error!("{text}");
            eprintln!("kata-factory: {text}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Vec<OsString>) -> Result<(), String> {
    let config: Option<PathBuf> = match args.as_slice() {
        [] => None,
        [flag, value] if flag == "--config" => Some(value.into()),
        _ => return Err("usage: kata factory-daemon [--config FILE]".into()),
    };
    // A session of its own, and nothing of whoever started it.
    let _ = nix::unistd::setsid();
    nix::unistd::chdir("/").map_err(|e| format!("/: {e}"))?;
    kata_sys::fds::close_from(3).map_err(|e| format!("inherited descriptors: {e}"))?;
    let keeper = Keeper::new(config.as_deref()).map_err(|e| e.to_string())?;
    let Some(keeper) = keeper else { return Ok(()) };
    let log = keeper.log().unwrap_or_else(|| Path::new(kata_types::HOST_RUN_DIR).join(LOG));
    logging::start(Some(&log), false);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("no event loop: {e}"))?;
    runtime.block_on(keeper.run()).map_err(|e| e.to_string())
}
