//! The interface's calls over containerd's unix socket. They wait, each at most until its deadline.

use std::path::Path;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
pub use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use crate::api;
use crate::api::image_service_client::ImageServiceClient;
use crate::api::runtime_service_client::RuntimeServiceClient;

/// For a call that may start or end a VM on a slow machine, among twenty others.
pub const DEADLINE: Duration = Duration::from_secs(120);
/// The interface caps an ExecSync's outputs at 16 MiB each.
const LARGEST: usize = 40 << 20;

/// A connection to the runtime. It connects again by itself when containerd was started again.
pub struct Client {
    runtime: Runtime,
    channel: Channel,
}

impl Client {
    /// To this socket, which need not be there yet.
    ///
    /// # Panics
    /// Without a tokio runtime, or on a path that is no URI.
    pub fn new(socket: &Path) -> Client {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.unwrap_or_else(|e| panic!("no tokio runtime: {e}"));
        let address = format!("unix://{}", socket.display());
        let endpoint = Endpoint::from_shared(address).unwrap_or_else(|e| panic!("{}: {e}", socket.display()));
        let channel = {
            // The channel's worker is a task of this runtime.
            let _in = runtime.enter();
            endpoint.connect_lazy()
        };
        Client { runtime, channel }
    }

    fn call<T>(
        &self,
        answer: impl Future<Output = Result<Response<T>, Status>>,
        within: Duration,
    ) -> Result<T, Status> {
        self.runtime.block_on(async {
            match tokio::time::timeout(within, answer).await {
                Ok(answer) => answer.map(Response::into_inner),
                Err(_) => Err(Status::deadline_exceeded(format!("no answer within {} s", within.as_secs()))),
            }
        })
    }

    fn runtime_service(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(LARGEST)
    }

    /// The images that there are.
    ///
    /// # Errors
    /// The service's.
    pub fn list_images(&self) -> Result<api::ListImagesResponse, Status> {
        let mut service = ImageServiceClient::new(self.channel.clone());
        self.call(service.list_images(api::ListImagesRequest { filter: None }), DEADLINE)
    }
}

/// One method for each call.
macro_rules! calls {
    ($($name:ident($request:ident) -> $response:ident: $what:literal;)*) => {
        impl Client {
            $(
                #[doc = $what]
                ///
                /// # Errors
                /// The runtime's, or that it did not answer in time.
                pub fn $name(&self, request: api::$request) -> Result<api::$response, Status> {
                    let mut service = self.runtime_service();
                    self.call(service.$name(request), DEADLINE)
                }
            )*
        }
    };
}

calls! {
    version(VersionRequest) -> VersionResponse: "Who the runtime is.";
    status(StatusRequest) -> StatusResponse: "Whether it is ready, and its network.";
    run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse: "Makes a pod and starts it.";
    stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse: "Ends a pod and all that runs in it.";
    remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse: "Removes a pod, ended or not.";
    pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse: "What there is to tell of a pod.";
    list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse: "All pods.";
    create_container(CreateContainerRequest) -> CreateContainerResponse: "Makes a container in a pod.";
    start_container(StartContainerRequest) -> StartContainerResponse: "Starts it.";
    stop_container(StopContainerRequest) -> StopContainerResponse: "Ends it, with SIGKILL after a while.";
    remove_container(RemoveContainerRequest) -> RemoveContainerResponse: "Removes it.";
    list_containers(ListContainersRequest) -> ListContainersResponse: "All containers.";
    container_status(ContainerStatusRequest) -> ContainerStatusResponse: "What there is to tell of a container.";
    update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse:
        "Other limits for a container that runs.";
    reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse: "Its log was moved: a new one is made.";
    exec_sync(ExecSyncRequest) -> ExecSyncResponse: "Runs a command in a container to its end.";
    exec(ExecRequest) -> ExecResponse: "Where a command of a container can be run with streams.";
    attach(AttachRequest) -> AttachResponse: "Where a container's own streams can be had.";
    port_forward(PortForwardRequest) -> PortForwardResponse: "Where connections into a pod can be had.";
    container_stats(ContainerStatsRequest) -> ContainerStatsResponse: "What a container uses.";
    list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse: "What containers use.";
    pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse: "What a pod uses.";
    list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse: "What pods use.";
}
