//! From a daemon that listens to one that has a sandbox: at once where the bundle says what that is to be, later where
//! containerd's Sandbox API does.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use kata_config::Config;
use kata_metrics::Durations;
use kata_network::Netns;
use kata_oci::Spec;
use kata_sandbox::{HostCgroup, JoinedNetwork, Machine, Options, Origin, PodFiles, PodNames, Sandbox};
use kata_storage::View;
use kata_trace::Tracer;
use kata_types::SandboxId;
use kata_vmm_qemu::Qemu;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

use crate::attach::Attachments;
use crate::engine::{Engine, Publishing};
use crate::pod::Make;
use crate::{attach, management, publish};

/// What a sandbox begins with.
pub(super) enum Has {
    /// All of it.
    Machine {
        machine: Box<Machine>,
        /// The network of whoever asks for the sandbox.
        host: Netns,
        /// A new one for the sandbox.
        spare: Netns,
    },
    /// It has to get a machine.
    Nothing { host: Netns },
}

/// All that a sandbox is made of but its spec.
pub(super) struct Making {
    pub id: SandboxId,
    pub origin: Origin,
    pub run_dir: PathBuf,
    pub config: Config,
    pub vmm: Arc<Qemu>,
    pub has: Has,
    pub view: View,
    pub tracer: Option<Tracer>,
    pub namespace: String,
    /// Where containerd takes events.
    pub events: Option<String>,
    pub shims: UnixListener,
    pub operators: UnixListener,
    pub attachments: Attachments,
    pub durations: Arc<Durations>,
    pub engine: Arc<Engine>,
}

impl Making {
    /// Makes the sandbox that this spec is the first container of, and serves it. `pod`: what its containers get from it.
    ///
    /// # Errors
    /// A text; nothing of the sandbox is left but its directory.
    pub async fn make(self, spec: &Spec, pod: Option<&PodNames>) -> Result<(), String> {
        let (machine, host, spare) = match self.has {
            Has::Machine { machine, host, spare } => (Some(machine), host, Some(spare)),
            Has::Nothing { host } => (None, host, None),
        };
        let files = pod.map(|names| PodFiles::make(&self.run_dir, names, &self.view)).transpose();
        let files = files.map_err(|e| e.to_string())?;
        // Engines find the container's network through our pid: from here on this thread, the main one, is in it.
        let network = JoinedNetwork::of(spec, &self.config.runtime, host, spare).map_err(|e| e.to_string())?;
        let (events, received) = mpsc::unbounded_channel();
        // Last: from here on the sandbox's state file tells of it.
        let cgroups_path = spec.linux.as_ref().map_or("", |l| l.cgroups_path.as_str());
        let cgroup = if self.config.runtime.sandbox_cgroup_only {
            HostCgroup::make(cgroups_path)
        } else {
            // By the directory's name: an id is its owner's alone.
            let key = self.run_dir.file_name().unwrap_or_default().to_string_lossy();
            HostCgroup::make_split(cgroups_path, &key)
        };
        let cgroup = cgroup.map_err(|e| e.to_string())?;
        let options = Options {
            id: self.id,
            origin: self.origin,
            run_dir: self.run_dir,
            config: self.config,
            vmm: self.vmm,
            cgroup: cgroup.clone(),
            network,
            hostname: spec.hostname.clone(),
            events,
            view: self.view,
            files,
        };
        let begun = async {
            match machine {
                None => Sandbox::start(options),
                Some(machine) => Sandbox::adopt(options, *machine).await,
            }
        };
        let sandbox = kata_trace::within(self.tracer.as_ref(), begun).await;
        let sandbox = sandbox.map_err(|e| {
            cgroup.leave();
            cgroup.remove();
            e.to_string()
        })?;
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(publish::run(self.namespace, self.events, received, stopped));
        tokio::spawn(attach::serve(self.shims, self.attachments, Arc::clone(&sandbox)));
        tokio::spawn(management::serve(self.operators, Arc::clone(&sandbox), self.durations));
        self.engine.serve(sandbox, Publishing { task, stop });
        Ok(())
    }
}

#[async_trait]
impl Make for Making {
    async fn make(self: Box<Self>, spec: &Spec, names: &PodNames) -> Result<(), String> {
        Making::make(*self, spec, Some(names)).await
    }

    async fn abandon(self: Box<Self>) {
        let Has::Machine { machine, .. } = self.has else { return };
        if let Err(err) = machine.stop().await {
            tracing::warn!("{err}");
        }
    }
}
