//! The spec's resources, which are worded for cgroup v1, as the files of cgroup v2
//! (Documentation/admin-guide/cgroup-v2.rst). Pure: what to write where.

use kata_proto::oci;

use crate::error::JailError;

/// One file to write.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    /// Its name in the cgroup's directory.
    pub file: String,
    /// What to write.
    pub value: String,
    /// Whether a kernel without it serves as well.
    pub optional: bool,
}

/// What to do.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub settings: Vec<Setting>,
    /// What cgroup v2 has no word for.
    pub warnings: Vec<String>,
}

impl Plan {
    fn set(&mut self, file: impl Into<String>, value: impl ToString) {
        self.settings.push(Setting { file: file.into(), value: value.to_string(), optional: false });
    }

    /// A kernel that does not have the file serves as well.
    fn hint(&mut self, file: impl Into<String>, value: impl ToString) {
        self.settings.push(Setting { file: file.into(), value: value.to_string(), optional: true });
    }

    fn no_meaning(&mut self, what: &str) {
        self.warnings.push(format!("{what} has no meaning in cgroup v2 and is left out"));
    }
}

/// Translates; `has` tells whether the cgroup has a file. Zero and empty mean "not given" throughout, as in the protocol.
pub(crate) fn plan(r: &oci::LinuxResources, has: &dyn Fn(&str) -> bool) -> Result<Plan, JailError> {
    let mut plan = Plan::default();
    if let Some(m) = r.Memory.as_ref() {
        memory(&mut plan, m)?;
    }
    if let Some(c) = r.CPU.as_ref() {
        cpu(&mut plan, c)?;
    }
    if let Some(p) = r.Pids.as_ref()
        && p.Limit != 0
    {
        plan.set("pids.max", max_or(p.Limit));
    }
    if let Some(b) = r.BlockIO.as_ref() {
        block_io(&mut plan, b, has);
    }
    for h in &r.HugepageLimits {
        if h.Pagesize.is_empty() || !h.Pagesize.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(JailError::invalid(format!("huge page size {:?}", h.Pagesize)));
        }
        // Of a size that the kernel does not have there are no pages.
        plan.hint(format!("hugetlb.{}.max", h.Pagesize), h.Limit);
    }
    if r.Network.as_ref().is_some_and(|n| n.ClassID != 0 || !n.Priorities.is_empty()) {
        plan.no_meaning("the network class");
    }
    let mut unified: Vec<_> = r.Unified.iter().collect();
    unified.sort();
    for (file, value) in unified {
        if !is_limit(file) {
            return Err(JailError::invalid(format!("{file:?} is no limit of a cgroup's")));
        }
        plan.set(file, value);
    }
    Ok(plan)
}

/// Whether a file of cgroup v2 holds a limit: none of those that move, freeze or kill, and no path.
fn is_limit(file: &str) -> bool {
    const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "hugetlb", "io", "memory", "pids"];
    let plain = file.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'_');
    plain
        && file.split_once('.').is_some_and(|(controller, rest)| CONTROLLERS.contains(&controller) && !rest.is_empty())
}

/// -1 is "no limit" in the spec.
fn max_or(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

fn memory(plan: &mut Plan, m: &oci::LinuxMemory) -> Result<(), JailError> {
    // The swap limit goes first when all is lifted, else last; the kernel has no order here, unlike v1.
    if let Some(swap) = swap_max(m.Limit, m.Swap)? {
        // A kernel without swap has no such file, and nothing to limit.
        plan.settings.push(Setting { file: "memory.swap.max".into(), value: max_or(swap), optional: true });
    }
    if m.Limit != 0 {
        plan.set("memory.max", max_or(m.Limit));
    }
    if m.Reservation != 0 {
        plan.set("memory.low", max_or(m.Reservation));
    }
    if m.Kernel > 0 || m.KernelTCP > 0 {
        plan.no_meaning("the kernel memory limit");
    }
    if m.Swappiness != 0 {
        plan.no_meaning("swappiness");
    }
    if m.DisableOOMKiller {
        plan.no_meaning("switching the OOM killer off");
    }
    Ok(())
}

/// The spec's swap is memory plus swap; the file's is swap alone.
fn swap_max(limit: i64, swap: i64) -> Result<Option<i64>, JailError> {
    match (limit, swap) {
        // Memory without a limit, swap not mentioned: swap without a limit too.
        (limit, 0) if limit < 0 => Ok(Some(-1)),
        (_, 0) => Ok(None),
        (_, swap) if swap < 0 => Ok(Some(-1)),
        (limit, swap) if limit <= 0 => {
            Err(JailError::invalid(format!("a limit of memory and swap ({swap}) without a limit of memory ({limit})")))
        }
        (limit, swap) if swap < limit => {
            Err(JailError::invalid(format!("a limit of memory and swap ({swap}) below the limit of memory ({limit})")))
        }
        (limit, swap) => Ok(Some(swap - limit)),
    }
}

/// The period that the kernel takes when none is given, in µs.
const DEFAULT_PERIOD: u64 = 100_000;

fn cpu(plan: &mut Plan, c: &oci::LinuxCPU) -> Result<(), JailError> {
    if c.RealtimeRuntime != 0 || c.RealtimePeriod != 0 {
        return Err(JailError::unsupported("limits of realtime scheduling (cgroup v2 has none)"));
    }
    if c.Shares != 0 {
        plan.set("cpu.weight", weight_from_shares(c.Shares));
    }
    if c.Quota != 0 || c.Period != 0 {
        let period = if c.Period == 0 { DEFAULT_PERIOD } else { c.Period };
        let quota = if c.Quota > 0 { c.Quota.to_string() } else { "max".to_owned() };
        plan.set("cpu.max", format!("{quota} {period}"));
    }
    if !c.Cpus.is_empty() {
        plan.set("cpuset.cpus", &c.Cpus);
    }
    if !c.Mems.is_empty() {
        plan.set("cpuset.mems", &c.Mems);
    }
    Ok(())
}

/// 2..=262144 onto 1..=10000, in a straight line, as all engines have it.
pub(crate) fn weight_from_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// 10..=1000 onto 1..=10000.
fn io_weight(weight: u32) -> u64 {
    1 + (u64::from(weight).clamp(10, 1000) - 10) * 9999 / 990
}

fn block_io(plan: &mut Plan, b: &oci::LinuxBlockIO, has: &dyn Fn(&str) -> bool) {
    // BFQ's own file takes v1's range.
    let bfq = has("io.bfq.weight");
    let (file, convert): (&str, fn(u32) -> u64) =
        if bfq { ("io.bfq.weight", u64::from) } else { ("io.weight", io_weight) };
    if b.Weight != 0 {
        plan.hint(file, convert(b.Weight));
    }
    for w in &b.WeightDevice {
        if w.Weight != 0 {
            plan.set(file, format!("{}:{} {}", w.Major, w.Minor, convert(w.Weight)));
        }
    }
    if b.LeafWeight != 0 || b.WeightDevice.iter().any(|w| w.LeafWeight != 0) {
        plan.no_meaning("the leaf weight of block IO");
    }
    let throttles = [
        ("rbps", &b.ThrottleReadBpsDevice),
        ("wbps", &b.ThrottleWriteBpsDevice),
        ("riops", &b.ThrottleReadIOPSDevice),
        ("wiops", &b.ThrottleWriteIOPSDevice),
    ];
    for (key, list) in throttles {
        for t in list {
            let rate = if t.Rate == 0 { "max".to_owned() } else { t.Rate.to_string() };
            plan.set("io.max", format!("{}:{} {key}={rate}", t.Major, t.Minor));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protobuf::MessageField;

    fn settings(r: &oci::LinuxResources) -> Vec<(String, String)> {
        plan(r, &|_| false).unwrap().settings.into_iter().map(|s| (s.file, s.value)).collect()
    }

    fn pair(file: &str, value: &str) -> (String, String) {
        (file.to_owned(), value.to_owned())
    }

    fn with_memory(limit: i64, swap: i64) -> oci::LinuxResources {
        let m = oci::LinuxMemory { Limit: limit, Swap: swap, ..Default::default() };
        oci::LinuxResources { Memory: MessageField::some(m), ..Default::default() }
    }

    #[test]
    fn shares_become_weights() {
        for (shares, weight) in [(0, 1), (2, 1), (1024, 39), (262_144, 10_000), (u64::MAX, 10_000)] {
            assert_eq!(weight_from_shares(shares), weight, "{shares}");
        }
        assert_eq!((io_weight(10), io_weight(500), io_weight(1000)), (1, 4950, 10_000));
    }

    #[test]
    fn swap_is_what_is_left_of_the_sum() {
        let both = settings(&with_memory(100, 300));
        assert_eq!(both, [pair("memory.swap.max", "200"), pair("memory.max", "100")]);
        assert_eq!(settings(&with_memory(100, 0)), [pair("memory.max", "100")]);
        assert_eq!(settings(&with_memory(100, -1)), [pair("memory.swap.max", "max"), pair("memory.max", "100")]);
        assert_eq!(settings(&with_memory(-1, 0)), [pair("memory.swap.max", "max"), pair("memory.max", "max")]);
        assert!(plan(&with_memory(0, 5), &|_| true).is_err());
        assert!(plan(&with_memory(100, 50), &|_| true).is_err());
        assert!(settings(&with_memory(0, 0)).is_empty());
    }

    #[test]
    fn cpu_time_and_processes() {
        let c = oci::LinuxCPU { Quota: 150_000, Cpus: "0-1".into(), ..Default::default() };
        let r = oci::LinuxResources {
            CPU: MessageField::some(c),
            Pids: MessageField::some(oci::LinuxPids { Limit: -1, ..Default::default() }),
            ..Default::default()
        };
        assert_eq!(
            settings(&r),
            [pair("cpu.max", "150000 100000"), pair("cpuset.cpus", "0-1"), pair("pids.max", "max")]
        );
        let c = oci::LinuxCPU { Quota: -1, Period: 50_000, ..Default::default() };
        let r = oci::LinuxResources { CPU: MessageField::some(c), ..Default::default() };
        assert_eq!(settings(&r), [pair("cpu.max", "max 50000")]);
        let c = oci::LinuxCPU { RealtimeRuntime: 1, ..Default::default() };
        let r = oci::LinuxResources { CPU: MessageField::some(c), ..Default::default() };
        assert!(matches!(plan(&r, &|_| true), Err(JailError::Unsupported { .. })));
    }

    #[test]
    fn block_io_and_huge_pages() {
        let t = oci::LinuxThrottleDevice { Major: 8, Minor: 16, Rate: 1000, ..Default::default() };
        let b = oci::LinuxBlockIO { Weight: 500, ThrottleWriteIOPSDevice: vec![t], ..Default::default() };
        let h = oci::LinuxHugepageLimit { Pagesize: "2MB".into(), Limit: 4096, ..Default::default() };
        let mut r =
            oci::LinuxResources { BlockIO: MessageField::some(b), HugepageLimits: vec![h], ..Default::default() };
        assert_eq!(
            settings(&r),
            [pair("io.weight", "4950"), pair("io.max", "8:16 wiops=1000"), pair("hugetlb.2MB.max", "4096")]
        );
        assert_eq!(plan(&r, &|f| f == "io.bfq.weight").unwrap().settings[0].value, "500");
        r.HugepageLimits[0].Pagesize = "../x".into();
        assert!(plan(&r, &|_| false).is_err());
    }

    #[test]
    fn files_by_name_come_last_and_are_limits() {
        let mut r = with_memory(100, 0);
        r.Unified.insert("memory.high".into(), "90".into());
        r.Unified.insert("memory.max".into(), "95".into());
        let all = settings(&r);
        assert_eq!(all, [pair("memory.max", "100"), pair("memory.high", "90"), pair("memory.max", "95")]);
        for bad in ["cgroup.procs", "memory", "memory.", "../memory.max", "memory.max/x", "net.x"] {
            let r = oci::LinuxResources {
                Unified: [(bad.to_owned(), "1".to_owned())].into_iter().collect(),
                ..Default::default()
            };
            assert!(plan(&r, &|_| true).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_v2_lacks_is_named() {
        let m = oci::LinuxMemory { Swappiness: 10, DisableOOMKiller: true, Kernel: 5, ..Default::default() };
        let r = oci::LinuxResources { Memory: MessageField::some(m), ..Default::default() };
        assert_eq!(plan(&r, &|_| false).unwrap().warnings.len(), 3);
    }
}
