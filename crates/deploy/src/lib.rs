//! The installer for nodes of a cluster, `kata-deploy`: copies an installation to a node, tells its container engine, and
//! undoes both. What runs is never changed: each version is a directory of its own, and stays as long as a process runs
//! from it.
//!
//! - [`tree`], [`versions`]: the files below the prefix
//! - [`containerd`], [`crio`], [`toml_table`], [`change`]: the engine's configuration
//! - [`record`]: what was done, written down before it is done
//! - [`install`], [`remove`], [`status`]: the verbs

pub mod args;
pub mod change;
pub mod containerd;
pub mod crio;
pub mod engine;
pub mod error;
mod files;
pub mod host;
pub mod install;
pub mod record;
pub mod remove;
pub mod status;
pub mod toml_table;
pub mod tree;
pub mod versions;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use args::{Args, Verb};
use engine::Engine;
use error::DeployError;
use host::Host;
use remove::Removed;
use versions::Users;

/// `remove` while processes run from the installation: to be tried again.
const IN_USE: u8 = 3;

/// Runs one command. `argv`: without the program's name.
pub fn main(argv: Vec<OsString>) -> ExitCode {
    let argv = std::iter::once(OsString::from("kata-deploy")).chain(argv);
    let args = match Args::try_parse_from(argv) {
        Ok(args) => args,
        Err(err) => {
            drop(err.print());
            return if err.use_stderr() { ExitCode::from(1) } else { ExitCode::SUCCESS };
        }
    };
    let done = match args.verb {
        Verb::Install(args) => install_verb(&args),
        Verb::Remove(args) => remove_verb(&args),
        Verb::Status(args) => status_verb(&args),
    };
    done.unwrap_or_else(|err| {
        eprintln!("kata-deploy: {err}");
        ExitCode::FAILURE
    })
}

fn install_verb(args: &args::Install) -> Result<ExitCode, DeployError> {
    let source = match &args.source {
        Some(source) => source.clone(),
        None => own_prefix()?,
    };
    let done = install::install(args, &source)?;
    println!("installed version {} in {}", done.version, args.place.prefix.display());
    let what = if done.changed { "was given the runtime" } else { "has the runtime already" };
    println!("{} {what} {:?}", done.config.display(), containerd::HANDLER);
    say_kept(&done.kept);
    let host = Host::new(&args.place.host_root)?;
    restart_or_say(&host, done.needs_restart.then_some(done.engine), args.restart_engine)?;
    Ok(ExitCode::SUCCESS)
}

fn remove_verb(args: &args::Remove) -> Result<ExitCode, DeployError> {
    let host = Host::new(&args.place.host_root)?;
    match remove::remove(args)? {
        Removed::Nothing => println!("nothing is installed in {}", args.place.prefix.display()),
        Removed::All { restart } => {
            println!("removed from {}", args.place.prefix.display());
            restart_or_say(&host, restart, args.restart_engine)?;
        }
        Removed::InUse { users, restart } => {
            println!("the engine's configuration no longer has the runtime, but sandboxes run: their files stay");
            say_kept(&users);
            restart_or_say(&host, restart, args.restart_engine)?;
            println!("run this again when those processes have ended");
            return Ok(ExitCode::from(IN_USE));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn status_verb(args: &args::Status) -> Result<ExitCode, DeployError> {
    let status = status::status(args)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&status).unwrap_or_default());
    } else {
        print!("{status}");
    }
    Ok(ExitCode::SUCCESS)
}

fn say_kept(kept: &Users) {
    for (name, pids) in &kept.versions {
        if kept.certain {
            println!("version {name} stays: processes {pids:?} run from it");
        } else {
            println!(
                "version {name} stays: not every process of the node could be looked at (it takes the node's pid namespace, or its /proc below --host-root, and CAP_SYS_PTRACE)"
            );
        }
    }
}

/// Restarts the engine that needs it, or says that somebody must.
fn restart_or_say(host: &Host, engine: Option<Engine>, allowed: bool) -> Result<(), DeployError> {
    let Some(engine) = engine else { return Ok(()) };
    if allowed {
        println!("restarting {}; containers keep running", engine.name());
        return engine::restart(&engine.restart_command(host));
    }
    println!(
        "restart {} on the node for this to take effect: `systemctl restart {0}`; containers keep running",
        engine.name()
    );
    Ok(())
}

/// The prefix that this program is in.
fn own_prefix() -> Result<PathBuf, DeployError> {
    let exe = std::env::current_exe().map_err(error::io("read", "/proc/self/exe".as_ref()))?;
    Ok(exe.parent().and_then(|bin| bin.parent()).map(PathBuf::from).unwrap_or_else(|| "/".into()))
}
