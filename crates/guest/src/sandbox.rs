//! The guest as the host knows it: one sandbox, its containers, its storages.

use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kata_proto::agent::{
    CreateContainerRequest, CreateSandboxRequest, Device, ExecProcessRequest, KernelModule, StatsContainerResponse,
    Storage,
};
use kata_proto::oci::LinuxNamespace;
use kata_types::{ContainerId, ExecId, GUEST_NS_DIR, GUEST_SANDBOX_DIR, SandboxId};
use protobuf::MessageField;
use tokio::task::AbortHandle;

use crate::container::{Container, Context, blocking};
use crate::devices;
use crate::failure::Failure;
use crate::inodes;
use crate::namespaces::Namespaces;
use crate::network::Network;
use crate::oom::Oom;
use crate::params::Params;
use crate::process::Wanted;
use crate::reaper::Reaper;
use crate::scope;
use crate::storage::Storages;
use crate::watched;
use crate::{engine, procfs};

/// Everything that lives in this guest.
pub struct Guest {
    /// What the kernel command line said.
    pub params: Params,
    /// Whether this agent is PID 1 of a machine of its own, whose clock, CPUs and memory it may change.
    pub owns_machine: bool,
    /// Out-of-memory kills.
    pub oom: Oom,
    /// Interfaces and routes.
    pub network: Network,
    context: Context,
    storages: Arc<Storages>,
    polling: Arc<AtomicBool>,
    namespaces: Namespaces,
    containers: Mutex<HashMap<String, Slot>>,
    sandbox: tokio::sync::Mutex<Option<Sandbox>>,
}

enum Slot {
    /// Being created: the id is taken.
    Creating,
    Ready(Arc<Container>),
}

#[derive(Default)]
struct Sandbox {
    /// Empty as long as it waits for it.
    id: String,
    storages: Vec<PathBuf>,
    /// Ends with the sandbox.
    inodes: Option<AbortHandle>,
}

impl Sandbox {
    fn stop_watching(&self) {
        if let Some(watch) = &self.inodes {
            watch.abort();
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.stop_watching();
    }
}

impl Guest {
    /// An empty guest.
    pub fn new(params: Params, owns_machine: bool, oom: Oom, context: Context, storages: Storages) -> Self {
        let network = Network::new(params.hotplug_timeout, owns_machine);
        Guest {
            network,
            params,
            owns_machine,
            oom,
            namespaces: Namespaces::new(context.reaper.clone()),
            context,
            storages: Arc::new(storages),
            polling: Arc::default(),
            containers: Mutex::default(),
            sandbox: tokio::sync::Mutex::default(),
        }
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prepares the guest: host name, name servers, modules, storages. A guest that was prepared without an id, before
    /// its sandbox was known, is given its id and all the rest by a second call.
    pub async fn create_sandbox(&self, request: CreateSandboxRequest) -> Result<(), Failure> {
        let mut sandbox = self.sandbox.lock().await;
        match &*sandbox {
            Some(there) if !there.id.is_empty() => {
                return Err(Failure::Exists(format!("this guest is sandbox {} already", there.id)));
            }
            Some(_) if request.sandbox_id.is_empty() => {
                return Err(Failure::Exists("this guest is prepared already, and waits for its id".into()));
            }
            _ => {}
        }
        if !request.sandbox_id.is_empty() {
            SandboxId::new(request.sandbox_id.as_str()).map_err(|e| Failure::Invalid(e.to_string()))?;
        }
        if !request.guest_hook_path.is_empty() {
            return Err(Failure::Unsupported("hooks of the guest".into()));
        }
        request.kernel_modules.iter().try_for_each(module_is_there)?;
        if !request.hostname.is_empty() {
            rustix::system::sethostname(request.hostname.as_bytes())
                .map_err(|e| Failure::io(format_args!("cannot set the host name {:?}", request.hostname), &e.into()))?;
        }
        if request.sandbox_pidns {
            self.namespaces.prepare_pids().await?;
        }
        let limit = request.storages.iter().filter_map(|storage| inodes::limit(&storage.driver_options)).min();
        let first = sandbox.is_none();
        let (storages, owns_machine) = (self.storages.clone(), self.owns_machine);
        let prepared = blocking(move || {
            prepare_directory(&request.dns, owns_machine)?;
            let mut all = if first { vec![shared_memory()] } else { Vec::new() };
            all.extend(request.storages);
            storages.add_all(&all).map_err(|e| Failure::internal(&e))
        });
        let points = scope::phase("sandbox.storages", prepared).await?;
        log::info!("this is sandbox {:?}", request.sandbox_id);
        let inodes =
            limit.filter(|_| self.owns_machine).map(|limit| tokio::spawn(inodes::keep_below(limit)).abort_handle());
        let mut prepared = sandbox.take().unwrap_or_default();
        prepared.id = request.sandbox_id;
        prepared.storages.extend(points);
        if inodes.is_some() {
            prepared.stop_watching();
            prepared.inodes = inodes;
        }
        *sandbox = Some(prepared);
        Ok(())
    }

    /// Ends everything. What fails is told after the rest was done.
    pub async fn destroy_sandbox(&self) -> Result<(), Failure> {
        let mut sandbox = self.sandbox.lock().await;
        let ids: Vec<String> = self.containers().keys().cloned().collect();
        let mut result = Ok(());
        for id in ids {
            match self.remove_container(&id).await {
                // One that somebody else removed meanwhile.
                Err(Failure::NotFound(_)) => {}
                other => result = result.and(other),
            }
        }
        self.namespaces.clear();
        if let Some(mut there) = sandbox.take() {
            let storages = self.storages.clone();
            let points = std::mem::take(&mut there.storages);
            let released = blocking(move || {
                let kept = storages.release_kept();
                storages.release(&points).and(kept).map_err(|e| Failure::internal(&e))
            })
            .await;
            result = result.and(released);
        }
        // What is unmounted is written back by that. The rest is memory, where there is no disk.
        if self.owns_machine && (result.is_err() || has_disk()) {
            blocking(|| {
                rustix::fs::sync();
                Ok(())
            })
            .await?;
        }
        result
    }

    /// Makes a container.
    pub async fn create_container(&self, request: CreateContainerRequest) -> Result<(), Failure> {
        let id = request.container_id;
        ContainerId::new(id.as_str()).map_err(|e| Failure::Invalid(e.to_string()))?;
        if !request.exec_id.is_empty() && request.exec_id != id {
            return Err(Failure::Invalid("the exec id of a container's first process must be empty or its own".into()));
        }
        let refuse = |what: &str| Err(Failure::Unsupported(format!("{what} of container {id}")));
        if !request.shared_mounts.is_empty() {
            return refuse("mounts shared between containers");
        }
        if request.string_user.is_some() {
            return refuse("a user by name");
        }
        let Some(mut spec) = request.OCI.0 else {
            return Err(Failure::Invalid(format!("container {id} has no spec")));
        };
        if request.sandbox_pidns {
            join_sandboxes_pids(&mut spec);
        }
        let wanted = Wanted::parse(request.stdio_streams)?;
        {
            let mut containers = self.containers();
            if containers.contains_key(&id) {
                return Err(Failure::Exists(format!("container {id} exists already")));
            }
            containers.insert(id.clone(), Slot::Creating);
        }
        let made = self.make_container(&id, request.storages, request.devices, *spec, wanted).await;
        let mut containers = self.containers();
        match made {
            Ok(container) => {
                containers.insert(id, Slot::Ready(container));
                Ok(())
            }
            Err(e) => {
                containers.remove(&id);
                Err(e)
            }
        }
    }

    async fn make_container(
        &self,
        id: &str,
        storages: Vec<Storage>,
        passed: Vec<Device>,
        mut spec: kata_proto::oci::Spec,
        wanted: Wanted,
    ) -> Result<Arc<Container>, Failure> {
        if !passed.is_empty() {
            let limit = self.hotplug_timeout();
            spec = blocking(move || {
                let found = passed.iter().map(|d| devices::find(d, limit)).collect::<Result<Vec<_>, _>>();
                let done = found.and_then(|found| devices::apply(&mut spec, &passed, &found));
                done.map(|()| spec).map_err(|e| Failure::internal(&e))
            })
            .await?;
        }
        let own_pids = has_own_pids(&spec);
        // Open until the container is made.
        let _shared = self.namespaces.resolve(&mut spec, |id| self.container(id)).await?;
        let (shared, own) = storages.into_iter().partition(|storage: &Storage| storage.shared);
        self.add_shared(shared).await?;
        let points = scope::phase("container.storages", self.add(own)).await?;
        self.poll_volumes();
        let made = Container::create(id, spec, wanted, points.clone(), self.context.clone()).await;
        match made {
            Ok(container) => {
                self.watch_memory(id, &container);
                let container = Arc::new(container);
                if !own_pids {
                    container.follow_init();
                }
                Ok(container)
            }
            Err(e) => {
                self.release(points).await.unwrap_or_else(|also| log::error!("{also}"));
                Err(e)
            }
        }
    }

    /// Looks every second at the volumes whose host does not tell, as long as there are any.
    fn poll_volumes(&self) {
        if !self.storages.volumes.has_polled() || self.polling.swap(true, Ordering::AcqRel) {
            return;
        }
        let (storages, polling) = (self.storages.clone(), self.polling.clone());
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(watched::POLL).await;
                let all = storages.clone();
                let more = blocking(move || {
                    all.volumes.poll();
                    Ok(())
                });
                if let Err(e) = more.await {
                    log::error!("volumes are not looked at: {e}");
                }
                if !storages.volumes.has_polled() {
                    polling.store(false, Ordering::Release);
                    // One may have come between the look and the store.
                    if !storages.volumes.has_polled() || polling.swap(true, Ordering::AcqRel) {
                        return;
                    }
                }
            }
        });
    }

    /// What the host says has changed of storages.
    pub async fn update_storages(&self, storages: Vec<Storage>) -> Result<(), Failure> {
        let all = self.storages.clone();
        blocking(move || all.update(&storages).map_err(|e| Failure::internal(&e))).await
    }

    async fn add(&self, storages: Vec<Storage>) -> Result<Vec<PathBuf>, Failure> {
        if storages.is_empty() {
            return Ok(Vec::new());
        }
        let all = self.storages.clone();
        blocking(move || all.add_all(&storages).map_err(|e| Failure::internal(&e))).await
    }

    /// Those that are there as long as the sandbox is, whichever container named them first.
    async fn add_shared(&self, mut storages: Vec<Storage>) -> Result<(), Failure> {
        if storages.is_empty() {
            return Ok(());
        }
        let mut sandbox = self.sandbox.lock().await;
        let Some(there) = sandbox.as_mut() else {
            return Err(Failure::State("there is no sandbox yet to share storages in".into()));
        };
        storages.retain(|storage| !there.storages.iter().any(|point| *point == Path::new(&storage.mount_point)));
        let points = self.add(storages).await?;
        there.storages.extend(points);
        Ok(())
    }

    /// What a container has used; by the sandbox's own id, all of them together, and the network.
    pub async fn stats(&self, id: &str) -> Result<StatsContainerResponse, Failure> {
        let is_sandbox = self.sandbox.lock().await.as_ref().is_some_and(|sandbox| sandbox.id == id);
        let (stats, pid) = match self.container(id) {
            Ok(container) => (container.stats().await?, container.init_pid()),
            Err(Failure::NotFound(_)) if is_sandbox => {
                (blocking(|| Ok(engine::stats_of_all())).await?, std::process::id().cast_signed())
            }
            Err(e) => return Err(e),
        };
        // A first process that has ended has no interfaces any more; its cgroup's counters are still true.
        let network_stats = procfs::network(pid).unwrap_or_default();
        Ok(StatsContainerResponse { cgroup_stats: Some(stats).into(), network_stats, ..Default::default() })
    }

    fn watch_memory(&self, id: &str, container: &Container) {
        let Some(path) = container.memory_events() else { return };
        if let Err(e) = self.oom.watch(id, path) {
            log::warn!("out-of-memory kills in container {id} will not be told: {e}");
        }
    }

    async fn release(&self, points: Vec<PathBuf>) -> Result<(), Failure> {
        if points.is_empty() {
            return Ok(());
        }
        let all = self.storages.clone();
        blocking(move || all.release(&points).map_err(|e| Failure::internal(&e))).await
    }

    /// A container by its id.
    pub fn container(&self, id: &str) -> Result<Arc<Container>, Failure> {
        match self.containers().get(id) {
            Some(Slot::Ready(container)) => Ok(container.clone()),
            Some(Slot::Creating) => Err(Failure::State(format!("container {id} is still being created"))),
            None => Err(Failure::no_container(id)),
        }
    }

    /// Removes a container and gives up its storages.
    pub async fn remove_container(&self, id: &str) -> Result<(), Failure> {
        let container = self.container(id)?;
        self.oom.forget(id);
        let removed = container.remove().await;
        if removed.is_err() && !container.is_removed() {
            return removed;
        }
        // Two removals at once: the second finds it gone.
        if self.containers().remove(id).is_none() {
            return Err(Failure::no_container(id));
        }
        let released = self.release(container.storages.clone()).await;
        removed.and(released)
    }

    /// Starts another process.
    pub async fn exec(&self, request: ExecProcessRequest) -> Result<(), Failure> {
        ExecId::new(request.exec_id.as_str()).map_err(|e| Failure::Invalid(e.to_string()))?;
        if request.string_user.is_some() {
            return Err(Failure::Unsupported(format!("a user by name for process {}", request.exec_id)));
        }
        let container = self.container(&request.container_id)?;
        if request.exec_id == request.container_id {
            return Err(Failure::Exists(format!("{} is the container's first process", request.exec_id)));
        }
        let wanted = Wanted::parse(request.stdio_streams)?;
        let MessageField(Some(process)) = request.process else {
            return Err(Failure::Invalid(format!("the request for process {} has none", request.exec_id)));
        };
        container.exec(&request.exec_id, *process, wanted).await
    }

    /// Who waits for every child of this guest's agent.
    pub fn reaper(&self) -> &Reaper {
        &self.context.reaper
    }

    /// How long a device may take to appear.
    pub fn hotplug_timeout(&self) -> Duration {
        self.params.hotplug_timeout
    }
}

/// Whether a container gets a pid namespace of its own.
fn has_own_pids(spec: &kata_proto::oci::Spec) -> bool {
    spec.Linux.get_or_default().Namespaces.iter().any(|ns| ns.Type == "pid" && ns.Path.is_empty())
}

/// Upstream's way to ask for the sandbox's pid namespace.
fn join_sandboxes_pids(spec: &mut kata_proto::oci::Spec) {
    let namespaces = &mut spec.Linux.mut_or_insert_default().Namespaces;
    namespaces.retain(|ns| ns.Type != "pid");
    let path = format!("{GUEST_NS_DIR}/pid");
    namespaces.push(LinuxNamespace { Type: "pid".into(), Path: path, ..Default::default() });
}

/// The guest's own, resolv.conf(5).
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The sandbox's own directory, with the name servers for its containers; a machine's are also its own.
fn prepare_directory(dns: &[String], owns_machine: bool) -> Result<(), Failure> {
    let dir = Path::new(GUEST_SANDBOX_DIR);
    let failed = |path: &Path, e| Failure::io(format_args!("cannot make {}", path.display()), &e);
    fs::create_dir_all(dir).map_err(|e| failed(dir, e))?;
    if dns.is_empty() {
        return Ok(());
    }
    let mut paths = vec![dir.join("resolv.conf")];
    if owns_machine {
        paths.push(RESOLV_CONF.into());
    }
    let text = resolv_conf(dns);
    paths.iter().try_for_each(|path| fs::write(path, &text).map_err(|e| failed(path, e)))
}

/// Each entry is an address or, as upstream's runtimes send them, a line of resolv.conf(5).
fn resolv_conf(dns: &[String]) -> String {
    dns.iter()
        .map(|entry| match entry.trim().parse::<IpAddr>() {
            Ok(address) => format!("nameserver {address}\n"),
            Err(_) => format!("{}\n", entry.trim_end()),
        })
        .collect()
}

/// /dev/shm for containers that share it.
fn shared_memory() -> Storage {
    Storage {
        driver: "ephemeral".into(),
        mount_point: format!("{GUEST_SANDBOX_DIR}/shm"),
        options: ["nosuid", "nodev", "noexec", "mode=1777"].map(str::to_owned).to_vec(),
        ..Default::default()
    }
}

/// Modules are in the initrd or in the kernel; the guest has no others to load later.
fn module_is_there(module: &KernelModule) -> Result<(), Failure> {
    let name = module.name.replace('-', "_");
    if name.is_empty() || name.contains('/') || !Path::new("/sys/module").join(&name).exists() {
        return Err(Failure::Unsupported(format!("loading the kernel module {}", module.name)));
    }
    if !module.parameters.is_empty() {
        return Err(Failure::Unsupported(format!("parameters for the kernel module {}", module.name)));
    }
    Ok(())
}

/// Whether the kernel has any block device.
fn has_disk() -> bool {
    std::fs::read_dir("/sys/block").is_ok_and(|mut entries| entries.next().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_addresses_or_lines() {
        let dns = ["1.1.1.1", "fe80::1", "search example.org", "nameserver 8.8.8.8\n"].map(str::to_owned);
        assert_eq!(
            resolv_conf(&dns),
            "nameserver 1.1.1.1\nnameserver fe80::1\nsearch example.org\nnameserver 8.8.8.8\n"
        );
    }

    #[test]
    fn a_module_that_is_not_there_is_named() {
        let module = KernelModule { name: "no-such-module".into(), ..Default::default() };
        assert!(module_is_there(&module).unwrap_err().to_string().contains("no-such-module"));
    }
}
