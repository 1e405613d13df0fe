//! On whose behalf the agent works: what a request is about goes along with its work, so that each line of the log that
//! comes of it names the container; and where the host traces the request, its phases are timed.

use std::future::Future;
use std::sync::Arc;

use kata_proto::peek::first_strings;
use kata_types::{ContainerId, ExecId};

use crate::recording::Recording;

tokio::task_local! {
    static CURRENT: Arc<Scope>;
}

/// What a request is about.
#[derive(Debug, Default)]
pub struct Scope {
    /// The container's id; empty where it is about none.
    pub container: String,
    /// The exec's id; empty where it is about none.
    pub exec: String,
    /// Its phases, where the host wants to know.
    pub recording: Option<Recording>,
}

/// Calls whose fields 1 and 2 are a container's id and an exec's.
const WITH_EXEC: &[&str] = &[
    "CloseStdin",
    "CreateContainer",
    "ExecProcess",
    "ReadStderr",
    "ReadStdout",
    "SignalProcess",
    "TtyWinResize",
    "WaitProcess",
    "WriteStdin",
];
/// Calls whose field 1 is a container's id.
const OF_CONTAINER: &[&str] = &[
    "ListProcesses",
    "PauseContainer",
    "RemoveContainer",
    "ResumeContainer",
    "StartContainer",
    "StatsContainer",
    "UpdateContainer",
];

impl Scope {
    /// Of a call with this message. What is no id is left out.
    pub fn of(call: &str, message: &[u8]) -> Scope {
        let with_exec = WITH_EXEC.contains(&call);
        if !with_exec && !OF_CONTAINER.contains(&call) {
            return Scope::default();
        }
        let [container, exec] = first_strings(message).unwrap_or_default();
        let exec = if with_exec { exec } else { String::new() };
        Scope {
            container: ContainerId::new(container).map(|id| id.to_string()).unwrap_or_default(),
            exec: ExecId::new(exec).map(|id| id.to_string()).unwrap_or_default(),
            recording: None,
        }
    }
}

/// Works in a scope.
pub async fn within<T>(scope: Arc<Scope>, work: impl Future<Output = T>) -> T {
    CURRENT.scope(scope, work).await
}

/// The scope of the task that asks.
pub fn current() -> Option<Arc<Scope>> {
    CURRENT.try_with(Arc::clone).ok()
}

/// Work that is a phase of the request: timed where the host traces it.
pub async fn phase<T>(name: &'static str, work: impl Future<Output = T>) -> T {
    let scope = current();
    let Some(recording) = scope.as_ref().and_then(|scope| scope.recording.as_ref()) else { return work.await };
    let begun = recording.now();
    let done = work.await;
    recording.phase(name, begun);
    done
}

/// Takes the scope along into a task of its own.
pub async fn carried<T>(scope: Option<Arc<Scope>>, work: impl Future<Output = T>) -> T {
    match scope {
        Some(scope) => within(scope, work).await,
        None => work.await,
    }
}

/// The same for work that blocks.
pub fn carried_blocking<T>(scope: Option<Arc<Scope>>, work: impl FnOnce() -> T) -> T {
    match scope {
        Some(scope) => CURRENT.sync_scope(scope, work),
        None => work(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kata_proto::agent as pb;
    use protobuf::Message;

    #[test]
    fn requests_are_about_what_they_name() {
        let exec = pb::ExecProcessRequest { container_id: "c".into(), exec_id: "e".into(), ..Default::default() };
        let bytes = exec.write_to_bytes().unwrap();
        let of = |call, message: &[u8]| {
            let scope = Scope::of(call, message);
            (scope.container, scope.exec)
        };
        assert_eq!(of("ExecProcess", &bytes), ("c".to_owned(), "e".to_owned()));
        // Its first field is no container.
        let sandbox = pb::CreateSandboxRequest { hostname: "h".into(), ..Default::default() };
        assert_eq!(of("CreateSandbox", &sandbox.write_to_bytes().unwrap()), Default::default());
        assert_eq!(of("ExecProcess", b"\x0a\xff"), Default::default());
        let forged = pb::StartContainerRequest { container_id: "c\"\n".into(), ..Default::default() };
        assert_eq!(of("StartContainer", &forged.write_to_bytes().unwrap()), Default::default());
    }

    #[test]
    fn a_scope_goes_along_with_work() {
        let rt = tokio::runtime::Builder::new_current_thread().build().unwrap();
        rt.block_on(async {
            assert!(current().is_none());
            let scope = Arc::new(Scope { container: "c".into(), ..Scope::default() });
            within(scope, async {
                let taken = current();
                let seen = tokio::spawn(carried(taken.clone(), async { current().unwrap().container.clone() }));
                assert_eq!(seen.await.unwrap(), "c");
                let seen =
                    tokio::task::spawn_blocking(|| carried_blocking(taken, || current().unwrap().container.clone()));
                assert_eq!(seen.await.unwrap(), "c");
            })
            .await;
        });
    }
}
