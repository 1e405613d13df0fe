//! Remote calls, each with a deadline, and errors that tell a refusal from a lost guest.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kata_metrics::Durations;
use kata_proto::agent as pb;
use kata_proto::agent_ttrpc::AgentServiceClient;
use thiserror::Error;
use ttrpc::r#async::transport::Socket;

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CallError {
    /// The agent answered with an error; the text is its own.
    #[error("{message}")]
    Refused {
        /// The call.
        call: &'static str,
        /// What kind, in ttrpc's (gRPC's) terms.
        not_found: bool,
        /// The agent does not know the call, or cannot do it.
        unsupported: bool,
        /// The agent's words.
        message: String,
    },
    /// The agent is gone, or the way to it.
    #[error("the agent was lost during {call}: {reason}")]
    Lost {
        /// The call.
        call: &'static str,
        /// What the transport said.
        reason: String,
    },
    /// It did not answer in time.
    #[error("the agent did not answer {call} within {} s", limit.as_secs())]
    Timeout {
        /// The call.
        call: &'static str,
        /// How long we waited.
        limit: Duration,
    },
}

impl CallError {
    fn new(call: &'static str, limit: Option<Duration>, err: ttrpc::Error) -> Self {
        match err {
            ttrpc::Error::RpcStatus(status) => match status.code() {
                ttrpc::Code::DEADLINE_EXCEEDED => CallError::Timeout { call, limit: limit.unwrap_or_default() },
                code => CallError::Refused {
                    call,
                    not_found: code == ttrpc::Code::NOT_FOUND,
                    unsupported: code == ttrpc::Code::UNIMPLEMENTED,
                    message: status.message().to_owned(),
                },
            },
            other => {
                let reason = other.to_string();
                // ttrpc reports its own local timer as text.
                if reason.contains("timeout") || reason.contains("Timeout") {
                    CallError::Timeout { call, limit: limit.unwrap_or_default() }
                } else {
                    CallError::Lost { call, reason }
                }
            }
        }
    }
}

/// A call that a live guest answers at once. Generous: without KVM, on a loaded host, a guest may be 100x slower.
const QUICK: Duration = Duration::from_secs(30);
/// A call that mounts, or starts a process.
const LONG: Duration = Duration::from_secs(120);

/// The calls that the engine makes. Clones share one connection.
#[derive(Clone)]
pub struct Calls {
    client: AgentServiceClient,
    durations: Arc<Durations>,
}

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident($request:ident) -> $answer:ty, $limit:expr;)*) => {
        impl Calls {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// [`CallError`].
                pub async fn $name(&self, request: pb::$request) -> Result<$answer, CallError> {
                    let limit: Option<Duration> = $limit;
                    let mut context = limit.map_or_else(ttrpc::context::Context::default, ttrpc::context::with_duration);
                    let begun = Instant::now();
                    let done = kata_trace::phase(concat!("agent.", stringify!($name)), async {
                        if let Some(parent) = kata_trace::traceparent() {
                            context.add("traceparent".into(), parent);
                        }
                        self.client.$name(context, &request).await
                    });
                    let done = done.await;
                    let took = begun.elapsed();
                    // Upstream's name of the action.
                    self.durations.observe(concat!("grpc.", stringify!($request)), took);
                    tracing::debug!(call = stringify!($name), ok = done.is_ok(), ?took, "the agent answers");
                    done.map(Into::into).map_err(|e| CallError::new(stringify!($name), limit, e))
                }
            )*
        }
    };
}

type Empty = protobuf::well_known_types::empty::Empty;

calls! {
    /// Prepares the guest for a sandbox: host name, storages.
    create_sandbox(CreateSandboxRequest) -> Empty, Some(LONG);
    /// Ends everything in the guest.
    destroy_sandbox(DestroySandboxRequest) -> Empty, Some(QUICK);
    /// Makes a container whose process waits.
    create_container(CreateContainerRequest) -> Empty, Some(LONG);
    /// Lets that process go.
    start_container(StartContainerRequest) -> Empty, Some(LONG);
    /// Removes a container and what is left of it.
    remove_container(RemoveContainerRequest) -> Empty, Some(LONG);
    /// Starts another process in a container.
    exec_process(ExecProcessRequest) -> Empty, Some(LONG);
    /// Sends a signal.
    signal_process(SignalProcessRequest) -> Empty, Some(QUICK);
    /// Waits for a process's end, however long that takes.
    wait_process(WaitProcessRequest) -> pb::WaitProcessResponse, None;
    /// Changes limits.
    update_container(UpdateContainerRequest) -> Empty, Some(QUICK);
    /// Tells of mounts that have changed.
    update_ephemeral_mounts(UpdateEphemeralMountsRequest) -> Empty, Some(LONG);
    /// Reads the container's cgroup.
    stats_container(StatsContainerRequest) -> pb::StatsContainerResponse, Some(QUICK);
    /// Freezes.
    pause_container(PauseContainerRequest) -> Empty, Some(QUICK);
    /// Thaws.
    resume_container(ResumeContainerRequest) -> Empty, Some(QUICK);
    /// Tells a terminal's size.
    tty_win_resize(TtyWinResizeRequest) -> Empty, Some(QUICK);
    /// Closes a process's stdin.
    close_stdin(CloseStdinRequest) -> Empty, Some(QUICK);
    /// The container's processes as the guest sees them.
    list_processes(ListProcessesRequest) -> pb::ListProcessesResponse, Some(QUICK);
    /// Waits for the next out-of-memory kill.
    get_oom_event(GetOOMEventRequest) -> pb::OOMEvent, None;
    /// Mixes in entropy.
    reseed_random_dev(ReseedRandomDevRequest) -> Empty, Some(QUICK);
    /// Sets the clock.
    set_guest_date_time(SetGuestDateTimeRequest) -> Empty, Some(QUICK);
    /// Brings present CPUs and memory on line.
    online_cpu_mem(OnlineCPUMemRequest) -> Empty, Some(LONG);
    /// The guest's packet filter, as iptables-save(8) or ip6tables-save prints it.
    get_ip_tables(GetIPTablesRequest) -> pb::GetIPTablesResponse, Some(QUICK);
    /// Replaces it, as iptables-restore(8) does; answers what it says.
    set_ip_tables(SetIPTablesRequest) -> pb::SetIPTablesResponse, Some(QUICK);
    /// The agent's and the guest's metrics, as a page in Prometheus' format.
    get_metrics(GetMetricsRequest) -> pb::Metrics, Some(QUICK);
    /// Makes an interface of the guest what the request says; waits for one that is just being plugged.
    update_interface(UpdateInterfaceRequest) -> kata_proto::types::Interface, Some(LONG);
    /// Makes the guest's routes what the list says.
    update_routes(UpdateRoutesRequest) -> pb::Routes, Some(QUICK);
    /// The guest's interfaces.
    list_interfaces(ListInterfacesRequest) -> pb::Interfaces, Some(QUICK);
    /// The guest's routes.
    list_routes(ListRoutesRequest) -> pb::Routes, Some(QUICK);
    /// Adds neighbours.
    add_arp_neighbors(AddARPNeighborsRequest) -> Empty, Some(QUICK);
    /// What the agent can do.
    get_guest_details(GuestDetailsRequest) -> pb::GuestDetailsResponse, Some(QUICK);
}

impl Calls {
    pub(crate) fn new(socket: Socket) -> Calls {
        let client = AgentServiceClient::new(ttrpc::r#async::Client::new(socket));
        Calls { client, durations: Arc::default() }
    }

    /// How long each call has taken.
    pub fn durations(&self) -> &Durations {
        &self.durations
    }
}
