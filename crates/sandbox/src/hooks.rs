//! Hooks that run on the host (config.md, "POSIX-platform Hooks").

use std::os::fd::AsFd;
use std::process::Stdio;
use std::time::Duration;

use kata_network::Netns;
use kata_oci::{Hook, State};
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Why a hook failed.
#[derive(Debug, Error)]
pub enum HookError {
    /// It could not be started.
    #[error("cannot run the {point} hook {path}: {source}")]
    Start {
        /// Which point of the lifecycle.
        point: &'static str,
        /// The program.
        path: String,
        /// Why not.
        source: std::io::Error,
    },
    /// It failed.
    #[error("the {point} hook {path} failed: {status}{}", if .stderr.is_empty() { String::new() } else { format!(": {}", .stderr) })]
    Failed {
        /// Which point of the lifecycle.
        point: &'static str,
        /// The program.
        path: String,
        /// Exit status or signal.
        status: String,
        /// What it said.
        stderr: String,
    },
    /// It took longer than it may.
    #[error("the {point} hook {path} did not end within its {} s", limit.as_secs())]
    Timeout {
        /// Which point of the lifecycle.
        point: &'static str,
        /// The program.
        path: String,
        /// Its limit.
        limit: Duration,
    },
}

/// Runs hooks one after the other, with the state on their stdin; the first that fails ends it. `network`: the network
/// namespace in which they run; `None`: the caller's.
///
/// # Errors
/// [`HookError`].
pub async fn run(point: &'static str, hooks: &[Hook], state: &State, network: Option<&Netns>) -> Result<(), HookError> {
    for hook in hooks {
        one(point, hook, state, network).await?;
    }
    Ok(())
}

async fn one(point: &'static str, hook: &Hook, state: &State, network: Option<&Netns>) -> Result<(), HookError> {
    let path = hook.path.clone();
    let start = |source| HookError::Start { point, path: path.clone(), source };
    let mut command = Command::new(&hook.path);
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    command.env_clear().envs(hook.env.iter().filter_map(|e| e.split_once('=')));
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    if let Some(netns) = network {
        let netns = netns.as_fd().try_clone_to_owned().map_err(start)?;
        kata_sys::process::start_in_network(command.as_std_mut(), netns);
    }
    let mut child = command.spawn().map_err(start)?;
    let text = serde_json::to_vec(state).map_err(|e| start(e.into()))?;
    let work = async {
        if let Some(mut stdin) = child.stdin.take() {
            // A hook that does not read its stdin is free not to.
            drop(stdin.write_all(&text).await);
        }
        child.wait_with_output().await
    };
    let done = match hook.timeout.and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0) {
        Some(seconds) => {
            let limit = Duration::from_secs(seconds);
            tokio::time::timeout(limit, work).await.map_err(|_| HookError::Timeout {
                point,
                path: path.clone(),
                limit,
            })?
        }
        None => work.await,
    };
    let output = done.map_err(start)?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().chars().take(2000).collect();
    Err(HookError::Failed { point, path, status: output.status.to_string(), stderr })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(script: &str, timeout: Option<i64>) -> Hook {
        let args = ["sh", "-c", script].map(str::to_owned).to_vec();
        Hook { path: "/bin/sh".into(), args, env: vec!["A=b".into(), "PATH=/bin:/usr/bin".into()], timeout }
    }

    #[test]
    fn hooks_get_state_and_environment_and_their_failures_are_told() {
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let state = State {
            oci_version: "1.0.2".into(),
            id: "c1".into(),
            status: kata_oci::Status::Creating,
            pid: 4,
            bundle: "/b".into(),
            annotations: Default::default(),
        };
        rt.block_on(async {
            let ok = hook(r#"test "$A" = b && grep -q '"id":"c1"'"#, None);
            run("prestart", &[ok], &state, None).await.unwrap();
            let e = run("prestart", &[hook("echo why >&2; exit 3", None)], &state, None).await.unwrap_err().to_string();
            assert!(e.contains("exit status: 3") && e.contains("why"), "{e}");
            let e = run("prestart", &[hook("sleep 30", Some(1))], &state, None).await.unwrap_err().to_string();
            assert!(e.contains("within its 1 s"), "{e}");
            let missing = Hook { path: "/nowhere".into(), ..Hook::default() };
            assert!(run("poststop", &[missing], &state, None).await.unwrap_err().to_string().contains("/nowhere"));
        });
    }
}
