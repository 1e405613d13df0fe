//! `configuration.toml` in upstream's dialect, with drop-in files, and nothing guessed: a key that is not known is an
//! error that names the nearest known one.

mod keys;
mod load;
mod nearest;
mod size;

use std::path::PathBuf;

use kata_types::Mib;
use serde::{Deserialize, Serialize};

pub use load::{ConfigError, Loaded, load, search_path};

/// The whole configuration, with defaults in place of what is not set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// `[hypervisor]`.
    pub hypervisor: Hypervisors,
    /// `[agent]`.
    pub agent: Agents,
    /// `[runtime]`.
    pub runtime: Runtime,
    /// `[factory]`.
    pub factory: Factory,
}

/// `[factory]`: VMs that begin before they are asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Factory {
    /// VMs begin where one of their shape was saved, once it has been.
    pub enable_template: bool,
    /// The directory of what is saved.
    pub template_path: PathBuf,
    /// How many VMs wait for a sandbox; 0: none.
    pub vm_cache_number: u32,
}

/// One table per driver.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hypervisors {
    /// `[hypervisor.qemu]`.
    pub qemu: Qemu,
}

/// One table per agent (there is one).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Agents {
    /// `[agent.kata]`.
    pub kata: Agent,
}

/// How the VM's accelerator is chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// By the probe.
    #[default]
    Auto,
    /// KVM, whatever the probe says.
    Kvm,
    /// Software emulation.
    Tcg,
}

/// `[hypervisor.qemu]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Qemu {
    /// The QEMU binary; where it is not set, [`load()`] finds one.
    pub path: PathBuf,
    /// The guest kernel.
    pub kernel: PathBuf,
    /// The guest's initrd, with the agent as /init.
    pub initrd: PathBuf,
    /// QEMU's machine type; empty: the driver's own for this architecture.
    pub machine_type: String,
    /// Appended to the guest kernel's command line.
    pub kernel_params: String,
    /// Ours: "auto", "kvm" or "tcg".
    pub accelerator: Accelerator,
    /// vCPUs of a sandbox that has no CPU quota; fractions are rounded up.
    pub default_vcpus: f64,
    /// vCPUs at most; 0: as many as the host has.
    pub default_maxvcpus: u32,
    /// MiB of a sandbox that has no memory limit.
    pub default_memory: Mib,
    /// MiB at most; 0: as much as the host has.
    pub default_maxmemory: Mib,
    /// MiB that every VM gets beyond its containers' limits, for the guest's kernel and the agent.
    pub overhead_memory: Mib,
    /// "virtio-fs" is what there is.
    pub shared_fs: String,
    /// Guest kernel and VMM say more.
    pub enable_debug: bool,
    /// Ours: first and last uid of the range from which each VM's QEMU gets its own.
    pub uid_range: (u32, u32),
    /// Ours: seconds that a VM may take to boot and answer.
    pub boot_timeout: u32,
    /// The VMM moves the network's packets itself, also where the host has vhost-net.
    pub disable_vhost_net: bool,
}

/// `[agent.kata]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Agent {
    /// The agent logs at debug.
    pub enable_debug: bool,
    /// Modules that the guest loads: "name parameter=value ...".
    pub kernel_modules: Vec<String>,
    /// The agent tells its phases too, where starts are traced.
    pub enable_tracing: bool,
    /// The guest has a debug console (`kata-runtime debug-console`).
    pub debug_console_enabled: bool,
    /// A directory with iptables for guests (see `GUEST_IPTABLES_DIR` of kata-types); lent to a guest that is asked for its
    /// packet filter.
    pub iptables: PathBuf,
}

/// How the engine's network interfaces become the VM's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InternetworkingModel {
    /// A tap beside each, and traffic control that redirects all packets both ways.
    #[default]
    Tcfilter,
    /// A macvtap on top of each.
    Macvtap,
    /// Not at all: only taps that somebody has made for the VM are given to it.
    None,
}

/// Where OTLP is taken unless said otherwise (opentelemetry's specification of its exporters).
const DEFAULT_COLLECTOR: &str = "http://localhost:4318/v1/traces";

/// `[runtime]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Runtime {
    /// The host's side logs at debug.
    pub enable_debug: bool,
    /// Drop the spec's seccomp profile: the VM is the boundary.
    pub disable_guest_seccomp: bool,
    /// How the engine's network interfaces become the VM's.
    pub internetworking_model: InternetworkingModel,
    /// Nothing is done about networks: no namespace is made, entered or looked into, and a container that asks for the
    /// host's network gets a VM without one. Only with the model `none`.
    pub disable_new_netns: bool,
    /// Starts are traced.
    pub enable_tracing: bool,
    /// Where traces are sent: OTLP over HTTP. (Upstream's name; Jaeger takes OTLP too.)
    pub jaeger_endpoint: String,
    /// The VM is sized once, for the limits of the whole pod if the engine says them, and never resized.
    pub static_sandbox_resource_mgmt: bool,
    /// All of a sandbox's processes are in its cgroup. If not, only the threads of the guest's CPUs are, and the others in
    /// `/kata_overhead/KEY`, which no limit of the engine's counts; with cgroup v1 alone.
    pub sandbox_cgroup_only: bool,
}

impl Default for Qemu {
    fn default() -> Self {
        Qemu {
            path: PathBuf::new(),
            kernel: PathBuf::new(),
            initrd: PathBuf::new(),
            machine_type: String::new(),
            kernel_params: String::new(),
            accelerator: Accelerator::Auto,
            default_vcpus: 1.0,
            default_maxvcpus: 0,
            default_memory: Mib(1024),
            default_maxmemory: Mib(0),
            overhead_memory: Mib(96),
            shared_fs: "virtio-fs".into(),
            enable_debug: false,
            uid_range: (400_000, 465_535),
            boot_timeout: 60,
            disable_vhost_net: false,
        }
    }
}

impl Default for Factory {
    fn default() -> Self {
        Factory { enable_template: true, template_path: "/run/kata/templates".into(), vm_cache_number: 0 }
    }
}

impl Default for Runtime {
    fn default() -> Self {
        Runtime {
            enable_debug: false,
            disable_guest_seccomp: true,
            internetworking_model: InternetworkingModel::Tcfilter,
            disable_new_netns: false,
            enable_tracing: false,
            jaeger_endpoint: DEFAULT_COLLECTOR.into(),
            static_sandbox_resource_mgmt: false,
            sandbox_cgroup_only: true,
        }
    }
}
