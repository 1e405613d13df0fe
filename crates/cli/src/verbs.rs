//! The short verbs.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use kata_oci::Hook;
use kata_oci::{State, Status};
use kata_sandbox::{StateFile, cleanup_container, has_died, run_hooks};

use crate::args::Format;
use crate::client::{Daemon, Failure};
use crate::error::CliError;
use crate::store::{Entry, Store};
use crate::{query, signals};

/// How long a killed container may take to be seen as stopped.
const STOPPED_WITHIN: Duration = Duration::from_secs(15);
/// How long a daemon may take to end a container before `delete --force` does without it.
const FORCE_PATIENCE: Duration = Duration::from_secs(20);
/// How long a daemon may take to go after it was told to.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// How long the process that stands for a container may take to end when the sandbox is lost.
const LOST_WITHIN: Duration = Duration::from_secs(3);

/// The daemon of a container that must run.
async fn daemon(store: &Store, id: &str) -> Result<Daemon, CliError> {
    let entry = store.get(id)?;
    Daemon::connect(&store.run_dir(id, &entry)).await.ok_or(CliError::NotRunning)
}

/// `start`.
pub async fn start(store: &Store, id: &str) -> Result<u8, CliError> {
    let daemon = daemon(store, id).await?;
    let Err(err) = daemon.start(id, "").await else { return Ok(0) };
    // An engine takes a container back whose start has failed, once, and only if the process that stands for it has ended: where
    // that is about to, it has when the engine is told.
    if !matches!(daemon.state(id, "").await, Ok(task) if task.status != Status::Stopped) {
        stand_in_ends(store, id).await;
    }
    Err(err.into())
}

/// Waits for the end of the process that stands for a container whose sandbox is lost.
async fn stand_in_ends(store: &Store, id: &str) {
    let Ok(entry) = store.get(id) else { return };
    let state = StateFile::load(&store.run_dir(id, &entry)).ok().flatten();
    let Some(record) = state.and_then(|mut state| state.containers.remove(id)) else { return };
    let deadline = Instant::now() + LOST_WITHIN;
    while record.is_stood_for_by(record.pid) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A container's state: from its daemon, else from what the daemon left.
async fn look(store: &Store, id: &str) -> Result<State, CliError> {
    let entry = store.get(id)?;
    let run_dir = store.run_dir(id, &entry);
    let mut state = State {
        oci_version: kata_oci::OCI_VERSION.into(),
        id: id.to_owned(),
        status: Status::Stopped,
        pid: 0,
        bundle: entry.bundle.to_string_lossy().into_owned(),
        annotations: kata_oci::load_spec(&entry.bundle).map(|s| s.annotations).unwrap_or_default(),
    };
    if let Some(daemon) = Daemon::connect(&run_dir).await {
        match daemon.state(id, "").await {
            Ok(task) => {
                state.status = task.status;
                // runc: a stopped container has no pid.
                state.pid = if task.status == Status::Stopped { 0 } else { task.pid };
                return Ok(state);
            }
            // It serves, but has no container: it is being made.
            Err(Failure::NotFound(_)) => state.status = Status::Creating,
            Err(Failure::Lost(_) | Failure::Other(_)) => {}
        }
    }
    if let Ok(Some(file)) = StateFile::load(&run_dir)
        && let Some(record) = file.containers.get(id)
    {
        state.annotations.clone_from(&record.annotations);
        // It has been made, has ended, and is being deleted.
        if record.exit_status.is_some() {
            state.status = Status::Stopped;
        }
    }
    Ok(state)
}

/// `state`.
pub async fn state(store: &Store, id: &str) -> Result<u8, CliError> {
    println!("{}", json(&look(store, id).await?));
    Ok(0)
}

fn json<T: serde::Serialize>(value: &T) -> String {
    // Plain data structures of ours: serialising them cannot fail.
    serde_json::to_string_pretty(value).unwrap_or_default()
}

/// `kill`.
pub async fn kill(store: &Store, id: &str, signal: &str, all: bool) -> Result<u8, CliError> {
    let signal = signals::parse(signal)?;
    let daemon = daemon(store, id).await?;
    match daemon.kill(id, "", signal, all).await {
        Ok(()) => Ok(0),
        Err(Failure::NotFound(_)) => Err(CliError::NotRunning),
        Err(err) => Err(err.into()),
    }
}

/// `delete`. Works from the state file alone when the daemon is gone.
pub async fn delete(store: &Store, id: &str, force: bool) -> Result<u8, CliError> {
    let entry = match store.get(id) {
        Ok(entry) => entry,
        Err(CliError::NotFound { .. }) if force => {
            // A crash may have left the sandbox without its entry. One that has outlived the container of its id is well.
            let run_dir = store.run_dir(id, &Entry::default());
            if !serves_others(&run_dir, id).await {
                cleanup_container(&run_dir, id, None)?;
            }
            return Ok(0);
        }
        Err(err) => return Err(err),
    };
    let run_dir = store.run_dir(id, &entry);
    let mut hooks_ran = false;
    let mut left = run_dir.exists();
    if let Some(daemon) = Daemon::connect(&run_dir).await {
        let ended = if force {
            let hung = || Err(CliError::Daemon("the sandbox's daemon does not answer; it is killed".into()));
            tokio::time::timeout(FORCE_PATIENCE, ended_by(&daemon, id, force)).await.unwrap_or_else(|_| hung())
        } else {
            ended_by(&daemon, id, force).await
        };
        match ended {
            Ok(()) => hooks_ran = true,
            Err(err @ CliError::State { .. }) => return Err(err),
            // A daemon that cannot do it is cleaned up after.
            Err(err) if force => eprintln!("kata-runtime: {err}"),
            // One that is dead is cleaned up after, also if that is so only since it was asked.
            Err(CliError::Lost(_)) if has_died(&run_dir) => {}
            Err(err) => return Err(err),
        }
        if hooks_ran {
            left = leave(daemon, &run_dir, id).await;
        }
    }
    if left {
        // What the state file does not tell, the bundle may.
        let spec = kata_oci::load_spec(&entry.bundle).unwrap_or_default();
        let cgroups_path = spec.linux.as_ref().map(|l| l.cgroups_path.as_str()).filter(|_| entry.sandbox.is_none());
        let remains = cleanup_container(&run_dir, id, cgroups_path)?;
        if let Some(err) = remains.damaged {
            eprintln!("kata-runtime: {err}");
        }
        if !hooks_ran {
            let record = remains.state.and_then(|mut state| state.containers.remove(id));
            let (hooks, annotations) = match record {
                Some(record) => (record.poststop, record.annotations),
                None => (spec.hooks.map(|h| h.poststop).unwrap_or_default(), spec.annotations),
            };
            poststop(id, &entry.bundle, &hooks, annotations).await;
        }
    }
    store.remove(id)?;
    Ok(0)
}

/// Whether a sandbox serves there and has containers beside this one.
pub async fn serves_others(run_dir: &Path, id: &str) -> bool {
    let state = StateFile::load(run_dir).ok().flatten();
    state.is_some_and(|s| s.containers.keys().any(|other| other != id)) && Daemon::connect(run_dir).await.is_some()
}

/// Lets a sandbox end in which a container has been deleted, if that was its last, and waits for its end. Whether something of it
/// is left that has to be cleaned up.
pub async fn leave(daemon: Daemon, run_dir: &Path, id: &str) -> bool {
    let serving = || StateFile::load(run_dir).ok().flatten();
    let before = serving().and_then(|state| state.daemon);
    if daemon.shutdown_if_empty(id).await.is_err() {
        return run_dir.exists();
    }
    let deadline = Instant::now() + GONE_WITHIN;
    loop {
        match serving() {
            // The directory may be another sandbox's by now, of the same id.
            None => return false,
            Some(state) if state.daemon != before => return false,
            // It goes on for the others.
            Some(state) if !state.containers.is_empty() => return false,
            Some(_) if Instant::now() >= deadline => return true,
            Some(_) => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
}

/// Ends the container through its daemon.
pub async fn ended_by(daemon: &Daemon, id: &str, force: bool) -> Result<(), CliError> {
    let status = match daemon.state(id, "").await {
        Ok(task) => task.status,
        // Nothing was created in it.
        Err(Failure::NotFound(_)) => return Ok(()),
        Err(err) => return Err(err.into()),
    };
    // runc deletes a created container, and refuses a running one without --force.
    if matches!(status, Status::Running | Status::Paused) {
        if !force {
            return Err(CliError::State {
                operation: "delete",
                id: id.to_owned(),
                is: format!("{status}; kill it first, or use --force"),
            });
        }
        if status == Status::Paused {
            drop(daemon.freeze(id, false).await);
        }
        match daemon.kill(id, "", 9, true).await {
            Ok(()) | Err(Failure::NotFound(_)) => {}
            Err(err) => return Err(err.into()),
        }
        daemon.wait(id, STOPPED_WITHIN).await?;
    }
    daemon.delete(id, "").await?;
    Ok(())
}

async fn poststop(id: &str, bundle: &Path, hooks: &[Hook], annotations: BTreeMap<String, String>) {
    let state = State {
        oci_version: kata_oci::OCI_VERSION.into(),
        id: id.to_owned(),
        status: Status::Stopped,
        pid: 0,
        bundle: bundle.to_string_lossy().into_owned(),
        annotations,
    };
    for hook in hooks {
        if let Err(err) = run_hooks("poststop", std::slice::from_ref(hook), &state, None).await {
            eprintln!("kata-runtime: {err}");
        }
    }
}

/// `ps`.
pub async fn ps(store: &Store, id: &str, format: Format, options: Vec<String>) -> Result<u8, CliError> {
    let entry = store.get(id)?;
    let daemon = daemon(store, id).await?;
    match format {
        Format::Json => println!("{}", serde_json::json!(daemon.pids(id).await?)),
        Format::Table => print!("{}", query::guest_processes(&store.run_dir(id, &entry), id, options)?),
    }
    Ok(0)
}

/// `list`.
pub async fn list(store: &Store, format: Format, quiet: bool) -> Result<u8, CliError> {
    let mut rows = Vec::new();
    for id in store.ids() {
        if quiet {
            println!("{id}");
            continue;
        }
        // One that vanishes meanwhile is left out.
        if let (Ok(state), Ok(entry)) = (look(store, &id).await, store.get(&id)) {
            rows.push((state, entry));
        }
    }
    if quiet {
        return Ok(0);
    }
    let user = |uid: u32| {
        let found = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).ok().flatten();
        found.map_or_else(|| format!("#{uid}"), |u| u.name)
    };
    if format == Format::Json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(s, e)| {
                let mut row = serde_json::json!(s);
                row["created"] = e.created.clone().into();
                row["owner"] = user(e.owner).into();
                row["rootfs"] = e.bundle.join("rootfs").to_string_lossy().into();
                row
            })
            .collect();
        println!("{}", serde_json::json!(rows));
        return Ok(0);
    }
    let width =
        |f: &dyn Fn(&(State, crate::store::Entry)) -> usize, least| rows.iter().map(f).max().unwrap_or(0).max(least);
    let (id, bundle) = (width(&|r| r.0.id.len(), 11), width(&|r| r.0.bundle.len(), 11));
    println!("{:id$} {:11} {:11} {:bundle$} {:30} OWNER", "ID", "PID", "STATUS", "BUNDLE", "CREATED");
    for (s, e) in &rows {
        println!("{:id$} {:<11} {:11} {:bundle$} {:30} {}", s.id, s.pid, s.status, s.bundle, e.created, user(e.owner));
    }
    Ok(0)
}

/// `pause`.
pub async fn pause(store: &Store, id: &str) -> Result<u8, CliError> {
    daemon(store, id).await?.freeze(id, true).await?;
    Ok(0)
}

/// `resume`.
pub async fn resume(store: &Store, id: &str) -> Result<u8, CliError> {
    daemon(store, id).await?.freeze(id, false).await?;
    Ok(0)
}
