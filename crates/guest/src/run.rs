//! The program: sets up, serves, and does not return.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::attach::Attachments;
use crate::boot::{self, BootError};
use crate::console::Console;
use crate::container::Context;
use crate::failure::chain;
use crate::local::{self, LocalError};
use crate::logger;
use crate::oom::Oom;
use crate::params::Params;
use crate::reaper::Reaper;
use crate::sandbox::Guest;
use crate::service;
use crate::storage::Storages;
use crate::transport::serial::PortError;
use crate::transport::vsock::Listeners;
use crate::transport::{Dispatcher, rpc, serial, unix};

/// Threads for calls that block. One that hangs (a mount whose daemon is stuck) must not keep the others waiting.
const BLOCKING_THREADS: usize = 32;
/// They go again soon: each costs memory.
const BLOCKING_KEEP: Duration = Duration::from_secs(1);
/// They mount and call the engine, nothing deep.
const BLOCKING_STACK: usize = 512 * 1024;

/// Why the agent ends.
#[derive(Debug, Error)]
enum AgentError {
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error(transparent)]
    Local(#[from] LocalError),
    #[error("the agent must be PID 1, or be given --serial-unix PATH")]
    NotInit,
    #[error("the agent cannot start: {what}")]
    Start {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("the ttrpc server cannot start: {0}")]
    Server(ttrpc::Error),
    #[error("no virtio-serial port named {} appeared within {} s, and there is no vsock", kata_types::AGENT_SERIAL_PORT, waited.as_secs())]
    NoChannel { waited: Duration },
    #[error(transparent)]
    Port(#[from] PortError),
    #[error("the channel to the host failed: {what}")]
    Channel {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
}

/// Where the host is met.
enum Place {
    /// In a machine of our own: its serial port, its vsock.
    Machine,
    /// At a socket.
    Socket(UnixListener),
}

/// Runs the agent. `args` are the words after the program's name. It ends only by failing, and a PID 1 that ends stops
/// its machine.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    // In a build that unwinds, a task that panics would just be gone, and whoever waits for it would wait for ever.
    std::panic::set_hook(Box::new(|info| {
        log::error!("the agent panicked: {info}");
        std::process::exit(101);
    }));
    let Err(error) = agent(args);
    let text = chain(&error);
    log::error!("{text}");
    // The logger may not be there yet. This is the last word; there is nobody to tell if it fails.
    let _ = writeln!(std::io::stderr(), "kata-agent: {text}");
    match error {
        AgentError::Local(LocalError::Usage(_)) | AgentError::NotInit => ExitCode::from(2),
        _ => ExitCode::FAILURE,
    }
}

fn agent(args: impl IntoIterator<Item = OsString>) -> Result<Infallible, AgentError> {
    let pid1 = std::process::id() == 1;
    // The kernel hands init what it did not understand of its own command line; that is not for us.
    let args = match local::Args::parse(args) {
        Ok(args) => args,
        Err(_) if pid1 => local::Args::default(),
        Err(e) => return Err(e.into()),
    };
    let (params, place, share) = match args.socket {
        Some(socket) => {
            let (listener, share) = local::prepare(&socket, args.share.as_deref())?;
            logger::init(log::LevelFilter::Info, std::fs::File::options().write(true).open("/dev/stderr").ok());
            (Params::default(), Place::Socket(listener), share)
        }
        None if pid1 && !boot::in_pid_namespace() => (boot::machine()?, Place::Machine, None),
        None => return Err(AgentError::NotInit),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(BLOCKING_KEEP)
        .thread_stack_size(BLOCKING_STACK)
        .build()
        .map_err(|source| AgentError::Start { what: "no runtime", source })?;
    runtime.block_on(serve(params, place, share))
}

async fn serve(params: Params, place: Place, share: Option<OwnedFd>) -> Result<Infallible, AgentError> {
    let start = |what| move |source| AgentError::Start { what, source };
    let reaper = Reaper::start().map_err(start("no handler for SIGCHLD"))?;
    let oom = Oom::start().map_err(start("no inotify"))?;
    let attachments = Arc::new(Attachments::default());
    let console = Console::new(params.debug_console, reaper.clone());
    let context = Context { reaper, attachments: attachments.clone(), pipe_size: params.container_pipe_size };
    let storages = Storages::new(params.hotplug_timeout, share);
    let hotplug = params.hotplug_timeout;
    let owns_machine = matches!(place, Place::Machine);
    let guest = Arc::new(Guest::new(params, owns_machine, oom, context, storages));
    let (_server, connections) = rpc::start(service::services(guest)).await.map_err(AgentError::Server)?;
    let dispatcher = Dispatcher::new(connections, attachments, console);
    match place {
        Place::Machine => machine(&dispatcher, hotplug).await,
        Place::Socket(listener) => {
            let channel = |source| AgentError::Channel { what: "the socket", source };
            let listener = tokio::net::UnixListener::from_std(listener).map_err(channel)?;
            unix::serve(listener, &dispatcher).await.map_err(channel)
        }
    }
}

async fn machine(dispatcher: &Dispatcher, hotplug: Duration) -> Result<Infallible, AgentError> {
    let vsock = match Listeners::open() {
        Ok(listeners) => Some(listeners),
        Err(e) => {
            log::debug!("no vsock: {}", chain(&e));
            None
        }
    };
    let has_vsock = vsock.is_some();
    let by_vsock = async {
        match vsock {
            Some(listeners) => {
                listeners.serve(dispatcher).await.map_err(|source| AgentError::Channel { what: "vsock", source })
            }
            None => std::future::pending().await,
        }
    };
    let by_port = async {
        match serial::find(kata_types::AGENT_SERIAL_PORT, Instant::now() + hotplug).await {
            Some(path) => Ok(serial::serve(&path, dispatcher).await?),
            None if has_vsock => {
                log::info!("there is no serial port {}; the host comes by vsock", kata_types::AGENT_SERIAL_PORT);
                std::future::pending().await
            }
            None => Err(AgentError::NoChannel { waited: hotplug }),
        }
    };
    log::info!("agent {} is up, vsock: {has_vsock}", env!("CARGO_PKG_VERSION"));
    tokio::select! {
        result = by_vsock => result,
        result = by_port => result,
    }
}
