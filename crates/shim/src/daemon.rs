//! `kata sandbox-daemon`: the process that is one sandbox.

mod args;
mod making;
mod namespace;
mod traces;
mod waiting;

use std::ffi::OsString;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::sandbox_async::create_sandbox;
use containerd_shim_protos::shim_async::create_task;
use kata_config::Config;
use kata_metrics::Durations;
use kata_network::Netns;
use kata_sandbox::{Origin, Owner, Ready, attach_socket, monitor_socket, task_socket};
use kata_storage::View;
use kata_types::SandboxId;
use kata_vmm_qemu::Qemu;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use crate::attach::Attachments;
use crate::engine::Engine;
use crate::pod::{Make, SandboxService};
use crate::service::TaskService;
use crate::{logging, observed};
use args::Args;
use making::{Has, Making};
use traces::Traces;

/// Threads for calls that block go again soon: each costs memory, and stays in the mount namespace it was made in.
const THREAD_KEEP_ALIVE: Duration = Duration::from_secs(1);

/// containerd creates its sandbox as soon as the daemon serves; longer than it takes on a node that swaps.
const CREATED_WITHIN: Duration = Duration::from_secs(120);

/// Runs until the sandbox is shut down. `args`: without the mode's word.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let waits = args.iter().any(|a| a == "--pool");
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        // Its keeper logs what it says.
        Err(text) if waits => {
            println!("{text}");
            ExitCode::FAILURE
        }
        Err(text) => {
            tracing::error!("{text}");
            answer(&Ready { pid: None, error: Some(text) });
            ExitCode::FAILURE
        }
    }
}

/// The one line on stdout; afterwards stdout is /dev/null, so that whoever waits for its end gets it. Whether anybody is there to
/// read it.
fn answer(ready: &Ready) -> bool {
    let mut out = std::io::stdout();
    let line = serde_json::to_writer(&mut out, ready).map_err(std::io::Error::from);
    let told = line.and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()).is_ok();
    if let Ok(null) = std::fs::File::options().write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdout(null.as_fd());
    }
    told
}

fn run(args: Vec<OsString>) -> Result<(), String> {
    let args = Args::parse(args)?;
    let view = detach().map_err(|e| format!("the sandbox's daemon cannot detach: {e}"))?;
    let daemon_log = args.run_dir.join("daemon.log");
    logging::start(Some(args.log.as_deref().unwrap_or(&daemon_log)), args.debug);
    if !args.pool {
        logging::sandbox(&args.id);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(THREAD_KEEP_ALIVE)
        .build()
        .map_err(|e| format!("no event loop: {e}"))?;
    let done = if args.pool { runtime.block_on(waiting::wait(args)) } else { runtime.block_on(serve(&args, view)) };
    // Detached pumps may sit in a read that never ends.
    runtime.shutdown_background();
    done
}

/// A session of its own; a mount namespace of its own, slave to the host's, so that a kill leaks no mount; no
/// descriptor but the three standard ones. Single-threaded still. Returns the view of the mount namespace that it leaves.
fn detach() -> nix::Result<View> {
    // Already a leader when started by a shell's job control: that is as good.
    let _ = nix::unistd::setsid();
    nix::unistd::chdir("/")?;
    kata_sys::fds::close_from(3).map_err(|e| nix::Error::from_raw(e.raw_os_error().unwrap_or(0)))?;
    let view = View::current().map_err(|e| nix::Error::from_raw(e.raw_os_error().unwrap_or(0)))?;
    namespace::own()?;
    Ok(view)
}

/// What a daemon listens at.
struct Sockets {
    tasks: UnixListener,
    shims: UnixListener,
    operators: UnixListener,
}

impl Sockets {
    fn bind(run_dir: &Path) -> Result<Sockets, String> {
        let tasks = UnixListener::bind(task_socket(run_dir)).map_err(|e| format!("the task socket: {e}"))?;
        let shims = UnixListener::bind(attach_socket(run_dir)).map_err(|e| format!("the attach socket: {e}"))?;
        let operators =
            UnixListener::bind(monitor_socket(run_dir)).map_err(|e| format!("the management socket: {e}"))?;
        Ok(Sockets { tasks, shims, operators })
    }
}

async fn serve(args: &Args, view: View) -> Result<(), String> {
    let loaded = kata_factory::config(args.config.as_deref()).map_err(|e| e.to_string())?;
    let mut config = loaded.config;
    if args.debug {
        config.runtime.enable_debug = true;
    }
    let vmm = Arc::new(kata_factory::driver(&config).map_err(|e| e.to_string())?);
    let sockets = Sockets::bind(&args.run_dir)?;
    tracing::info!(config = ?loaded.files, "configured");
    let host = Netns::current().map_err(|e| e.to_string())?;
    let serving = Serving::begin(args, config, vmm, sockets, Has::Nothing { host }, view).await?;
    if !answer(&Ready { pid: Some(std::process::id().cast_signed()), error: None }) {
        serving.nobody_came().await;
    }
    serving.until_its_end(args).await
}

/// A sandbox, or what is to be one, and who it is served to.
struct Serving {
    engine: Arc<Engine>,
    pod: Option<Arc<SandboxService>>,
    server: ttrpc::r#async::Server,
    exit: Arc<Notify>,
    terminate: Signal,
    traces: Traces,
}

impl Serving {
    async fn begin(
        args: &Args,
        config: Config,
        vmm: Arc<Qemu>,
        sockets: Sockets,
        has: Has,
        view: View,
    ) -> Result<Serving, String> {
        let owner = args.owner()?;
        let id = SandboxId::new(args.id.clone()).map_err(|e| e.to_string())?;
        let terminate = signal(SignalKind::terminate()).map_err(|e| format!("SIGTERM: {e}"))?;
        let traces = Traces::begin(&config, id.as_str())?;
        let (engine, attachments) = (Arc::new(Engine::default()), Attachments::default());
        let (exit, durations) = (Arc::new(Notify::new()), Arc::new(Durations::default()));
        let Sockets { tasks, shims, operators } = sockets;
        let making = Making {
            id,
            origin: Origin::of(&owner, &args.bundle, &view),
            run_dir: args.run_dir.clone(),
            config,
            vmm,
            has,
            view,
            tracer: traces.tracer().cloned(),
            namespace: args.namespace.clone().unwrap_or_default(),
            events: args.events.clone(),
            shims,
            operators,
            attachments: attachments.clone(),
            durations: Arc::clone(&durations),
            engine: Arc::clone(&engine),
        };
        let containerds = matches!(owner, Owner::Containerd(_));
        // Without a spec it is a sandbox of containerd's Sandbox API, which says later what it is to be.
        let unmade: Option<Box<dyn Make>> = if containerds && !args.bundle.join("config.json").exists() {
            Some(Box::new(making))
        } else {
            let spec = kata_oci::load_spec(&args.bundle).map_err(|e| e.to_string())?;
            making.make(&spec, None).await?;
            None
        };
        let waits = unmade.is_some();
        let service = TaskService::new(Arc::clone(&engine), attachments, Arc::clone(&exit));
        let mut server = ttrpc::r#async::Server::new()
            .add_listener(listener(tasks))
            .register_service(observed::observed(both_versions(Arc::new(service)), &durations, traces.tracer()));
        let pod = containerds.then(|| {
            let (engine, exit) = (Arc::clone(&engine), Arc::clone(&exit));
            Arc::new(SandboxService::new(&args.id, args.bundle.clone(), engine, unmade, exit))
        });
        if let Some(pod) = &pod {
            server = server.register_service(create_sandbox(Arc::clone(pod) as _));
        }
        server.start().await.map_err(|e| format!("the task service: {e}"))?;
        tracing::info!(id = args.id, ?owner, waits, "serving");
        if let Some(pod) = pod.as_ref().filter(|_| waits) {
            tokio::spawn(give_up(Arc::clone(pod), Arc::clone(&exit)));
        }
        Ok(Serving { engine, pod, server, exit, terminate, traces })
    }

    /// Ends a sandbox whose launcher has gone before it was told of it: nobody knows that it is there.
    async fn nobody_came(&self) {
        tracing::error!("whoever launched the sandbox has gone: it ends");
        if let Ok(sandbox) = self.engine.sandbox() {
            sandbox.shutdown().await;
        }
        self.exit.notify_one();
    }

    async fn until_its_end(mut self, args: &Args) -> Result<(), String> {
        tokio::select! {
            () = self.exit.notified() => {}
            _ = self.terminate.recv() => {
                tracing::warn!("SIGTERM: the sandbox ends");
                if let Ok(sandbox) = self.engine.sandbox() {
                    sandbox.shutdown().await;
                }
            }
        }
        // The answer to Shutdown, and the last events, are still on their way.
        drop(tokio::time::timeout(Duration::from_millis(500), self.server.shutdown()).await);
        drop(self.server);
        if let Some(pod) = &self.pod {
            pod.abandon().await;
        }
        // From here on the id can be used again; what is left goes under another name.
        let ending = kata_sandbox::retire(&args.run_dir);
        if let Ok(sandbox) = self.engine.sandbox() {
            sandbox.gone().await;
        }
        self.engine.told().await;
        self.traces.end().await;
        if let Err(err) = kata_storage::remove_run_dir(&ending) {
            tracing::warn!("{err}");
        }
        Ok(())
    }
}

/// Ends a daemon that nobody has asked for its sandbox.
async fn give_up(pod: Arc<SandboxService>, exit: Arc<Notify>) {
    tokio::time::sleep(CREATED_WITHIN).await;
    if pod.abandon().await {
        tracing::error!("no sandbox was asked for within {CREATED_WITHIN:?}: the daemon ends");
        exit.notify_one();
    }
}

fn listener(socket: UnixListener) -> ttrpc::r#async::transport::Listener {
    let accepted = futures::stream::unfold(socket, |socket| async move {
        loop {
            match socket.accept().await {
                Ok((stream, _)) => return Some((std::io::Result::Ok(stream), socket)),
                Err(err) => {
                    // Out of descriptors: ttrpc would spin.
                    tracing::warn!("a client cannot be served: {err}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    });
    ttrpc::r#async::transport::Listener::new(accepted)
}

/// The Task service under both its names: containerd 1.x speaks v2, 2.x v3; the messages are the same.
fn both_versions(service: Arc<TaskService>) -> std::collections::HashMap<String, ttrpc::r#async::Service> {
    let mut services = create_task(Arc::clone(&service) as _);
    for (_, s) in create_task(service as _) {
        services.insert("containerd.task.v2.Task".into(), s);
    }
    services
}
