//! The agent's ttrpc services. A thin layer: each call names its work elsewhere and turns a failure into a status.
//!
//! ttrpc drops a handler when its connection ends or its deadline passes. Work that changes something therefore runs as
//! a task of its own, to its end, and the handler only waits for it.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;

use async_trait::async_trait;
use kata_proto::agent::{self as pb};
use kata_proto::agent_ttrpc::{AgentService, create_agent_service};
use kata_proto::channel::Stdio;
use kata_proto::health::{CheckRequest, HealthCheckResponse, ServingStatus, VersionCheckResponse};
use kata_proto::health_ttrpc::{Health, create_health};
use kata_proto::types;
use protobuf::well_known_types::empty::Empty;
use ttrpc::r#async::{Service, TtrpcContext};

use crate::container::blocking;
use crate::failure::Failure;
use crate::identity;
use crate::network::{NetworkError, iptables};
use crate::observed::observed;
use crate::sandbox::Guest;
use crate::scope;
use crate::{copy, devices, engine, hotplug, metrics, procfs, storage};

/// The calls that are answered; ttrpc answers UNIMPLEMENTED with the name to all others.
const CALLS: &[&str] = &[
    "AddARPNeighbors",
    "CloseStdin",
    "CopyFile",
    "CreateContainer",
    "CreateSandbox",
    "DestroySandbox",
    "ExecProcess",
    "GetGuestDetails",
    "GetIPTables",
    "GetMetrics",
    "GetOOMEvent",
    "ListInterfaces",
    "ListProcesses",
    "ListRoutes",
    "OnlineCPUMem",
    "PauseContainer",
    "ReadStderr",
    "ReadStdout",
    "RemoveContainer",
    "ReseedRandomDev",
    "ResumeContainer",
    "SetGuestDateTime",
    "SetIPTables",
    "SignalProcess",
    "StartContainer",
    "StatsContainer",
    "TtyWinResize",
    "UpdateContainer",
    "UpdateEphemeralMounts",
    "UpdateInterface",
    "UpdateRoutes",
    "WaitProcess",
    "WriteStdin",
];

/// Told in GetGuestDetails: stdio travels in streams of its own (`kata_proto::channel`).
const STREAMS_FEATURE: &str = "kata-rs.streams";
/// UpdateEphemeralMounts takes storages of driver "watchable-bind", and looks at them again.
const WATCH_FEATURE: &str = "kata-rs.watch";

/// The services for a ttrpc server.
pub fn services(guest: Arc<Guest>) -> [HashMap<String, Service>; 2] {
    let mut agent = create_agent_service(Arc::new(Agent(guest)));
    for service in agent.values_mut() {
        service.methods.retain(|name, _| CALLS.contains(&name.as_str()));
    }
    let agent = agent.into_iter().map(|(name, service)| (name, observed(service))).collect();
    [agent, create_health(Arc::new(Liveness))]
}

struct Agent(Arc<Guest>);
struct Liveness;

type Answer<T> = ttrpc::Result<T>;

/// Runs work to its end even if nobody waits for it any more.
async fn finish<T: Send + 'static>(
    work: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::spawn(scope::carried(scope::current(), work)).await {
        Ok(result) => result,
        Err(e) => Err(Failure::Internal(format!("the agent failed: {e}"))),
    }
}

/// Whether a time in seconds is the present, give or take what a call takes.
fn is_now(seconds: i64) -> bool {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    seconds.abs_diff(i64::try_from(now).unwrap_or(i64::MAX)) <= 10
}

fn done(result: Result<(), Failure>) -> Answer<Empty> {
    Ok(result.map(|()| Empty::new())?)
}

impl Agent {
    /// Refused where the machine is somebody else's.
    fn own_machine(&self, what: &str) -> Result<(), Failure> {
        if self.0.owns_machine {
            Ok(())
        } else {
            Err(Failure::Unsupported(format!("{what}, for this agent runs as an ordinary process")))
        }
    }

    /// Runs what asks the kernel about the network.
    async fn network<T: Send + 'static>(
        &self,
        work: impl FnOnce(&crate::network::Network) -> Result<T, NetworkError> + Send + 'static,
    ) -> Result<T, Failure> {
        let guest = self.0.clone();
        blocking(move || Ok(work(&guest.network)?)).await
    }

    async fn read(&self, r: pb::ReadStreamRequest, which: Stdio) -> Answer<pb::ReadStreamResponse> {
        let process = self.0.container(&r.container_id)?.process(&r.exec_id)?;
        let data = process.read_output(which, r.len).await?;
        Ok(pb::ReadStreamResponse { data, ..Default::default() })
    }
}

#[async_trait]
impl AgentService for Agent {
    async fn create_sandbox(&self, _: &TtrpcContext, r: pb::CreateSandboxRequest) -> Answer<Empty> {
        let guest = self.0.clone();
        done(finish(async move { guest.create_sandbox(r).await }).await)
    }

    async fn destroy_sandbox(&self, _: &TtrpcContext, _: pb::DestroySandboxRequest) -> Answer<Empty> {
        let guest = self.0.clone();
        done(finish(async move { guest.destroy_sandbox().await }).await)
    }

    async fn create_container(&self, _: &TtrpcContext, r: pb::CreateContainerRequest) -> Answer<Empty> {
        let guest = self.0.clone();
        done(finish(async move { guest.create_container(r).await }).await)
    }

    async fn start_container(&self, _: &TtrpcContext, r: pb::StartContainerRequest) -> Answer<Empty> {
        let container = self.0.container(&r.container_id)?;
        done(finish(async move { container.start().await }).await)
    }

    async fn remove_container(&self, _: &TtrpcContext, r: pb::RemoveContainerRequest) -> Answer<Empty> {
        let guest = self.0.clone();
        let id = r.container_id.clone();
        let work = finish(async move { guest.remove_container(&r.container_id).await });
        if r.timeout == 0 {
            return done(work.await);
        }
        let limit = std::time::Duration::from_secs(r.timeout.into());
        match tokio::time::timeout(limit, work).await {
            Ok(result) => done(result),
            Err(_) => {
                done(Err(Failure::State(format!("container {id} is still being removed after {} s", limit.as_secs()))))
            }
        }
    }

    async fn exec_process(&self, _: &TtrpcContext, r: pb::ExecProcessRequest) -> Answer<Empty> {
        let guest = self.0.clone();
        done(finish(async move { guest.exec(r).await }).await)
    }

    async fn signal_process(&self, _: &TtrpcContext, r: pb::SignalProcessRequest) -> Answer<Empty> {
        done(self.0.container(&r.container_id)?.signal(&r.exec_id, r.signal))
    }

    async fn wait_process(&self, _: &TtrpcContext, r: pb::WaitProcessRequest) -> Answer<pb::WaitProcessResponse> {
        let status = self.0.container(&r.container_id)?.wait(&r.exec_id).await?;
        Ok(pb::WaitProcessResponse { status, ..Default::default() })
    }

    async fn update_container(&self, _: &TtrpcContext, r: pb::UpdateContainerRequest) -> Answer<Empty> {
        let container = self.0.container(&r.container_id)?;
        let Some(resources) = r.resources.0 else { return done(Ok(())) };
        done(finish(async move { container.update(*resources).await }).await)
    }

    async fn stats_container(
        &self,
        _: &TtrpcContext,
        r: pb::StatsContainerRequest,
    ) -> Answer<pb::StatsContainerResponse> {
        Ok(self.0.stats(&r.container_id).await?)
    }

    async fn pause_container(&self, _: &TtrpcContext, r: pb::PauseContainerRequest) -> Answer<Empty> {
        let container = self.0.container(&r.container_id)?;
        done(finish(async move { container.pause().await }).await)
    }

    async fn resume_container(&self, _: &TtrpcContext, r: pb::ResumeContainerRequest) -> Answer<Empty> {
        let container = self.0.container(&r.container_id)?;
        done(finish(async move { container.resume().await }).await)
    }

    async fn write_stdin(&self, _: &TtrpcContext, r: pb::WriteStreamRequest) -> Answer<pb::WriteStreamResponse> {
        let process = self.0.container(&r.container_id)?.process(&r.exec_id)?;
        process.write_stdin(&r.data).await?;
        Ok(pb::WriteStreamResponse { len: r.data.len() as u32, ..Default::default() })
    }

    async fn read_stdout(&self, _: &TtrpcContext, r: pb::ReadStreamRequest) -> Answer<pb::ReadStreamResponse> {
        self.read(r, Stdio::Out).await
    }

    async fn read_stderr(&self, _: &TtrpcContext, r: pb::ReadStreamRequest) -> Answer<pb::ReadStreamResponse> {
        self.read(r, Stdio::Err).await
    }

    async fn close_stdin(&self, _: &TtrpcContext, r: pb::CloseStdinRequest) -> Answer<Empty> {
        self.0.container(&r.container_id)?.process(&r.exec_id)?.close_stdin();
        done(Ok(()))
    }

    async fn tty_win_resize(&self, _: &TtrpcContext, r: pb::TtyWinResizeRequest) -> Answer<Empty> {
        done(self.0.container(&r.container_id)?.process(&r.exec_id)?.resize(r.row, r.column))
    }

    async fn list_processes(&self, _: &TtrpcContext, r: pb::ListProcessesRequest) -> Answer<pb::ListProcessesResponse> {
        let pids = self.0.container(&r.container_id)?.pids().await?;
        let process_list = procfs::list(&pids, &r.format, &r.args)?;
        Ok(pb::ListProcessesResponse { process_list, ..Default::default() })
    }

    async fn update_ephemeral_mounts(&self, _: &TtrpcContext, r: pb::UpdateEphemeralMountsRequest) -> Answer<Empty> {
        let guest = self.0.clone();
        done(finish(async move { guest.update_storages(r.storages).await }).await)
    }

    async fn update_interface(&self, _: &TtrpcContext, r: pb::UpdateInterfaceRequest) -> Answer<types::Interface> {
        Ok(self.network(move |network| network.update_interface(&r.interface)).await?)
    }

    async fn update_routes(&self, _: &TtrpcContext, r: pb::UpdateRoutesRequest) -> Answer<pb::Routes> {
        let list = self.network(move |network| network.update_routes(&r.routes.Routes)).await?;
        Ok(pb::Routes { Routes: list, ..Default::default() })
    }

    async fn list_interfaces(&self, _: &TtrpcContext, _: pb::ListInterfacesRequest) -> Answer<pb::Interfaces> {
        let list = self.network(|network| network.interfaces()).await?;
        Ok(pb::Interfaces { Interfaces: list, ..Default::default() })
    }

    async fn list_routes(&self, _: &TtrpcContext, _: pb::ListRoutesRequest) -> Answer<pb::Routes> {
        let list = self.network(|network| network.routes()).await?;
        Ok(pb::Routes { Routes: list, ..Default::default() })
    }

    async fn add_arp_neighbors(&self, _: &TtrpcContext, r: pb::AddARPNeighborsRequest) -> Answer<Empty> {
        done(self.network(move |network| network.add_neighbours(&r.neighbors.ARPNeighbors)).await)
    }

    async fn get_ip_tables(&self, _: &TtrpcContext, r: pb::GetIPTablesRequest) -> Answer<pb::GetIPTablesResponse> {
        let reaper = self.0.reaper().clone();
        let data = finish(async move { iptables::save(&reaper, r.is_ipv6).await }).await?;
        Ok(pb::GetIPTablesResponse { data, ..Default::default() })
    }

    async fn set_ip_tables(&self, _: &TtrpcContext, r: pb::SetIPTablesRequest) -> Answer<pb::SetIPTablesResponse> {
        let reaper = self.0.reaper().clone();
        let data = finish(async move { iptables::restore(&reaper, r.is_ipv6, &r.data).await }).await?;
        Ok(pb::SetIPTablesResponse { data, ..Default::default() })
    }

    /// `nb_cpus` more CPUs, the lowest numbers first, or `offline_cpus` fewer; unless `cpu_only`, all memory.
    async fn online_cpu_mem(&self, _: &TtrpcContext, r: pb::OnlineCPUMemRequest) -> Answer<Empty> {
        self.own_machine("bringing CPUs and memory on line")?;
        let wait = r.wait.then(|| self.0.hotplug_timeout());
        done(
            blocking(move || {
                hotplug::fewer_cpus(r.offline_cpus).map_err(|e| Failure::internal(&e))?;
                hotplug::cpus(r.nb_cpus, wait).map_err(|e| Failure::internal(&e))?;
                if r.cpu_only { Ok(()) } else { hotplug::memory().map_err(|e| Failure::internal(&e)) }
            })
            .await,
        )
    }

    async fn reseed_random_dev(&self, _: &TtrpcContext, r: pb::ReseedRandomDevRequest) -> Answer<Empty> {
        let reseed = || {
            let random = File::options().read(true).write(true).open("/dev/random")?;
            kata_sys::guest::add_entropy(&random, &r.data)?;
            kata_sys::guest::reseed_crng(&random)
        };
        if let Err(e) = reseed() {
            return done(Err(Failure::io("cannot add to /dev/random", &e)));
        }
        // It is the machine's own from now on, and so is what is made of it.
        done(if self.0.owns_machine { identity::machine_id() } else { Ok(()) })
    }

    async fn get_guest_details(
        &self,
        _: &TtrpcContext,
        r: pb::GuestDetailsRequest,
    ) -> Answer<pb::GuestDetailsResponse> {
        let agent = pb::AgentDetails {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            init_daemon: self.0.owns_machine,
            device_handlers: devices::HANDLERS.iter().map(|d| (*d).to_owned()).collect(),
            storage_handlers: storage::DRIVERS.iter().map(|d| (*d).to_owned()).collect(),
            supports_seccomp: engine::SECCOMP,
            extra_features: vec![STREAMS_FEATURE.to_owned(), WATCH_FEATURE.to_owned()],
            ..Default::default()
        };
        Ok(pb::GuestDetailsResponse {
            mem_block_size_bytes: if r.mem_block_size { hotplug::memory_block_bytes().unwrap_or(0) } else { 0 },
            support_mem_hotplug_probe: r.mem_hotplug_probe && hotplug::memory_probe(),
            agent_details: Some(agent).into(),
            ..Default::default()
        })
    }

    async fn set_guest_date_time(&self, _: &TtrpcContext, r: pb::SetGuestDateTimeRequest) -> Answer<Empty> {
        if !self.0.owns_machine && is_now(r.Sec) {
            return done(Ok(()));
        }
        self.own_machine("setting the clock")?;
        done(
            kata_sys::guest::set_realtime(r.Sec, r.Usec)
                .map_err(|e| Failure::io(format_args!("cannot set the clock to {}.{:06}", r.Sec, r.Usec), &e)),
        )
    }

    async fn copy_file(&self, _: &TtrpcContext, r: pb::CopyFileRequest) -> Answer<Empty> {
        done(blocking(move || copy::copy(&r).map_err(|e| Failure::internal(&e))).await)
    }

    async fn get_metrics(&self, _: &TtrpcContext, _: pb::GetMetricsRequest) -> Answer<pb::Metrics> {
        let metrics = blocking(|| Ok(metrics::page())).await?;
        Ok(pb::Metrics { metrics, ..Default::default() })
    }

    async fn get_oom_event(&self, _: &TtrpcContext, _: pb::GetOOMEventRequest) -> Answer<pb::OOMEvent> {
        let container_id = self.0.oom.next().await;
        Ok(pb::OOMEvent { container_id, ..Default::default() })
    }
}

#[async_trait]
impl Health for Liveness {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> Answer<HealthCheckResponse> {
        Ok(HealthCheckResponse { status: ServingStatus::SERVING.into(), ..Default::default() })
    }

    async fn version(&self, _: &TtrpcContext, _: CheckRequest) -> Answer<VersionCheckResponse> {
        Ok(VersionCheckResponse {
            // Upstream's interface revision; field numbers are its.
            grpc_version: "0.0.1".to_owned(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
    }
}
