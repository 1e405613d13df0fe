//! A sandbox that waits in the pool for its name.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use kata_config::Config;
use kata_factory::handover::{self, Incoming, Name, Theirs};
use kata_factory::{READY_WORD, TAKEN_WORD, announce};
use kata_network::Netns;
use kata_sandbox::{BeginSpec, Machine, ProcessRecord, Ready, StateFile, begin_machine};
use kata_storage::View;
use kata_types::SandboxId;
use kata_vmm_qemu::Qemu;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};

use super::{Args, Has, Serving, Sockets, namespace};
use crate::attach::when_whole;
use crate::logging;

/// Why it does not wait any more.
enum Over {
    /// Somebody took it.
    Named(UnixStream, Box<Name>, Theirs),
    /// Its keeper is gone, or wants it to go.
    Keeper,
    /// It was told to end.
    Terminated,
    /// Its machine has died.
    Dead(String),
}

/// Waits, and then is the sandbox that it was named.
pub(super) async fn wait(args: Args) -> Result<(), String> {
    let keeper = keeper_pipe().map_err(|e| format!("the keeper's pipe: {e}"))?;
    let config = kata_factory::config(args.config.as_deref()).map_err(|e| e.to_string())?.config;
    let vmm = Arc::new(kata_factory::driver(&config).map_err(|e| e.to_string())?);
    let sockets = Sockets::bind(&args.run_dir)?;
    let taken_at =
        UnixListener::bind(handover::socket(&args.run_dir)).map_err(|e| format!("the hand-over socket: {e}"))?;
    // Made now: whoever takes the sandbox need not wait for it.
    let spare = Netns::create().map_err(|e| e.to_string())?;
    let mut machine = match begin(&args, &config, &vmm).await {
        Ok(machine) => machine,
        Err(err) => {
            clean(&args.run_dir);
            return Err(err);
        }
    };
    let waits = match announce(&args.run_dir) {
        Ok(dir) => dir,
        Err(e) => {
            end(machine, &args.run_dir).await;
            return Err(format!("cannot be put into the pool: {e}"));
        }
    };
    machine.moved_to(&waits);
    say(READY_WORD);
    match over(keeper, &taken_at, &machine).await {
        Over::Named(stream, name, theirs) => {
            drop(taken_at);
            named(args, config, vmm, sockets, machine, spare, *name, theirs, stream).await
        }
        Over::Keeper | Over::Terminated => {
            end(machine, &waits).await;
            Ok(())
        }
        Over::Dead(reason) => {
            tracing::error!("the machine has died while it waited: {reason}");
            end(machine, &waits).await;
            Err(reason)
        }
    }
}

async fn begin(args: &Args, config: &Config, vmm: &Qemu) -> Result<Machine, String> {
    let sandbox = SandboxId::new("pool").map_err(|e| e.to_string())?;
    let mut state = StateFile::new(sandbox.as_str());
    state.save(&args.run_dir).map_err(|e| e.to_string())?;
    let spec = BeginSpec {
        sandbox,
        run_dir: args.run_dir.clone(),
        config: config.clone(),
        cgroups: Vec::new(),
        identity: None,
    };
    let mut machine = begin_machine(&spec, vmm).await.map_err(|e| e.to_string())?;
    let (vm, fs) = machine.record();
    state.vm = Some(vm);
    state.fs = ProcessRecord::of(fs);
    state.save(&args.run_dir).map_err(|e| e.to_string())?;
    let begun = Instant::now();
    machine.exercise(&args.run_dir).await.map_err(|e| format!("the rehearsal failed: {e}"))?;
    tracing::info!(took = ?begun.elapsed(), "rehearsed");
    Ok(machine)
}

/// What comes first.
async fn over(keeper: pipe::Receiver, taken_at: &UnixListener, machine: &Machine) -> Over {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return Over::Terminated };
    let mut death = std::pin::pin!(machine.death());
    loop {
        tokio::select! {
            // The keeper writes nothing: readable means that the pipe has ended.
            _ = keeper.readable() => return Over::Keeper,
            _ = terminate.recv() => return Over::Terminated,
            reason = &mut death => return Over::Dead(reason),
            taker = taken_at.accept() => {
                let Ok((stream, _)) = taker else { continue };
                match receive(&stream).await {
                    Ok((name, theirs)) => return Over::Named(stream, Box::new(name), theirs),
                    Err(e) => tracing::warn!("somebody who is no taker: {e}"),
                }
            }
        }
    }
}

async fn receive(stream: &UnixStream) -> io::Result<(Name, Theirs)> {
    let mut incoming = Incoming::default();
    when_whole(stream, || incoming.read(stream)).await
}

/// From here on it is the sandbox of whoever took it, and its keeper's no more.
#[allow(clippy::too_many_arguments, reason = "all that has been made ready, each in its own step")]
async fn named(
    args: Args,
    mut config: Config,
    vmm: Arc<Qemu>,
    sockets: Sockets,
    mut machine: Machine,
    spare: Netns,
    name: Name,
    theirs: Theirs,
    mut taker: UnixStream,
) -> Result<(), String> {
    say(TAKEN_WORD);
    forget_keeper();
    let args = args.named(name);
    logging::redirect(&args.log.clone().unwrap_or_else(|| args.run_dir.join("daemon.log")), args.debug);
    logging::sandbox(&args.id);
    config.runtime.enable_debug |= args.debug;
    machine.moved_to(&args.run_dir);
    // What is told by `death`, after it has made sure of the reason, may have happened just now.
    let alive = machine.ended().map_or(Ok(()), |exit| Err(format!("a process of the machine has ended: {exit}")));
    let followed = alive.and_then(|()| {
        namespace::follow(&theirs.mounts, &mut machine)?;
        let host = Netns::adopt(theirs.network, "of the host").map_err(|e| e.to_string())?;
        Ok((host, View::of(theirs.mounts)))
    });
    let begun = match followed {
        Ok((host, view)) => {
            let has = Has::Machine { machine: Box::new(machine), host, spare };
            Serving::begin(&args, config, vmm, sockets, has, view).await
        }
        Err(err) => {
            end(machine, &args.run_dir).await;
            Err(err)
        }
    };
    if begun.is_err() {
        // Before it is told: the taker may make a sandbox of this name as soon as it knows.
        clean(&args.run_dir);
    }
    let ready = match &begun {
        Ok(_) => Ready { pid: Some(std::process::id().cast_signed()), error: None },
        Err(err) => Ready { pid: None, error: Some(err.clone()) },
    };
    let mut line = serde_json::to_vec(&ready).map_err(|e| e.to_string())?;
    line.push(b'\n');
    let told = taker.write_all(&line).await;
    drop(taker);
    let serving = begun?;
    if told.is_err() {
        serving.nobody_came().await;
    }
    serving.until_its_end(&args).await
}

async fn end(machine: Machine, run_dir: &Path) {
    if let Err(err) = machine.stop().await {
        tracing::warn!("{err}");
    }
    clean(run_dir);
}

fn clean(run_dir: &Path) {
    // A keeper that has given up on this one may have moved it; it removes it then.
    if let Err(err) = kata_storage::remove_run_dir(run_dir) {
        tracing::warn!("{err}");
    }
}

/// Standard input, which the keeper holds the other end of.
fn keeper_pipe() -> io::Result<pipe::Receiver> {
    let ours = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3)?;
    pipe::Receiver::from_owned_fd(ours)
}

/// One word for the keeper.
fn say(word: &str) {
    use std::io::Write;
    let mut out = std::io::stdout();
    // It may be gone.
    drop(writeln!(out, "{word}").and_then(|()| out.flush()));
}

/// Standard input and output lead nowhere from now on.
fn forget_keeper() {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null");
    if let Ok(null) = null {
        let _ = nix::unistd::dup2_stdin(null.as_fd());
        let _ = nix::unistd::dup2_stdout(null.as_fd());
    }
}
