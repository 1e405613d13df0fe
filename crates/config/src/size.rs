//! What the host has: bounds for 0, "as much as there is".

use kata_types::Mib;

use crate::Qemu;

impl Qemu {
    /// The most vCPUs that a VM may have: configured, or as many as the host has. Never below the default.
    pub fn max_vcpus(&self) -> u32 {
        let host = std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1));
        let max = if self.default_maxvcpus == 0 { host } else { self.default_maxvcpus };
        max.max(self.vcpus()).min(240)
    }

    /// vCPUs of a sandbox without a quota.
    pub fn vcpus(&self) -> u32 {
        // Checked at loading: between 0 and 240.
        self.default_vcpus.ceil().max(1.0) as u32
    }

    /// The most memory that a VM may have: configured, or what the host has (proc_meminfo(5), MemTotal).
    pub fn max_memory(&self) -> Mib {
        if self.default_maxmemory != Mib(0) {
            return self.default_maxmemory.max(self.default_memory);
        }
        let total = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
            let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
            line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()
        });
        total.map_or(self.default_memory, |kib| Mib(kib / 1024)).max(self.default_memory)
    }
}
