//! Taking one container out of a sandbox that goes on, for a containerd that has lost sight of it.

use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::api;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use kata_sandbox::{has_died, task_socket};
use ttrpc::Code;
use ttrpc::context::with_duration;

/// Longer than the daemon takes to end a container; containerd gives `delete` five seconds by default and more on request.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// Why it could not be done.
pub enum Failure {
    /// The sandbox has no such container.
    NotFound,
    /// Anything else, in the daemon's words.
    Other(String),
}

/// Kills and deletes a container in the sandbox that serves at `run_dir`, and lets the sandbox end if that was its last; `None`:
/// none serves there.
pub fn from_living(run_dir: &Path, id: &str) -> Option<Result<api::DeleteResponse, Failure>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(e) => return Some(Err(Failure::Other(format!("no event loop: {e}")))),
    };
    runtime.block_on(async {
        let address = format!("unix://{}", task_socket(run_dir).display());
        let task = TaskClient::new(Client::connect(&address).await.ok()?);
        let done = remove(&task, id).await;
        // One that has ended just now has said nothing of it.
        let said = matches!(done, Ok(_) | Err(ttrpc::Error::RpcStatus(_)));
        (said || !has_died(run_dir)).then(|| done.map_err(failure))
    })
}

async fn remove(task: &TaskClient, id: &str) -> ttrpc::Result<api::DeleteResponse> {
    let context = || with_duration(ANSWER_WITHIN);
    let kill = api::KillRequest { id: id.to_owned(), signal: 9, all: true, ..Default::default() };
    task.kill(context(), &kill).await?;
    let wait = api::WaitRequest { id: id.to_owned(), ..Default::default() };
    task.wait(context(), &wait).await?;
    let delete = api::DeleteRequest { id: id.to_owned(), ..Default::default() };
    let deleted = task.delete(context(), &delete).await?;
    let shutdown = api::ShutdownRequest { id: id.to_owned(), ..Default::default() };
    // The last one's daemon may be gone before its answer.
    drop(task.shutdown(context(), &shutdown).await);
    Ok(deleted)
}

fn failure(err: ttrpc::Error) -> Failure {
    match err {
        ttrpc::Error::RpcStatus(status) if status.code() == Code::NOT_FOUND => Failure::NotFound,
        other => Failure::Other(format!("the sandbox's daemon cannot remove the container: {other}")),
    }
}
