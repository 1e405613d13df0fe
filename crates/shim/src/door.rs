//! The shim protocol of containerd: the command line of `containerd-shim-kata-v2`.
//!
//! `start` prints the address of the Task service (a bare `unix://` address: containerd 1.6 knows no other form, and
//! 2.x takes it as well); `delete` cleans up after a daemon that is gone.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::Message;
use kata_factory::launch;
use kata_oci::Spec;
use kata_sandbox::{
    Launch, Owner, Place, Role, StateFile, cleanup_container, place, role, run_dir, run_hooks, task_socket,
};
use kata_types::{EXIT_LOST, SandboxId};

use crate::{convert, options, remove};

/// The environment variable in which containerd says which version of the Task API it knows; 1.6 says nothing, and
/// all from 1.7 to 2.1 say 2, whatever they could. (The OCI command line speaks version 3 to the same daemon.)
const MAX_VERSION: &str = "MAX_SHIM_VERSION";

#[derive(Debug, Default)]
struct Args {
    namespace: String,
    id: String,
    bundle: Option<PathBuf>,
    debug: bool,
    info: bool,
    version: bool,
    action: String,
}

impl Args {
    /// Go's flag package: one dash or two, `-flag value` or `-flag=value`.
    fn parse(args: Vec<OsString>) -> Result<Args, String> {
        let mut out = Args::default();
        let mut args = args.into_iter().map(|a| a.to_string_lossy().into_owned());
        while let Some(arg) = args.next() {
            let Some(flag) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
                out.action = arg;
                continue;
            };
            let (name, inline) = match flag.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (flag.to_owned(), None),
            };
            match name.as_str() {
                "debug" => out.debug = inline.as_deref() != Some("false"),
                "info" => out.info = true,
                "v" | "version" => out.version = true,
                "namespace" | "id" | "bundle" | "address" | "publish-binary" | "socket" => {
                    let value = match inline {
                        Some(value) => value,
                        None => args.next().ok_or_else(|| format!("-{name} needs a value"))?,
                    };
                    match name.as_str() {
                        "namespace" => out.namespace = value,
                        "id" => out.id = value,
                        "bundle" => out.bundle = Some(value.into()),
                        // The events' address comes in the environment; the others are for other shims.
                        _ => {}
                    }
                }
                _ => return Err(format!("unknown flag -{name}")),
            }
        }
        Ok(out)
    }
}

/// Runs one action. `args`: without the program's name.
pub fn main(args: Vec<OsString>) -> ExitCode {
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("containerd-shim-kata-v2: {text}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Vec<OsString>) -> Result<(), String> {
    let args = Args::parse(args)?;
    if args.version || args.info {
        println!("containerd-shim-kata-v2 {}", env!("CARGO_PKG_VERSION"));
        return Ok(());
    }
    let bundle = match args.bundle.clone() {
        Some(bundle) => bundle,
        None => std::env::current_dir().map_err(|e| format!("no bundle: {e}"))?,
    };
    if args.namespace.is_empty() || args.id.is_empty() {
        return Err("-namespace and -id are needed (this program is run by containerd)".into());
    }
    SandboxId::new(args.id.clone()).map_err(|e| e.to_string())?;
    let owner = Owner::Containerd(args.namespace.clone());
    match args.action.as_str() {
        "start" => start(&args, owner, bundle),
        "delete" => delete(&args, &owner, &bundle),
        other => Err(format!("unknown action {other:?}: start and delete are what there is")),
    }
}

fn start(args: &Args, owner: Owner, bundle: PathBuf) -> Result<(), String> {
    // A spec that cannot be read is the daemon's to complain of, which does so where the log is.
    let place = kata_oci::load_spec(&bundle).map_or(Ok(Place::Own), |spec| place(&owner, &spec));
    let run_dir = match place.map_err(|e| e.to_string())? {
        Place::Own => launch_own(args, owner, &bundle)?,
        Place::In(sandbox) => {
            let run_dir = run_dir(&owner, &sandbox);
            if UnixStream::connect(task_socket(&run_dir)).is_err() {
                return Err(format!("container {} belongs into the sandbox {sandbox}, which does not run", args.id));
            }
            run_dir
        }
    };
    let address = format!("unix://{}", task_socket(&run_dir).display());
    // containerd 1.x reads this after its own restart; 2.x keeps what it was told.
    std::fs::write(bundle.join("address"), &address).map_err(|e| format!("{}/address: {e}", bundle.display()))?;
    let answer = answer(&address, std::env::var(MAX_VERSION).ok().as_deref());
    let mut out = std::io::stdout();
    out.write_all(answer.as_bytes()).and_then(|()| out.flush()).map_err(|e| format!("stdout: {e}"))
}

fn launch_own(args: &Args, owner: Owner, bundle: &Path) -> Result<PathBuf, String> {
    let log = bundle.join("log");
    let launched = launch(&Launch {
        owner,
        id: args.id.clone(),
        config: options::config_path().or_else(|| std::env::var_os("KATA_CONF_FILE").map(PathBuf::from)),
        debug: args.debug,
        log: log.exists().then_some(log),
        events: std::env::var("TTRPC_ADDRESS").ok().filter(|a| !a.is_empty()),
        bundle: bundle.to_owned(),
    });
    Ok(launched.map_err(|e| e.to_string())?.0)
}

/// What `start` prints: for a containerd that speaks the Task API's version 3, where and how it is spoken (containerd's
/// `BootstrapParams`); for an older one the bare address.
fn answer(address: &str, max_version: Option<&str>) -> String {
    match max_version.and_then(|v| v.parse::<u32>().ok()) {
        Some(3..) => serde_json::json!({ "version": 3, "address": address, "protocol": "ttrpc" }).to_string(),
        _ => address.to_owned(),
    }
}

/// The sandbox that a container is in: its own, if nothing says otherwise. The spec tells, as long as it can be read; else the
/// address that `start` has left in the bundle.
fn sandbox_dir(args: &Args, owner: &Owner, bundle: &Path, spec: Option<&Spec>) -> PathBuf {
    if let Some(Role::Container { sandbox }) = spec.and_then(|spec| role(spec).ok()) {
        return run_dir(owner, sandbox.as_str());
    }
    let own = run_dir(owner, &args.id);
    let address = std::fs::read_to_string(bundle.join("address")).unwrap_or_default();
    let socket = Path::new(address.trim().strip_prefix("unix://").unwrap_or_default());
    match socket.parent() {
        // Only ever one of ours: whoever could write that file could not name anything else to be removed.
        Some(dir) if dir.parent() == own.parent() && task_socket(dir) == socket => dir.to_owned(),
        _ => own,
    }
}

fn delete(args: &Args, owner: &Owner, bundle: &Path) -> Result<(), String> {
    let spec = kata_oci::load_spec(bundle).ok();
    let dir = sandbox_dir(args, owner, bundle, spec.as_ref());
    let own = dir == run_dir(owner, &args.id);
    // A container of a sandbox that still serves others is taken out of it, and nothing else is touched. containerd 1.6 calls
    // this for every container that it has deleted, the pod's sandbox among them.
    let others = || StateFile::load(&dir).ok().flatten().is_some_and(|s| s.containers.keys().any(|id| *id != args.id));
    let removed = if own && !others() { None } else { remove::from_living(&dir, &args.id) };
    let mut response = DeleteResponse::new();
    response.exited_at = convert::timestamp(SystemTime::now());
    response.exit_status = EXIT_LOST.cast_unsigned();
    match removed {
        Some(Ok(deleted)) => {
            response.exit_status = deleted.exit_status;
            response.pid = deleted.pid;
        }
        // It is not there (any more).
        Some(Err(remove::Failure::NotFound)) => {}
        Some(Err(remove::Failure::Other(text))) => return Err(text),
        None => {
            let cgroups_path = spec.as_ref().and_then(|s| s.linux.as_ref()).map(|l| l.cgroups_path.as_str());
            let remains = cleanup_container(&dir, &args.id, cgroups_path.filter(|_| own)).map_err(|e| e.to_string())?;
            if let Some(err) = remains.damaged {
                eprintln!("containerd-shim-kata-v2: {err}");
            }
            if let Some(record) = remains.state.and_then(|mut s| s.containers.remove(&args.id)) {
                response.exit_status = record.exit_status.unwrap_or(EXIT_LOST).cast_unsigned();
                response.pid = record.pid.cast_unsigned();
                poststop(&args.id, bundle, &record);
            }
        }
    }
    let bytes = response.write_to_bytes().map_err(|e| e.to_string())?;
    std::io::stdout().write_all(&bytes).map_err(|e| format!("stdout: {e}"))
}

fn poststop(id: &str, bundle: &std::path::Path, record: &kata_sandbox::ContainerRecord) {
    if record.poststop.is_empty() {
        return;
    }
    let state = kata_oci::State {
        oci_version: kata_oci::OCI_VERSION.into(),
        id: id.to_owned(),
        status: kata_oci::Status::Stopped,
        pid: 0,
        bundle: bundle.to_string_lossy().into_owned(),
        annotations: record.annotations.clone(),
    };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    for hook in &record.poststop {
        if let Err(err) = runtime.block_on(run_hooks("poststop", std::slice::from_ref(hook), &state, None)) {
            eprintln!("containerd-shim-kata-v2: {err}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_containerd_is_answered_in_what_it_speaks() {
        for old in [None, Some("2"), Some("")] {
            assert_eq!(answer("unix:///s", old), "unix:///s");
        }
        let new: serde_json::Value = serde_json::from_str(&answer("unix:///s", Some("3"))).unwrap();
        assert_eq!(new, serde_json::json!({ "version": 3, "address": "unix:///s", "protocol": "ttrpc" }));
    }

    #[test]
    fn flags_as_containerd_writes_them() {
        let args: Vec<OsString> =
            ["-namespace", "default", "-address", "/run/c.sock", "-publish-binary", "/bin/c", "-id", "x", "start"]
                .iter()
                .map(OsString::from)
                .collect();
        let a = Args::parse(args).unwrap();
        assert_eq!((a.namespace.as_str(), a.id.as_str(), a.action.as_str()), ("default", "x", "start"));
        let a = Args::parse(["--id=y", "-bundle=/b", "-debug", "delete"].iter().map(OsString::from).collect()).unwrap();
        assert_eq!((a.id.as_str(), a.debug, a.bundle), ("y", true, Some("/b".into())));
        assert!(Args::parse(vec!["-frob".into()]).is_err());
    }
}
