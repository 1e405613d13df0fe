//! `kata sandbox-daemon`: the process that is one sandbox.

use std::ffi::OsString;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::shim_async::create_task;
use kata_config::Accelerator;
use kata_sandbox::{HostCgroup, Options, Owner, Ready, Sandbox, attach_socket, task_socket};
use kata_types::SandboxId;
use kata_vmm::Accel;
use kata_vmm_qemu::{Qemu, QemuConfig};
use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::attach::Attachments;
use crate::service::TaskService;
use crate::{attach, logging, publish};

/// The daemon's arguments, as `kata_sandbox::launch` writes them.
#[derive(Debug, Default)]
struct Args {
    run_dir: PathBuf,
    id: String,
    bundle: PathBuf,
    namespace: Option<String>,
    root: Option<PathBuf>,
    config: Option<PathBuf>,
    log: Option<PathBuf>,
    events: Option<String>,
    debug: bool,
}

impl Args {
    fn parse(args: Vec<OsString>) -> Result<Args, String> {
        let mut out = Args::default();
        let mut args = args.into_iter();
        while let Some(flag) = args.next() {
            if flag == "--debug" {
                out.debug = true;
                continue;
            }
            let value = args.next().ok_or_else(|| format!("{} needs a value", flag.to_string_lossy()))?;
            let text = || value.to_string_lossy().into_owned();
            match flag.to_str() {
                Some("--run-dir") => out.run_dir = value.clone().into(),
                Some("--id") => out.id = text(),
                Some("--bundle") => out.bundle = value.clone().into(),
                Some("--namespace") => out.namespace = Some(text()),
                Some("--root") => out.root = Some(value.clone().into()),
                Some("--config") => out.config = Some(value.clone().into()),
                Some("--log") => out.log = Some(value.clone().into()),
                Some("--events") => out.events = Some(text()),
                _ => return Err(format!("unknown argument {}", flag.to_string_lossy())),
            }
        }
        Ok(out)
    }
}

/// Runs until the sandbox is shut down. `args`: without the mode's word.
pub fn main(args: Vec<OsString>) -> ExitCode {
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            tracing::error!("{text}");
            answer(&Ready { pid: None, error: Some(text) });
            ExitCode::FAILURE
        }
    }
}

/// The one line on stdout; afterwards stdout is /dev/null, so that whoever waits for its end gets it.
fn answer(ready: &Ready) {
    let mut out = std::io::stdout();
    // The reader may have given up.
    drop(serde_json::to_writer(&mut out, ready).map_err(std::io::Error::from).and_then(|()| out.write_all(b"\n")));
    drop(out.flush());
    if let Ok(null) = std::fs::File::options().write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdout(null.as_fd());
    }
}

fn run(args: Vec<OsString>) -> Result<(), String> {
    let args = Args::parse(args)?;
    detach().map_err(|e| format!("the sandbox's daemon cannot detach: {e}"))?;
    let daemon_log = args.run_dir.join("daemon.log");
    logging::start(Some(args.log.as_deref().unwrap_or(&daemon_log)), args.debug);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("no event loop: {e}"))?;
    let done = runtime.block_on(serve(&args));
    // Detached pumps may sit in a read that never ends.
    runtime.shutdown_background();
    done
}

/// A session of its own; a mount namespace of its own, slave to the host's, so that a kill leaks no mount; no
/// descriptor but the three standard ones. Single-threaded still.
fn detach() -> nix::Result<()> {
    // Already a leader when started by a shell's job control: that is as good.
    let _ = nix::unistd::setsid();
    nix::unistd::chdir("/")?;
    kata_sys::fds::close_from(3).map_err(|e| nix::Error::from_raw(e.raw_os_error().unwrap_or(0)))?;
    nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
    nix::mount::mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
}

/// Where this program is installed: `<prefix>/bin/kata`.
fn prefix() -> PathBuf {
    let exe = std::env::current_exe().unwrap_or_default();
    exe.parent().and_then(Path::parent).unwrap_or(Path::new("/usr")).to_owned()
}

async fn serve(args: &Args) -> Result<(), String> {
    let loaded = kata_config::load(args.config.as_deref(), &prefix()).map_err(|e| e.to_string())?;
    let mut config = loaded.config;
    if args.debug {
        config.runtime.enable_debug = true;
    }
    let owner = match (&args.namespace, &args.root) {
        (Some(namespace), _) => Owner::Containerd(namespace.clone()),
        (None, Some(root)) => Owner::Oci(root.clone()),
        (None, None) => return Err("--namespace or --root is needed".into()),
    };
    let spec = kata_oci::load_spec(&args.bundle).map_err(|e| e.to_string())?;
    let q = &config.hypervisor.qemu;
    let vmm = Qemu::new(QemuConfig {
        binary: q.path.clone(),
        accel: match q.accelerator {
            Accelerator::Auto => None,
            Accelerator::Kvm => Some(Accel::Kvm),
            Accelerator::Tcg => Some(Accel::Tcg),
        },
        uid_range: Some(q.uid_range),
        machine: q.machine_type.clone(),
    })
    .map_err(|e| e.to_string())?;

    let tasks = UnixListener::bind(task_socket(&args.run_dir)).map_err(|e| format!("the task socket: {e}"))?;
    let shims = UnixListener::bind(attach_socket(&args.run_dir)).map_err(|e| format!("the attach socket: {e}"))?;
    let (events, received) = mpsc::unbounded_channel();
    // Last: from here on the sandbox's state file tells of it.
    let cgroups_path = spec.linux.as_ref().map_or("", |l| l.cgroups_path.as_str());
    let cgroup = HostCgroup::make(cgroups_path).map_err(|e| e.to_string())?;
    let sandbox = Sandbox::start(Options {
        id: SandboxId::new(args.id.clone()).map_err(|e| e.to_string())?,
        run_dir: args.run_dir.clone(),
        config,
        vmm: Arc::new(vmm),
        cgroup: cgroup.clone(),
        hostname: spec.hostname.clone(),
        events,
    })
    .map_err(|e| {
        cgroup.remove();
        e.to_string()
    })?;
    let namespace = args.namespace.clone().unwrap_or_default();
    let (stop, stopped) = oneshot::channel();
    let publisher = tokio::spawn(publish::run(namespace, args.events.clone(), received, stopped));

    let attachments = Attachments::default();
    let exit = Arc::new(Notify::new());
    let service = TaskService::new(Arc::clone(&sandbox), attachments.clone(), Arc::clone(&exit));
    let mut server =
        ttrpc::r#async::Server::new().add_listener(listener(tasks)).register_service(both_versions(Arc::new(service)));
    server.start().await.map_err(|e| format!("the task service: {e}"))?;
    tokio::spawn(attach::serve(shims, attachments, Arc::clone(&sandbox)));
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| format!("SIGTERM: {e}"))?;
    tracing::info!(id = args.id, ?owner, config = ?loaded.files, "serving");
    answer(&Ready { pid: Some(std::process::id().cast_signed()), error: None });

    tokio::select! {
        () = exit.notified() => {}
        _ = terminate.recv() => {
            tracing::warn!("SIGTERM: the sandbox ends");
            sandbox.shutdown().await;
        }
    }
    // The answer to Shutdown, and the last events, are still on their way.
    drop(tokio::time::timeout(Duration::from_millis(500), server.shutdown()).await);
    drop(server);
    drop(sandbox);
    // The publisher may have ended; then there is nothing to stop.
    let _ = stop.send(());
    drop(tokio::time::timeout(Duration::from_secs(2), publisher).await);
    if let Err(err) = kata_storage::remove_run_dir(&args.run_dir) {
        tracing::warn!("{err}");
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments() {
        let args = |a: &[&str]| Args::parse(a.iter().map(OsString::from).collect());
        let a = args(&["--run-dir", "/r", "--id", "x", "--bundle", "/b", "--root", "/o", "--debug"]).unwrap();
        assert!(a.debug && a.root == Some("/o".into()) && a.id == "x");
        assert!(args(&["--frob", "1"]).is_err() && args(&["--id"]).is_err());
    }
}
