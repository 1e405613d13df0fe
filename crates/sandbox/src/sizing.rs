//! How large a sandbox's machine is to be (design decision 8). Pure.
//!
//! | containers | memory | vCPUs |
//! |---|---|---|
//! | none has a limit | `default_memory` | `default_vcpus` |
//! | all have one | their sum and `overhead_memory` | the sum of their quotas, rounded up |
//! | some have one | their sum and `default_memory` for all others together | likewise |
//!
//! It is never less than what it booted with. With `static_sandbox_resource_mgmt` it is that of the first moment for
//! ever: what the engine says of the whole pod, else the first container's.

use std::collections::BTreeMap;

use kata_types::Mib;
use serde::Deserialize;

/// CPU time as thousandths of a CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Millicpus(pub u64);

impl Millicpus {
    /// What a quota in a period amounts to, both in µs; `None` without a limit.
    pub fn of(quota: Option<i64>, period: Option<u64>) -> Option<Millicpus> {
        let quota = u64::try_from(quota?).ok().filter(|q| *q > 0)?;
        let period = period.filter(|p| *p > 0).unwrap_or(100_000);
        Some(Millicpus(u64::try_from((u128::from(quota) * 1000).div_ceil(period.into())).unwrap_or(u64::MAX)))
    }

    /// The whole CPUs that this needs.
    pub fn cpus(self) -> u32 {
        u32::try_from(self.0.div_ceil(1000)).unwrap_or(u32::MAX)
    }
}

/// What limits ask of the machine; `None`: there is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ask {
    /// The limit alone.
    pub memory: Option<Mib>,
    /// The quota.
    pub cpu: Option<Millicpus>,
}

/// What the configuration has to say.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// For all containers without a limit together.
    pub default_memory: Mib,
    /// Likewise.
    pub default_vcpus: u32,
    /// Beyond limits.
    pub overhead: Mib,
    /// At most.
    pub max_memory: Mib,
    /// At most.
    pub max_vcpus: u32,
}

/// Memory and vCPUs for these containers; 0 where what it booted with will do.
pub fn machine(asks: &[Ask], policy: &Policy) -> (Mib, u32) {
    let limits: Vec<Mib> = asks.iter().filter_map(|a| a.memory).collect();
    let memory = if limits.is_empty() {
        Mib(0)
    } else {
        let others = if limits.len() < asks.len() { policy.default_memory } else { policy.overhead };
        limits.into_iter().fold(others, |sum, limit| sum + limit).min(policy.max_memory)
    };
    let quotas: Vec<Millicpus> = asks.iter().filter_map(|a| a.cpu).collect();
    let vcpus = if quotas.is_empty() {
        0
    } else {
        let others = if quotas.len() < asks.len() { policy.default_vcpus } else { 0 };
        let sum = Millicpus(quotas.into_iter().fold(0u64, |sum, quota| sum.saturating_add(quota.0)));
        sum.cpus().saturating_add(others).min(policy.max_vcpus)
    };
    (memory, vcpus)
}

/// CRI's `LinuxContainerResources` as CRI-O writes it: the names of its fields in JSON.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CrioResources {
    cpu_period: i64,
    cpu_quota: i64,
    memory_limit_in_bytes: i64,
}

const CONTAINERD: &str = "io.kubernetes.cri.sandbox-";
const CRIO: [&str; 2] = ["pod-linux-resources.crio.io", "io.kubernetes.cri-o.PodLinuxResources"];

/// What the engine says of the whole pod, in annotations of the container that stands for it: the sum of its
/// containers' limits. `None` if it says nothing, or that there is no limit.
pub fn declared(annotations: &BTreeMap<String, String>) -> Option<Ask> {
    let number = |name: &str| annotations.get(&format!("{CONTAINERD}{name}"))?.trim().parse::<i64>().ok();
    let crio = || {
        let text = CRIO.iter().find_map(|key| annotations.get(*key))?;
        serde_json::from_str::<CrioResources>(text).ok()
    };
    let (memory, quota, period) = match (number("memory"), number("cpu-quota"), number("cpu-period")) {
        (None, None, None) => {
            let r = crio()?;
            (Some(r.memory_limit_in_bytes), Some(r.cpu_quota), Some(r.cpu_period))
        }
        given => given,
    };
    let memory = memory.and_then(|bytes| u64::try_from(bytes).ok()).filter(|b| *b > 0).map(Mib::from_bytes_round_up);
    let cpu = Millicpus::of(quota, period.and_then(|p| u64::try_from(p).ok()));
    (memory.is_some() || cpu.is_some()).then_some(Ask { memory, cpu })
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy =
        Policy { default_memory: Mib(1024), default_vcpus: 1, overhead: Mib(96), max_memory: Mib(8192), max_vcpus: 4 };

    fn ask(memory: Option<u64>, cpu: Option<u64>) -> Ask {
        Ask { memory: memory.map(Mib), cpu: cpu.map(Millicpus) }
    }

    #[test]
    fn sums_of_limits_and_what_has_none() {
        let of = |asks: &[Ask]| machine(asks, &POLICY);
        assert_eq!(of(&[]), (Mib(0), 0));
        assert_eq!(of(&[ask(None, None), ask(None, None)]), (Mib(0), 0));
        assert_eq!(of(&[ask(Some(2048), Some(500))]), (Mib(2144), 1));
        // Quotas are added before they are rounded.
        assert_eq!(of(&[ask(Some(100), Some(500)), ask(Some(200), Some(500))]), (Mib(396), 1));
        assert_eq!(of(&[ask(Some(100), Some(1500)), ask(None, None)]), (Mib(1124), 3));
        assert_eq!(of(&[ask(Some(100), None), ask(None, Some(100))]), (Mib(1124), 2));
        assert_eq!(of(&[ask(Some(9000), Some(9000))]), (Mib(8192), 4));
        assert_eq!(of(&[ask(Some(u64::MAX), Some(u64::MAX)); 2]), (Mib(8192), 4));
    }

    #[test]
    fn quotas() {
        assert_eq!(Millicpus::of(Some(150_000), Some(100_000)), Some(Millicpus(1500)));
        assert_eq!(Millicpus::of(Some(1), None), Some(Millicpus(1)));
        assert_eq!(Millicpus::of(Some(50_000), Some(0)), Some(Millicpus(500)));
        assert_eq!(Millicpus::of(Some(-1), Some(100_000)), None);
        assert_eq!(Millicpus::of(Some(0), None), None);
        assert_eq!(Millicpus::of(Some(i64::MAX), Some(1)).unwrap().cpus(), u32::MAX);
    }

    #[test]
    fn what_engines_say_of_a_pod() {
        let said =
            |pairs: &[(&str, &str)]| declared(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect());
        let containerd = [
            ("io.kubernetes.cri.sandbox-memory", "104857601"),
            ("io.kubernetes.cri.sandbox-cpu-quota", "150000"),
            ("io.kubernetes.cri.sandbox-cpu-period", "100000"),
            ("io.kubernetes.cri.sandbox-cpu-shares", "1024"),
        ];
        assert_eq!(said(&containerd), Some(ask(Some(101), Some(1500))));
        let json =
            r#"{"cpu_period":100000,"cpu_quota":200000,"cpu_shares":2048,"memory_limit_in_bytes":1048576,"x":{}}"#;
        for key in CRIO {
            assert_eq!(said(&[(key, json)]), Some(ask(Some(1), Some(2000))), "{key}");
        }
        assert_eq!(said(&[("io.kubernetes.cri.sandbox-memory", "0")]), None);
        assert_eq!(said(&[("io.kubernetes.cri.sandbox-memory", "much"), (CRIO[1], "{}")]), None);
        assert_eq!(said(&[]), None);
    }
}
