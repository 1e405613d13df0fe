//! `exec`.

use kata_oci::{Capabilities, Process};

use crate::args::ExecArgs;
use crate::client::Daemon;
use crate::create::{Global, no_descriptors, write_pid};
use crate::error::CliError;
use crate::stand_in::{StandIn, StandInSpec};

/// `exec`.
pub async fn exec(global: &Global, a: ExecArgs) -> Result<u8, CliError> {
    no_descriptors(a.preserve_fds)?;
    let entry = global.store.get(&a.id)?;
    let run_dir = global.store.run_dir(&a.id, &entry);
    let daemon = Daemon::connect(&run_dir).await.ok_or(CliError::NotRunning)?;
    let state = daemon.state(&a.id, "").await?;
    match state.status {
        kata_oci::Status::Running | kata_oci::Status::Created => {}
        kata_oci::Status::Paused if a.ignore_paused => {}
        kata_oci::Status::Stopped => return Err(CliError::NotRunning),
        other => return Err(CliError::State { operation: "exec in", id: a.id, is: other.to_string() }),
    }
    let process = match &a.process {
        Some(path) => kata_oci::load_process(path)?,
        None => {
            let spec = kata_oci::load_spec(&entry.bundle)?;
            from_flags(&a, spec.process.unwrap_or_default())?
        }
    };
    // Unique among all execs of all time in this container: a pid is not reused while its process lives.
    let exec_id = format!("exec-{}-{}", std::process::id(), nanos());
    let stand_in = StandIn::start(&StandInSpec {
        run_dir: &run_dir,
        container: &a.id,
        exec: &exec_id,
        terminal: process.terminal,
        console_socket: a.console_socket.clone(),
        size: process.console_size.map(|s| [s.height, s.width]),
        first: Some(state.pid),
        network_of: state.pid,
        argv: &process.args,
    })?;
    daemon.exec(&a.id, &exec_id, &process).await?;
    if let Err(err) = daemon.start(&a.id, &exec_id).await {
        drop(daemon.delete(&a.id, &exec_id).await);
        return Err(CliError::Daemon(format!("exec failed: {}", CliError::from(err))));
    }
    if let Some(file) = &a.pid_file {
        write_pid(file, stand_in.pid())?;
    }
    if a.detach {
        stand_in.let_go();
        return Ok(0);
    }
    let code = stand_in.wait().await?;
    // Nobody asks for this one again. It may be gone with its container.
    drop(daemon.delete(&a.id, &exec_id).await);
    Ok(code)
}

fn nanos() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos()
}

/// The container's own process with what the flags change, as runc does it.
fn from_flags(a: &ExecArgs, mut p: Process) -> Result<Process, CliError> {
    if a.command.is_empty() {
        return Err(CliError::Usage("exec needs a command, or a process file with --process".into()));
    }
    p.args.clone_from(&a.command);
    p.terminal = a.tty;
    if let Some(cwd) = &a.cwd {
        p.cwd.clone_from(cwd);
    }
    p.env.extend(a.env.iter().cloned());
    p.no_new_privileges |= a.no_new_privs;
    if !a.cap.is_empty() {
        let caps = p.capabilities.get_or_insert_with(Capabilities::default);
        for cap in &a.cap {
            for set in [&mut caps.bounding, &mut caps.effective, &mut caps.permitted] {
                if !set.contains(cap) {
                    set.push(cap.clone());
                }
            }
        }
    }
    if let Some(user) = &a.user {
        let (uid, gid) = user.split_once(':').unwrap_or((user, ""));
        let number = |text: &str| {
            text.parse().map_err(|_| CliError::Usage(format!("--user {user:?}: give numbers, uid or uid:gid")))
        };
        p.user.uid = number(uid)?;
        if !gid.is_empty() {
            p.user.gid = number(gid)?;
        }
    }
    p.user.additional_gids.extend(&a.additional_gids);
    Ok(p)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Args, Verb};
    use clap::Parser;

    #[test]
    fn flags_change_the_containers_own_process() {
        let line = "kata-runtime exec -u 5:6 -e A=b --cwd /x --cap CAP_KILL id sh -c true";
        let Verb::Exec(a) = Args::try_parse_from(line.split(' ')).unwrap().verb else { panic!() };
        let p =
            from_flags(&a, Process { env: vec!["PATH=/bin".into()], terminal: true, ..Process::default() }).unwrap();
        assert_eq!((p.user.uid, p.user.gid, p.terminal, p.cwd.as_str()), (5, 6, false, "/x"));
        assert_eq!(p.env, ["PATH=/bin", "A=b"]);
        assert_eq!(p.capabilities.unwrap().effective, ["CAP_KILL"]);
        assert_eq!(p.args, ["sh", "-c", "true"]);
    }
}
