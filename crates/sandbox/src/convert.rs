//! From the spec's JSON shapes to the agent protocol's: the only place that does so.

use kata_oci as oci;
use kata_proto::oci as pb;
use protobuf::MessageField;

/// A process.
pub fn process(p: &oci::Process) -> pb::Process {
    let mut out = pb::Process::new();
    out.Terminal = p.terminal;
    if let Some(size) = p.console_size {
        let mut b = pb::Box::new();
        (b.Height, b.Width) = (size.height, size.width);
        out.ConsoleSize = MessageField::some(b);
    }
    let mut user = pb::User::new();
    user.UID = p.user.uid;
    user.GID = p.user.gid;
    user.AdditionalGids.clone_from(&p.user.additional_gids);
    out.User = MessageField::some(user);
    out.Args.clone_from(&p.args);
    out.Env.clone_from(&p.env);
    out.Cwd.clone_from(&p.cwd);
    if let Some(c) = &p.capabilities {
        let mut caps = pb::LinuxCapabilities::new();
        caps.Bounding.clone_from(&c.bounding);
        caps.Effective.clone_from(&c.effective);
        caps.Inheritable.clone_from(&c.inheritable);
        caps.Permitted.clone_from(&c.permitted);
        caps.Ambient.clone_from(&c.ambient);
        out.Capabilities = MessageField::some(caps);
    }
    out.Rlimits = p
        .rlimits
        .iter()
        .map(|r| {
            let mut l = pb::POSIXRlimit::new();
            l.Type.clone_from(&r.kind);
            (l.Hard, l.Soft) = (r.hard, r.soft);
            l
        })
        .collect();
    out.NoNewPrivileges = p.no_new_privileges;
    out.OOMScoreAdj = p.oom_score_adj.unwrap_or(0);
    out
}

/// A mount, as it is.
pub fn mount(m: &oci::Mount) -> pb::Mount {
    let mut out = pb::Mount::new();
    out.destination.clone_from(&m.destination);
    out.source.clone_from(&m.source);
    out.type_.clone_from(&m.kind);
    out.options.clone_from(&m.options);
    out
}

/// A device node.
pub fn device(d: &oci::LinuxDevice) -> pb::LinuxDevice {
    let mut out = pb::LinuxDevice::new();
    out.Path.clone_from(&d.path);
    out.Type.clone_from(&d.kind);
    (out.Major, out.Minor) = (d.major, d.minor);
    out.FileMode = d.file_mode.unwrap_or(0o666);
    (out.UID, out.GID) = (d.uid.unwrap_or(0), d.gid.unwrap_or(0));
    out
}

/// cgroup limits. A number that the spec leaves out is 0 here, which the agent takes for "not set". `cpus`: the guest's that stand
/// for those of the host's that the limits name ([`crate::cpuset`]).
pub fn resources(r: &oci::Resources, cpus: String) -> pb::LinuxResources {
    let mut out = pb::LinuxResources::new();
    out.Devices = r
        .devices
        .iter()
        .map(|d| {
            let mut rule = pb::LinuxDeviceCgroup::new();
            rule.Allow = d.allow;
            rule.Type = if d.kind.is_empty() { "a".into() } else { d.kind.clone() };
            (rule.Major, rule.Minor) = (d.major.unwrap_or(-1), d.minor.unwrap_or(-1));
            rule.Access.clone_from(&d.access);
            rule
        })
        .collect();
    if let Some(m) = &r.memory {
        let mut mem = pb::LinuxMemory::new();
        mem.Limit = m.limit.unwrap_or(0);
        mem.Reservation = m.reservation.unwrap_or(0);
        mem.Swap = m.swap.unwrap_or(0);
        mem.Kernel = m.kernel.unwrap_or(0);
        mem.KernelTCP = m.kernel_tcp.unwrap_or(0);
        mem.Swappiness = m.swappiness.unwrap_or(0);
        mem.DisableOOMKiller = m.disable_oom_killer.unwrap_or(false);
        out.Memory = MessageField::some(mem);
    }
    if let Some(c) = &r.cpu {
        let mut cpu = pb::LinuxCPU::new();
        cpu.Shares = c.shares.unwrap_or(0);
        cpu.Quota = c.quota.unwrap_or(0);
        cpu.Period = c.period.unwrap_or(0);
        cpu.RealtimeRuntime = c.realtime_runtime.unwrap_or(0);
        cpu.RealtimePeriod = c.realtime_period.unwrap_or(0);
        // The limits' own Cpus and Mems name the host's; the guest has one memory node.
        cpu.Cpus = cpus;
        out.CPU = MessageField::some(cpu);
    }
    if let Some(p) = &r.pids {
        let mut pids = pb::LinuxPids::new();
        pids.Limit = p.limit;
        out.Pids = MessageField::some(pids);
    }
    if let Some(b) = &r.block_io {
        let mut io = pb::LinuxBlockIO::new();
        io.Weight = u32::from(b.weight.unwrap_or(0));
        out.BlockIO = MessageField::some(io);
    }
    out.HugepageLimits = r
        .hugepage_limits
        .iter()
        .map(|h| {
            let mut limit = pb::LinuxHugepageLimit::new();
            limit.Pagesize.clone_from(&h.page_size);
            limit.Limit = h.limit;
            limit
        })
        .collect();
    out.Unified =
        r.unified.iter().filter(|(file, _)| goes_to_guest(file)).map(|(f, v)| (f.clone(), v.clone())).collect();
    out
}

/// Whether a file of cgroup v2 means the same in the guest: none that names the host's CPUs, memory nodes or devices.
pub fn goes_to_guest(file: &str) -> bool {
    const HOSTS: [&str; 4] = ["io.max", "io.latency", "io.cost.qos", "io.cost.model"];
    let controller = file.split('.').next().unwrap_or_default();
    ["cpu", "hugetlb", "io", "memory", "pids"].contains(&controller) && !HOSTS.contains(&file)
}

/// Limits of block IO that name a device, as far as it is one of `devices`, by the host's numbers.
pub fn device_limits(b: &oci::BlockIo, devices: &[(i64, i64)], into: &mut pb::LinuxBlockIO) {
    let passed = |major: i64, minor: i64| devices.contains(&(major, minor));
    into.WeightDevice = b
        .weight_device
        .iter()
        .filter(|w| passed(w.major, w.minor))
        .map(|w| {
            let mut out = pb::LinuxWeightDevice::new();
            (out.Major, out.Minor) = (w.major, w.minor);
            out.Weight = u32::from(w.weight.unwrap_or(0));
            out
        })
        .collect();
    let throttles = |list: &[oci::ThrottleDevice]| {
        let list = list.iter().filter(|t| passed(t.major, t.minor));
        list.map(|t| {
            let mut out = pb::LinuxThrottleDevice::new();
            (out.Major, out.Minor, out.Rate) = (t.major, t.minor, t.rate);
            out
        })
        .collect()
    };
    into.ThrottleReadBpsDevice = throttles(&b.throttle_read_bps_device);
    into.ThrottleWriteBpsDevice = throttles(&b.throttle_write_bps_device);
    into.ThrottleReadIOPSDevice = throttles(&b.throttle_read_iops_device);
    into.ThrottleWriteIOPSDevice = throttles(&b.throttle_write_iops_device);
}

/// Ranges of a user namespace.
pub fn id_mappings(maps: &[oci::IdMapping]) -> Vec<pb::LinuxIDMapping> {
    maps.iter()
        .map(|m| {
            let mut out = pb::LinuxIDMapping::new();
            (out.HostID, out.ContainerID, out.Size) = (m.host_id, m.container_id, m.size);
            out
        })
        .collect()
}
