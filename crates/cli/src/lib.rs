//! The OCI command line `kata-runtime`: runc's verbs, flags and outputs over the sandbox's daemon. Each call is a
//! short-lived client of the daemon's Task service; `create` starts the daemon. There is no second lifecycle.

mod args;
mod check;
mod client;
mod console;
mod create;
mod env;
mod error;
mod events;
mod exec;
mod factory;
mod features;
pub mod kata_shim;
mod log;
mod management;
mod query;
mod signals;
mod spec;
mod stand_in;
mod stats;
mod store;
mod update;
mod verbs;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

use args::{Args, Verb};

/// Runs one command. `argv`: without the program's name.
pub fn main(argv: Vec<OsString>) -> ExitCode {
    let argv = std::iter::once(OsString::from("kata-runtime")).chain(argv);
    let args = match Args::try_parse_from(argv) {
        Ok(args) => args,
        Err(err) => {
            // --help and --version come here too, with exit code 0.
            drop(err.print());
            return if err.use_stderr() { ExitCode::from(1) } else { ExitCode::SUCCESS };
        }
    };
    let logger = match log::Logger::new(args.log.as_deref(), args.log_format) {
        Ok(logger) => logger,
        Err(err) => {
            eprintln!("kata-runtime: {err}");
            return ExitCode::FAILURE;
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(err) => {
            logger.error(&format!("no event loop: {err}"));
            return ExitCode::FAILURE;
        }
    };
    // runc's exec fails with 255, everything else with 1.
    let failure = if matches!(args.verb, Verb::Exec(_)) { 255 } else { 1 };
    let done = runtime.block_on(run(args));
    runtime.shutdown_background();
    match done {
        Ok(code) => ExitCode::from(code),
        Err(err) => {
            logger.error(&err.to_string());
            ExitCode::from(failure)
        }
    }
}

async fn run(args: Args) -> Result<u8, error::CliError> {
    let store = store::Store::new(&args.root)?;
    let global = create::Global { store, debug: args.debug, config: args.config };
    match args.verb {
        Verb::Create(a) => create::create(&global, a).await,
        Verb::Run(a) => create::run(&global, a).await,
        // Upstream's: a debug console.
        Verb::Exec(a) if a.command.is_empty() && a.process.is_none() => console::console(&global.store, &a.id, &[]),
        Verb::Exec(a) => exec::exec(&global, a).await,
        Verb::Start { id } => verbs::start(&global.store, &id).await,
        Verb::State { id } => verbs::state(&global.store, &id).await,
        Verb::Kill { all, id, signal } => verbs::kill(&global.store, &id, &signal, all).await,
        Verb::Delete { force, id } => verbs::delete(&global.store, &id, force).await,
        Verb::Ps { format, id, options } => verbs::ps(&global.store, &id, format, options).await,
        Verb::List { format, quiet } => verbs::list(&global.store, format, quiet).await,
        Verb::Pause { id } => verbs::pause(&global.store, &id).await,
        Verb::Resume { id } => verbs::resume(&global.store, &id).await,
        Verb::Update(a) => update::update(&global.store, a).await,
        Verb::Events { interval, stats, id } => events::events(&global.store, &id, &interval, stats).await,
        Verb::Spec { bundle, rootless } => spec::spec(&bundle, rootless),
        Verb::Features => features::features(),
        Verb::Version => {
            println!("kata-runtime {}", args::VERSION);
            Ok(0)
        }
        Verb::Check { verbose } => check::check(global.config.as_deref(), verbose),
        Verb::Factory(verb) => factory::factory(global.config.as_deref(), verb).await,
        Verb::DebugConsole { sandbox, command } => console::console(&global.store, &sandbox, &command),
        Verb::Metrics { sandbox } => management::metrics(&global.store, &sandbox).await,
        Verb::Iptables(verb) => management::iptables(&global.store, verb).await,
        Verb::Env { json } => env::env(global.config.as_deref(), json),
    }
}
