//! What differs between architectures, as data.

use kata_vmm::Accel;

/// A machine type of QEMU's and what a guest on it needs to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Machine {
    /// `std::env::consts::ARCH` of host and guest.
    pub arch: &'static str,
    /// The name for `-machine` and in configurations.
    pub name: &'static str,
    /// Options after the name.
    pub options: &'static str,
    /// The CPU model that exists without hardware help.
    pub tcg_cpu: &'static str,
    /// The guest's name of the first serial port.
    pub console: &'static str,
    /// Kernel parameters with every accelerator.
    pub params: &'static [&'static str],
    /// Kernel parameters under TCG.
    pub tcg_params: &'static [&'static str],
    /// A firmware for `-bios` that only does what a kernel given with `-kernel` needs, if QEMU brings it; else QEMU's
    /// default.
    pub quick_firmware: Option<&'static str>,
    /// Device nodes that QEMU opens, besides /dev/kvm.
    pub devices: &'static [&'static str],
}

/// All machines, the default of an architecture first.
const MACHINES: &[Machine] = &[
    Machine {
        arch: "x86_64",
        name: "q35",
        options: "sata=off,smbus=off,usb=off,vmport=off",
        // Five-level page tables only make a translated guest slower.
        tcg_cpu: "max,la57=off",
        console: "ttyS0",
        // reboot=t: a triple fault is the quickest way out (QEMU runs with -no-reboot).
        // swiotlb: memory that may be plugged above 4 GiB makes Linux set 64 MiB of bounce buffers aside, which virtio
        // devices never use.
        params: &["reboot=t", "no_timer_check", "tsc=reliable", "swiotlb=noforce"],
        // One CPU at boot: the agent onlines the others, which costs less (design decision 2). lpj= spares each CPU
        // the calibration; with the TSC as delay timer it counts TSC ticks per jiffy: this is 2.5 GHz at 250 Hz.
        // noreplace-smp: with one CPU at boot Linux patches every lock prefix out of itself, and back in with the second.
        tcg_params: &["maxcpus=1", "lpj=10000000", "noreplace-smp"],
        // 0.1 s less than SeaBIOS under TCG. It leaves the bridges' windows to Linux, which hot-plug works with.
        quick_firmware: Some("qboot.rom"),
        devices: &["/dev/null", "/dev/urandom"],
    },
    Machine {
        arch: "aarch64",
        name: "virt",
        options: "gic-version=max",
        tcg_cpu: "max",
        console: "ttyAMA0",
        params: &[],
        tcg_params: &["maxcpus=1"],
        quick_firmware: None,
        devices: &["/dev/null", "/dev/urandom"],
    },
];

impl Machine {
    /// The machine of this name for this architecture; an empty name is the architecture's default.
    pub(crate) fn find(arch: &str, name: &str) -> Option<&'static Machine> {
        MACHINES.iter().find(|m| m.arch == arch && (name.is_empty() || m.name == name))
    }

    /// The names that can be given on this architecture.
    pub(crate) fn names(arch: &str) -> Vec<&'static str> {
        MACHINES.iter().filter(|m| m.arch == arch).map(|m| m.name).collect()
    }

    /// The guest's kernel parameters, the user's last so that they win.
    ///
    /// `tsc_khz`: how fast the counter runs that a guest under TCG is shown.
    pub(crate) fn kernel_params(&self, accel: Accel, debug: bool, tsc_khz: Option<u64>, user: &[String]) -> String {
        let mut params: Vec<String> = vec![format!("console={}", self.console)];
        if !debug {
            params.push("quiet".to_owned());
        }
        // A kernel that has stumbled may serve nobody any more, and would say nothing: it ends, and is told as it was.
        params.extend(["panic=-1", "oops=panic"].map(str::to_owned));
        params.extend(self.params.iter().map(|&p| p.to_owned()));
        if accel == Accel::Tcg {
            params.extend(self.tcg_params.iter().map(|&p| p.to_owned()));
            // It would be measured against an emulated timer, and wrongly on a busy host.
            params.extend(tsc_khz.map(|khz| format!("tsc_early_khz={khz}")));
        }
        // Expedited: making a container waits for several of the kernel's grace periods, of a tick or more each.
        params.extend(["random.trust_cpu=on", "cgroup_no_v1=all", "rcupdate.rcu_expedited=1"].map(str::to_owned));
        params.push(format!("agent.log={}", if debug { "debug" } else { "info" }));
        params.extend(user.iter().cloned());
        params.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_found_by_name_or_as_the_default() {
        assert_eq!(Machine::find("x86_64", "").unwrap().name, "q35");
        assert_eq!(Machine::find("aarch64", "").unwrap().name, "virt");
        assert!(Machine::find("x86_64", "virt").is_none());
        assert_eq!(Machine::names("x86_64"), ["q35"]);
    }

    #[test]
    fn kernel_parameters() {
        let q35 = Machine::find("x86_64", "q35").unwrap();
        let params = q35.kernel_params(Accel::Tcg, false, Some(2_500_000), &["a=b".to_owned(), "quiet=no".to_owned()]);
        assert!(params.starts_with("console=ttyS0 quiet panic=-1 oops=panic reboot=t"), "{params}");
        assert!(
            params.contains(" tsc_early_khz=2500000 ")
                && params.contains(" maxcpus=1 ")
                && params.ends_with("agent.log=info a=b quiet=no"),
            "{params}"
        );
        let params = q35.kernel_params(Accel::Kvm, true, Some(2_500_000), &[]);
        assert!(
            !params.contains("tsc_early_khz")
                && !params.contains("maxcpus")
                && !params.contains("quiet")
                && params.ends_with("agent.log=debug")
        );
    }
}
