//! The service.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use containerd_shim_protos::sandbox_api as api;
use containerd_shim_protos::sandbox_async::Sandbox as Service;
use containerd_shim_protos::types::platform::Platform;
use kata_oci::{Spec, Status};
use kata_sandbox::{CreateRequest, Process, Role, Sandbox, StdioSpec};
use tokio::sync::{Mutex, Notify};
use ttrpc::r#async::TtrpcContext;
use ttrpc::{Code, Error, Result};

use super::{Make, spec};
use crate::engine::{Engine, failed};
use crate::{convert, stats};

/// How long the containers of a sandbox that is stopped may take to be killed, if the caller does not say.
const KILLED_WITHIN: Duration = Duration::from_secs(10);
/// How long the connection outlives its last answer. containerd's ttrpc client, where it finds an answer and the end of the
/// connection together, takes either; of the Task service's Shutdown it forgives that, and of this one's it does not.
const ANSWER_TAKEN: Duration = Duration::from_millis(50);
/// The two states that containerd knows.
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

/// The Sandbox API of one daemon, which is one sandbox.
pub struct SandboxService {
    id: String,
    bundle: PathBuf,
    engine: Arc<Engine>,
    /// What is still to be made; `None`: the bundle said at the beginning what it is.
    unmade: Mutex<Option<Box<dyn Make>>>,
    created_at: OnceLock<SystemTime>,
    exit: Arc<Notify>,
}

impl SandboxService {
    /// Of the sandbox of this id and bundle. `unmade`: unless the engine has its sandbox already. `exit` is notified when the
    /// daemon should end.
    pub fn new(
        id: &str,
        bundle: PathBuf,
        engine: Arc<Engine>,
        unmade: Option<Box<dyn Make>>,
        exit: Arc<Notify>,
    ) -> SandboxService {
        let (id, unmade, created_at) = (id.to_owned(), Mutex::new(unmade), OnceLock::new());
        SandboxService { id, bundle, engine, unmade, created_at, exit }
    }

    /// Whether nobody has asked for the sandbox; what was there for it is let go, and nobody can ask any more.
    pub async fn abandon(&self) -> bool {
        let unmade = self.unmade.lock().await.take();
        let Some(unmade) = unmade else { return false };
        unmade.abandon().await;
        true
    }

    /// Ends the daemon a moment after the answer to the request that is being served.
    fn end_soon(&self) {
        let exit = Arc::clone(&self.exit);
        tokio::spawn(async move {
            tokio::time::sleep(ANSWER_TAKEN).await;
            exit.notify_one();
        });
    }

    /// A request's id must be ours.
    fn mine(&self, id: &str) -> Result<()> {
        if id == self.id {
            return Ok(());
        }
        Err(convert::status(Code::NOT_FOUND, format!("sandbox {id} is not here: this is {}", self.id)))
    }

    fn sandbox(&self, id: &str) -> Result<&Arc<Sandbox>> {
        self.mine(id)?;
        self.engine.sandbox()
    }

    /// What stands for the sandbox.
    fn process(&self, id: &str) -> Result<Arc<Process>> {
        self.sandbox(id)?.process(id, "").map_err(failed)
    }

    /// The spec of what stands for the sandbox, written to where every container's is; the sandbox is there afterwards.
    async fn make(&self, r: &api::CreateSandboxRequest) -> Result<()> {
        let mut unmade = self.unmade.lock().await;
        let invalid = |e: String| convert::status(Code::INVALID_ARGUMENT, e);
        let pod = spec::config(r.options.as_ref()).map_err(|e| invalid(e.to_string()))?;
        if let Some(make) = unmade.take() {
            let spec = spec::spec(&self.id, &pod, &r.netns_path, &r.annotations);
            self.leave(&spec)?;
            return make.make(&spec, &spec::names(&pod)).await.map_err(|e| convert::status(Code::UNKNOWN, e));
        }
        if self.engine.sandbox()?.process(&self.id, "").is_ok() {
            return Err(convert::status(Code::ALREADY_EXISTS, format!("sandbox {} exists already", self.id)));
        }
        // Its spec came with the bundle; whatever that says it is, here it stands for its sandbox.
        let mut spec = kata_oci::load_spec(&self.bundle).map_err(|e| invalid(e.to_string()))?;
        if kata_sandbox::role(&spec).map_err(|e| invalid(e.to_string()))? == Role::Sandbox {
            return Ok(());
        }
        spec.annotations.insert(spec::TYPE.0.into(), spec::TYPE.1.into());
        self.leave(&spec)
    }

    fn leave(&self, spec: &Spec) -> Result<()> {
        let path = self.bundle.join("config.json");
        let bytes = serde_json::to_vec(spec).map_err(|e| convert::status(Code::INTERNAL, e.to_string()))?;
        std::fs::write(&path, bytes)
            .map_err(|e| convert::status(Code::UNKNOWN, format!("cannot write {}: {e}", path.display())))
    }

    async fn create(&self, r: &api::CreateSandboxRequest) -> Result<()> {
        self.make(r).await?;
        let request = CreateRequest {
            id: self.id.clone(),
            bundle: self.bundle.clone(),
            rootfs: Vec::new(),
            stdio: StdioSpec::default(),
            addresses: Default::default(),
            pid: std::process::id().cast_signed(),
        };
        self.engine.explained(self.engine.sandbox()?.create(request).await).await?;
        // It is created once.
        let _ = self.created_at.set(SystemTime::now());
        Ok(())
    }
}

#[async_trait]
impl Service for SandboxService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        r: api::CreateSandboxRequest,
    ) -> Result<api::CreateSandboxResponse> {
        self.mine(&r.sandbox_id)?;
        match self.create(&r).await {
            Ok(()) => Ok(api::CreateSandboxResponse::new()),
            Err(err) => {
                // Whoever asked gets the reason; there is nothing here to ask again.
                if !exists(&err) {
                    if let Ok(sandbox) = self.engine.sandbox() {
                        sandbox.shutdown().await;
                    }
                    self.end_soon();
                }
                Err(err)
            }
        }
    }

    async fn start_sandbox(&self, _: &TtrpcContext, r: api::StartSandboxRequest) -> Result<api::StartSandboxResponse> {
        let sandbox = self.sandbox(&r.sandbox_id)?;
        let pid = sandbox.start_process(&r.sandbox_id, "").await.map_err(failed)?;
        let mut out = api::StartSandboxResponse::new();
        out.pid = pid.cast_unsigned();
        out.created_at = self.created_at.get().copied().map(convert::timestamp).unwrap_or_default();
        Ok(out)
    }

    async fn platform(&self, _: &TtrpcContext, r: api::PlatformRequest) -> Result<api::PlatformResponse> {
        self.mine(&r.sandbox_id)?;
        let mut platform = Platform::new();
        platform.os = "linux".into();
        platform.architecture = go_arch(std::env::consts::ARCH).into();
        let mut out = api::PlatformResponse::new();
        out.platform = Some(platform).into();
        Ok(out)
    }

    async fn stop_sandbox(&self, _: &TtrpcContext, r: api::StopSandboxRequest) -> Result<api::StopSandboxResponse> {
        self.mine(&r.sandbox_id)?;
        // One that was never made has stopped.
        if let Ok(sandbox) = self.engine.sandbox() {
            let within = match r.timeout_secs {
                0 => KILLED_WITHIN,
                seconds => Duration::from_secs(seconds.into()),
            };
            sandbox.stop(within).await;
        }
        Ok(api::StopSandboxResponse::new())
    }

    async fn wait_sandbox(&self, _: &TtrpcContext, r: api::WaitSandboxRequest) -> Result<api::WaitSandboxResponse> {
        let exit = self.process(&r.sandbox_id)?.wait().await;
        let mut out = api::WaitSandboxResponse::new();
        out.exit_status = exit.status.cast_unsigned();
        out.exited_at = convert::timestamp(exit.at);
        Ok(out)
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        r: api::SandboxStatusRequest,
    ) -> Result<api::SandboxStatusResponse> {
        let (sandbox, process) = (self.sandbox(&r.sandbox_id)?, self.process(&r.sandbox_id)?);
        let mut out = api::SandboxStatusResponse::new();
        out.sandbox_id = r.sandbox_id;
        out.pid = process.pid.cast_unsigned();
        let ready = process.status() == Status::Running && sandbox.connected_agent().is_ok();
        out.state = if ready { READY } else { NOT_READY }.into();
        out.created_at = self.created_at.get().copied().map(convert::timestamp).unwrap_or_default();
        if let Some(exit) = process.exit() {
            out.exited_at = convert::timestamp(exit.at);
        }
        if r.verbose {
            out.info = info(sandbox);
        }
        Ok(out)
    }

    async fn ping_sandbox(&self, _: &TtrpcContext, r: api::PingRequest) -> Result<api::PingResponse> {
        self.sandbox(&r.sandbox_id)?.connected_agent().map_err(failed)?;
        Ok(api::PingResponse::new())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        r: api::ShutdownSandboxRequest,
    ) -> Result<api::ShutdownSandboxResponse> {
        self.mine(&r.sandbox_id)?;
        if !self.abandon().await
            && let Ok(sandbox) = self.engine.sandbox()
        {
            sandbox.stop(KILLED_WITHIN).await;
        }
        self.end_soon();
        Ok(api::ShutdownSandboxResponse::new())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        r: api::SandboxMetricsRequest,
    ) -> Result<api::SandboxMetricsResponse> {
        let sandbox = self.sandbox(&r.sandbox_id)?;
        let counted = self.engine.explained(sandbox.stats(&r.sandbox_id).await).await?;
        let mut out = api::SandboxMetricsResponse::new();
        let metrics = out.metrics.mut_or_insert_default();
        metrics.timestamp = convert::timestamp(SystemTime::now());
        metrics.id = r.sandbox_id;
        metrics.data = Some(stats::metrics(&counted, stats::Shape::of_host())?).into();
        Ok(out)
    }
}

fn exists(err: &Error) -> bool {
    matches!(err, Error::RpcStatus(status) if status.code() == Code::ALREADY_EXISTS)
}

/// What an operator may want to know of a sandbox: JSON under one name, as the CRI has it.
fn info(sandbox: &Sandbox) -> HashMap<String, String> {
    let processes = sandbox.machine_processes();
    let machine = serde_json::json!({
        "vmmPid": processes.vmm,
        "fileDaemonPid": processes.fs,
        "agentUrl": sandbox.agent_url(),
        "containers": sandbox.container_ids(),
    });
    [("machine".to_owned(), machine.to_string())].into()
}

/// An architecture in Go's words, which image platforms are written in.
fn go_arch(arch: &str) -> &str {
    match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}
