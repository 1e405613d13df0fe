//! What a machine has, as its container's limits change, and where its processes are accounted for.

use std::time::Duration;

use kata_testkit::bundle::Bundle;
use kata_testkit::leaks::Guard;
use kata_testkit::runtime::Runtime;
use kata_testkit::wait;
use serde_json::json;

/// For what happens at once in a VM that runs, on a slow machine.
const SOON: Duration = Duration::from_secs(30);

fn total_mib(rt: &Runtime) -> u64 {
    let text = rt.exec("sized", "cat /proc/meminfo").ok().out();
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:")).unwrap().trim().trim_end_matches(" kB");
    line.parse::<u64>().unwrap() >> 10
}

fn cpus(rt: &Runtime) -> String {
    rt.exec("sized", "cat /sys/devices/system/cpu/online").ok().out()
}

#[test]
fn the_machine_grows_and_shrinks_with_its_limits() {
    let _leaks = Guard::new();
    let rt = Runtime::new().configured("[hypervisor.qemu]\ndefault_memory = 256\ndefault_maxvcpus = 2\n");
    let bundle = Bundle::busybox(&rt).args(["sleep", "1000"]).with(|spec| {
        spec["linux"]["resources"] = json!({
            "memory": { "limit": 600 << 20 }, "cpu": { "quota": 150_000, "period": 100_000 },
            "unified": { "memory.high": "500000000" }, "hugepageLimits": [{ "pageSize": "2MB", "limit": 0 }],
        });
        let mount = json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"] });
        spec["mounts"].as_array_mut().unwrap().retain(|m| !m["destination"].as_str().unwrap().starts_with("/sys"));
        let cgroup =
            json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"] });
        spec["mounts"].as_array_mut().unwrap().extend([mount, cgroup]);
    });
    rt.run_detached(&bundle, "sized");
    let begun = total_mib(&rt);
    assert!((600..700).contains(&begun), "{begun} MiB for a limit of 600 and the overhead");
    assert_eq!(cpus(&rt), "0-1");
    let read = |file: &str| rt.exec("sized", &format!("cat /sys/fs/cgroup/{file}")).ok().out();
    // Page by page.
    assert_eq!((read("memory.high"), read("hugetlb.2MB.max")), ("499998720".to_owned(), "0".to_owned()));
    rt.cmd(["update", "--memory", "900m", "sized"]).ok();
    let grown = total_mib(&rt);
    assert!((900..1000).contains(&grown), "{grown} MiB for a limit of 900");
    assert_eq!(cpus(&rt), "0-1", "what is not mentioned stays");
    rt.cmd(["update", "--memory", "300m", "--cpu-quota", "50000", "--cpu-period", "100000", "sized"]).ok();
    wait::until("a smaller machine", SOON, || (cpus(&rt) == "0" && total_mib(&rt) < 600).then_some(()));
    rt.cmd(["update", "--cpu-quota", "200000", "--cpu-period", "100000", "sized"]).ok();
    assert_eq!(cpus(&rt), "0-1");
    rt.cmd(["delete", "--force", "sized"]).ok();
}

#[test]
fn a_static_machine_has_its_first_size_for_ever() {
    let _leaks = Guard::new();
    let rt = Runtime::new()
        .configured("[hypervisor.qemu]\ndefault_memory = 256\n[runtime]\nstatic_sandbox_resource_mgmt = true\n");
    let bundle = Bundle::busybox(&rt).args(["sleep", "1000"]).with(|spec| {
        spec["linux"]["resources"] = json!({ "memory": { "limit": 400 << 20 } });
    });
    rt.run_detached(&bundle, "sized");
    let begun = total_mib(&rt);
    assert!((400..500).contains(&begun), "{begun} MiB for a limit of 400");
    rt.cmd(["update", "--memory", "900m", "sized"]).ok();
    assert_eq!(total_mib(&rt), begun);
    rt.cmd(["delete", "--force", "sized"]).ok();
}

#[test]
fn all_processes_are_in_the_cgroup_of_the_spec() {
    let _leaks = Guard::new();
    let rt = Runtime::new();
    let path = format!("/kata-test-{}", std::process::id());
    let bundle =
        Bundle::busybox(&rt).args(["sleep", "1000"]).with(|spec| spec["linux"]["cgroupsPath"] = json!(path.as_str()));
    rt.run_detached(&bundle, "sized");
    let sandbox = rt.sandbox("sized");
    for of in ["vm", "fs", "daemon"] {
        let pid = sandbox.pid(of);
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        for line in cgroups.lines() {
            assert!(line.ends_with(&path), "{of}: {line}");
        }
    }
    rt.cmd(["delete", "--force", "sized"]).ok();
}

#[test]
fn only_the_guests_cpus_are_in_the_cgroup_of_the_spec_if_it_is_so_configured() {
    let _leaks = Guard::new();
    let rt = Runtime::new().configured("[runtime]\nsandbox_cgroup_only = false\n");
    let path = format!("/kata-test-{}", std::process::id());
    let bundle = Bundle::busybox(&rt).args(["sleep", "1000"]).with(|spec| {
        spec["linux"]["cgroupsPath"] = json!(path.as_str());
        spec["linux"]["resources"] = json!({ "cpu": { "cpus": "1" } });
    });
    if !std::path::Path::new("/sys/fs/cgroup/cpu").exists() {
        // Version 2 cannot: that is said, and nothing is left.
        rt.cmd(["create", "--bundle"]).arg(bundle.write()).arg("sized").run().fails().complained("cgroup v2");
        return;
    }
    rt.run_detached(&bundle, "sized");
    let sandbox = rt.sandbox("sized");
    let cgroup = |file: &str| {
        let text = std::fs::read_to_string(file).unwrap();
        let line = text.lines().find(|line| line.split(':').nth(1).is_some_and(|l| l.split(',').any(|c| c == "cpu")));
        line.unwrap().rsplit(':').next().unwrap().to_owned()
    };
    for of in ["vm", "fs", "daemon"] {
        let own = cgroup(&format!("/proc/{}/cgroup", sandbox.pid(of)));
        assert!(own.starts_with("/kata_overhead/"), "{of}: {own}");
    }
    let threads = std::fs::read_dir(format!("/proc/{}/task", sandbox.pid("vm"))).unwrap().flatten();
    let all: Vec<String> = threads.map(|thread| cgroup(&thread.path().join("cgroup").display().to_string())).collect();
    assert!(all.contains(&path) && all.iter().any(|own| *own != path), "{all:?}");
    // The spec's limits are those of the CPUs: the others may run anywhere.
    assert_eq!(allowed(&rt, "sized"), vec![allowed_to("self"); 3]);
    rt.cmd(["delete", "--force", "sized"]).ok();
    let left = std::path::Path::new("/sys/fs/cgroup/cpu/kata_overhead");
    wait::until("no cgroup of overhead", SOON, || (!left.exists()).then_some(()));
}

/// What the VMM and what it shares with others takes of the host's memory.
fn pss_mib(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

#[test]
fn memory_that_the_guest_frees_goes_back_to_the_host() {
    let _leaks = Guard::new();
    let rt = Runtime::new();
    let bundle = Bundle::busybox(&rt).args(["sleep", "1000"]).with(|spec| {
        spec["mounts"].as_array_mut().unwrap().push(json!({
            "destination": "/big", "type": "tmpfs", "source": "tmpfs", "options": ["size=600m"] }));
    });
    rt.run_detached(&bundle, "sized");
    let vmm = rt.sandbox("sized").pid("vm");
    let before = pss_mib(vmm);
    rt.exec("sized", "dd if=/dev/zero of=/big/file bs=1M count=500").ok();
    let full = pss_mib(vmm);
    assert!(full >= before + 490, "{before} MiB, and {full} with 500 more in use");
    rt.exec("sized", "rm /big/file").ok();
    wait::until("memory given back", SOON, || (pss_mib(vmm) < full - 400).then_some(()));
    rt.cmd(["delete", "--force", "sized"]).ok();
}

/// Which of the host's CPUs a sandbox's processes may use.
fn allowed(rt: &Runtime, id: &str) -> Vec<String> {
    let sandbox = rt.sandbox(id);
    ["vm", "fs", "daemon"].map(|part| allowed_to(&sandbox.pid(part).to_string())).into()
}

fn allowed_to(process: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    line.unwrap().trim().to_owned()
}

#[test]
fn a_cpuset_confines_the_machine_and_is_counted_in_the_guest() {
    let _leaks = Guard::new();
    let rt = Runtime::new().configured("[hypervisor.qemu]\ndefault_maxvcpus = 2\n");
    let path = format!("/kata-test-{}", std::process::id());
    let with = |cpus: &str| {
        Bundle::busybox(&rt).args(["sleep", "1000"]).with(|spec| {
            spec["linux"]["cgroupsPath"] = json!(path.as_str());
            spec["linux"]["resources"] =
                json!({ "cpu": { "quota": 200_000, "period": 100_000, "cpus": cpus, "mems": "0" } });
        })
    };
    let refused = rt.cmd(["create", "--bundle"]).arg(with("0,4000").write()).arg("sized").run().fails();
    assert!(refused.err().contains("4000") && refused.err().contains("cpuset.cpus"), "{}", refused.err());
    let refused = rt.cmd(["create", "--bundle"]).arg(with("one").write()).arg("sized").run().fails();
    assert!(refused.err().contains("\"one\""), "{}", refused.err());

    let bundle = with("1");
    rt.run_detached(&bundle, "sized");
    let count = || rt.exec("sized", "nproc").ok().out();
    assert_eq!(
        (cpus(&rt), count()),
        ("0-1".into(), "1".into()),
        "the machine has what its quota needs, the container one"
    );
    assert_eq!(allowed(&rt, "sized"), ["1"; 3]);
    rt.cmd(["update", "--cpuset-cpus", "0-1", "sized"]).ok();
    assert_eq!(count(), "2");
    assert_eq!(allowed(&rt, "sized"), ["0-1"; 3]);
    let refused = rt.cmd(["update", "--cpuset-cpus", "4000", "sized"]).run().fails();
    assert!(refused.err().contains("4000"), "{}", refused.err());
    rt.cmd(["update", "--cpu-quota", "150000", "--cpu-period", "100000", "sized"]).ok();
    assert_eq!(
        (count(), allowed(&rt, "sized")),
        ("2".into(), vec!["0-1".to_owned(); 3]),
        "what is not mentioned stays"
    );
    rt.cmd(["delete", "--force", "sized"]).ok();
}
