//! What operators look at: statistics, the management socket, kata-monitor, the debug console, traces, the log.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use kata_testkit::bundle::Bundle;
use kata_testkit::cmd::{Cmd, Running};
use kata_testkit::engine::Containerd;
use kata_testkit::image::BUSYBOX;
use kata_testkit::leaks::Guard;
use kata_testkit::runtime::{Runtime, Sandbox, json, stage};
use kata_testkit::wait;
use nix::sys::signal::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

/// Status and body of a GET on a connection that ends with the answer.
fn get(mut stream: impl Read + Write, target: &str) -> (u16, String) {
    write!(stream, "GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer}"));
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("no status: {head}"));
    (status, body.to_owned())
}

fn at_socket(path: &Path, target: &str) -> (u16, String) {
    let stream = UnixStream::connect(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    stream.set_read_timeout(Some(SOON)).unwrap();
    get(stream, target)
}

/// A kata-monitor at a port of its own.
struct Monitor {
    address: String,
    running: Option<Running>,
}

impl Monitor {
    fn start() -> Monitor {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let address = free.to_string();
        let command = Cmd::new(stage().join("bin/kata-monitor")).args(["--listen-address", &address]);
        let running = Some(command.deadline(Duration::from_secs(240)).start());
        wait::until("a monitor", SOON, || TcpStream::connect(&address).ok().map(drop));
        Monitor { address, running }
    }

    fn get(&self, target: &str) -> (u16, String) {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        get(stream, target)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.signal(Signal::SIGKILL);
            drop(running.wait());
        }
    }
}

fn has(page: &str, beginning: &str) {
    assert!(page.lines().any(|line| line.starts_with(beginning)), "{beginning} is not in:\n{page}");
}

fn end(runtime: &Runtime, id: &str) {
    runtime.cmd(["delete", "--force", id]).ok();
}

#[test]
fn statistics_and_out_of_memory_kills_reach_containerd() {
    let _leaks = Guard::new();
    let containerd = Containerd::start();
    let events = containerd.ctr(["events"]).deadline(Duration::from_secs(240)).start();
    let script = "while [ ! -e /tmp/go ]; do sleep 0.1; done; dd if=/dev/zero of=/tmp/f bs=1M count=4 2>/dev/null; \
                  tail /dev/zero; while :; do sleep 0.1; done";
    let run =
        containerd.run(["--detach", "--memory-limit", "50331648", "--cpu-quota", "50000", "--cpu-period", "100000"]);
    run.args([BUSYBOX, "counted", "sh", "-c", script]).output_to(&containerd.file("counted.log")).ok();
    let metrics = || json(&containerd.ctr(["task", "metrics", "--format", "json", "counted"]).ok());
    let m = metrics();
    let number = |m: &Value, pointer: &str| m.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    // The host's words: hybrid and v1 have these, unified has usage_limit.
    let v1 = m.pointer("/memory/usage/usage").is_some();
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    assert_eq!(v1, !unified, "{m}");
    let (limit, used, inactive) = if v1 {
        ("/memory/usage/limit", "/memory/usage/usage", "/memory/total_inactive_file")
    } else {
        ("/memory/usage_limit", "/memory/usage", "/memory/inactive_file")
    };
    assert_eq!(number(&m, limit), 48 << 20, "{m}");
    assert!(number(&m, used) > 0 && number(&m, used) >= number(&m, inactive), "{m}");
    assert!(number(&m, "/pids/current") > 0, "{m}");
    let cpu = if v1 { "/cpu/usage/total" } else { "/cpu/usage_usec" };
    assert!(number(&m, cpu) > 0, "{m}");
    let before = number(&m, cpu);

    containerd.ctr(["task", "exec", "--exec-id", "go", "counted", "touch", "/tmp/go"]).ok();
    wait::until("a kill for want of memory", SOON * 2, || events.stdout().contains("/tasks/oom").then_some(()));
    let m = metrics();
    assert!(number(&m, cpu) > before, "{m}");
    let kills = if v1 { "/memory_oom_control/oom_kill" } else { "/memory_events/oom_kill" };
    assert!(number(&m, kills) > 0, "{m}");
    let told = events.stdout();
    let oom = told.lines().find(|line| line.contains("/tasks/oom")).unwrap();
    assert!(oom.contains("counted"), "{oom}");

    containerd.ctr(["task", "delete", "--force", "counted"]).run();
    containerd.ctr(["container", "delete", "counted"]).ok();
    events.signal(Signal::SIGTERM);
    events.wait();
    containerd.holds_nothing();
}

#[test]
fn sandboxes_are_seen_at_their_sockets_and_together_by_the_monitor() {
    let _leaks = Guard::new();
    let runtime = Runtime::new();
    let script = "echo up; while :; do sleep 0.1; done";
    let pod = Bundle::busybox(&runtime).sh(script).with(|spec| {
        spec["annotations"] = serde_json::json!({
            "io.kubernetes.cri.sandbox-name": "web", "io.kubernetes.cri.sandbox-namespace": "prod",
            "io.kubernetes.cri.sandbox-uid": "u-1",
        });
    });
    runtime.run_detached(&pod, "seen-a");
    runtime.run_detached(&Bundle::busybox(&runtime).sh(script), "seen-b");

    let socket = Sandbox::find("seen-a").dir.join("shim-monitor.sock");
    let (status, page) = at_socket(&socket, "/metrics");
    assert_eq!(status, 200, "{page}");
    for family in [
        "kata_shim_fds ",
        "kata_shim_proc_status{item=\"vmrss\"}",
        "kata_shim_rpc_durations_histogram_milliseconds_count{action=\"create\"} 1",
        "kata_shim_agent_rpc_durations_histogram_milliseconds_count{action=\"grpc.CreateContainerRequest\"} ",
        "kata_shim_pod_overhead_memory_in_bytes ",
        "kata_hypervisor_threads ",
        "kata_hypervisor_proc_stat{item=\"utime\"}",
        "kata_virtiofsd_fds ",
        "kata_agent_total_rss ",
        "kata_guest_meminfo{item=\"mem_total\"}",
        "kata_guest_cpu_time{cpu=\"0\",item=\"user\"}",
    ] {
        has(&page, family);
    }
    let (status, url) = at_socket(&socket, "/agent-url");
    assert!(status == 200 && url.starts_with("serial:///run/kata/"), "{url}");
    assert!(Path::new(url.trim_start_matches("serial://")).exists(), "{url}");
    for (target, status) in [("/debug/pprof/heap", 501), ("/policy", 501), ("/direct-volume/resize", 501), ("/x", 404)]
    {
        let (got, body) = at_socket(&socket, target);
        assert!(got == status && body.contains("\"error\""), "{target}: {got} {body}");
    }
    runtime.cmd(["metrics", "seen-b"]).ok().said("kata_shim_fds ");

    let monitor = Monitor::start();
    let (_, ids) = monitor.get("/sandboxes");
    assert!(ids.lines().any(|id| id == "seen-a") && ids.lines().any(|id| id == "seen-b"), "{ids}");
    assert_eq!(monitor.get("/agent-url?sandbox=seen-a").1, url);
    let (status, page) = monitor.get("/metrics");
    assert_eq!(status, 200, "{page}");
    let labels = "{sandbox_id=\"seen-a\",cri_uid=\"u-1\",cri_name=\"web\",cri_namespace=\"prod\"}";
    has(&page, &format!("kata_shim_fds{labels}"));
    has(&page, "kata_shim_fds{sandbox_id=\"seen-b\"}");
    has(&page, "kata_guest_tasks{item=\"max\",sandbox_id=\"seen-b\"}");
    has(&page, "kata_monitor_scrape_failed_count 0");
    assert_eq!(page.lines().filter(|l| l.starts_with("# TYPE kata_guest_load ")).count(), 1, "{page}");

    // A guest that hangs takes nobody along, nor what the host knows of itself.
    let vmm = nix::unistd::Pid::from_raw(Sandbox::find("seen-b").pid("vm"));
    nix::sys::signal::kill(vmm, Signal::SIGSTOP).unwrap();
    let begun = Instant::now();
    let (_, page) = monitor.get("/metrics");
    nix::sys::signal::kill(vmm, Signal::SIGCONT).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
    has(&page, "kata_shim_fds{sandbox_id=\"seen-b\"}");
    has(&page, "kata_hypervisor_fds{sandbox_id=\"seen-b\"}");
    has(&page, "kata_guest_load{item=\"load1\",sandbox_id=\"seen-a\"");
    assert!(!page.contains("kata_guest_load{item=\"load1\",sandbox_id=\"seen-b\""), "{page}");

    // Each line of the log says whose it is; those of a request say which container's.
    let log = Sandbox::find("seen-a").log();
    // What a sandbox of the pool did before it had a name is nobody's.
    let its_own = log.lines().skip_while(|line| !line.contains(" serving "));
    let named = its_own.filter(|line| line.starts_with("20")).all(|line| line.ends_with("sandbox=seen-a"));
    assert!(named && log.contains("sandbox=seen-a"), "{log}");
    end(&runtime, "seen-a");
    end(&runtime, "seen-b");
}

#[test]
fn the_debug_console_looks_around_where_it_is_wanted() {
    let _leaks = Guard::new();
    let runtime = Runtime::new().configured("[agent.kata]\ndebug_console_enabled = true\n");
    let bundle = Bundle::busybox(&runtime).sh("echo up; while :; do sleep 0.1; done");
    runtime.run_detached(&bundle, "looked-at");
    let one = |words: &[&str]| runtime.cmd([&["debug-console", "looked-at"], words].concat()).ok().out();
    assert!(one(&["ps"]).contains("/init"), "{}", one(&["ps"]));
    assert!(one(&["mounts"]).contains(" /sys/fs/cgroup cgroup2 "));
    assert!(one(&["dmesg"]).contains("Linux version"));
    assert!(one(&["cat", "/proc/cmdline"]).contains("agent.debug_console"));
    assert!(one(&["ls", "/"]).contains(" proc\n"));
    assert!(one(&["net"]).contains("lo"));
    assert!(one(&["no-such-program"]).contains("there is no such program"));
    // The agent itself is a program of the guest's.
    assert!(
        one(&["/proc/1/exe", "--frobnicate"]).contains("exit status 2"),
        "{}",
        one(&["/proc/1/exe", "--frobnicate"])
    );
    // Upstream's verb, and a conversation.
    let said = runtime.cmd(["exec", "looked-at"]).input("help\ncat /proc/version\n").ok().out();
    assert!(
        said.contains("guest# ") && said.contains("the kernel's messages") && said.contains("Linux version"),
        "{said}"
    );
    // Also found by a command line with another root.
    let other = Runtime::new();
    other.cmd(["debug-console", "looked-at", "ps"]).ok();
    end(&runtime, "looked-at");

    let off = Runtime::new().configured("");
    off.run_detached(&Bundle::busybox(&off).sh("while :; do sleep 0.1; done"), "closed");
    off.cmd(["debug-console", "closed", "ps"]).run().fails().complained("debug_console_enabled");
    end(&off, "closed");
}

/// A collector of traces: documents come out of the channel.
fn collector() -> (String, mpsc::Receiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let (tx, rx) = mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut text = Vec::new();
            let mut buffer = [0; 4096];
            let whole = loop {
                let n = stream.read(&mut buffer).unwrap_or(0);
                text.extend_from_slice(&buffer[..n]);
                let seen = String::from_utf8_lossy(&text).into_owned();
                let Some((head, body)) = seen.split_once("\r\n\r\n") else { continue };
                let length = head.to_ascii_lowercase();
                let length = length.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse::<usize>().ok());
                if n == 0 || Some(body.len()) == length {
                    break body.to_owned();
                }
            };
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"));
            if tx.send(serde_json::from_str(&whole).unwrap_or(Value::Null)).is_err() {
                return;
            }
        }
    });
    (url, rx)
}

#[test]
fn the_guests_packet_filter_is_read_and_replaced() {
    let _leaks = Guard::new();
    let runtime = Runtime::new();
    let script = "echo up; while :; do echo served | nc -l -p 4711; done";
    let bundle = Bundle::busybox(&runtime).sh(script);
    runtime.run_detached(&bundle, "filtered");
    let fetch = || runtime.exec("filtered", "nc -w 3 127.0.0.1 4711 < /dev/null").run();
    let served = || wait::until("a server", SOON, || (fetch().out() == "served").then_some(()));
    served();

    // From a guest that has no iptables: they are lent, with the first question.
    let iptables = |words: &[&str]| runtime.cmd([&["iptables"], words].concat());
    let get = |v6: &[&str]| iptables(&[&["get", "--sandbox-id", "filtered"], v6].concat()).ok().out();
    assert!(!get(&[]).contains("4711"));
    let rules = |reject: &str| {
        format!(
            "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p tcp -m tcp --dport 4711 -j REJECT --reject-with {reject}\nCOMMIT\n"
        )
    };
    let set =
        |v6: &[&str], rules: &str| iptables(&[&["set", "--sandbox-id", "filtered"], v6, &["-"]].concat()).input(rules);
    set(&[], &rules("icmp-port-unreachable")).ok();
    let text = get(&[]);
    assert!(text.contains("-A INPUT -p tcp -m tcp --dport 4711 -j REJECT"), "{text}");
    assert!(!fetch().fails().out().contains("served"), "the rule works");
    set(&["--v6"], &rules("icmp6-port-unreachable")).ok();
    let text = get(&["--v6"]);
    assert!(text.contains("--dport 4711 -j REJECT --reject-with icmp6-port-unreachable"), "{text}");

    // All or nothing, and what was wrong is said.
    set(&[], "*filter\n-A NOWHERE -j DROP\nCOMMIT\n").run().fails().complained("iptables-restore ended with ");
    assert!(get(&[]).contains("4711"));
    set(&[], "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n").ok();
    served();

    // Upstream's endpoint.
    let (status, text) = at_socket(&Sandbox::find("filtered").dir.join("shim-monitor.sock"), "/ip6tables");
    assert!(status == 200 && text.contains("4711"), "{text}");
    end(&runtime, "filtered");
}

#[test]
fn a_start_is_traced_through_host_and_guest() {
    let _leaks = Guard::new();
    let (url, documents) = collector();
    let config =
        format!("[runtime]\nenable_tracing = true\njaeger_endpoint = \"{url}\"\n[agent.kata]\nenable_tracing = true\n");
    let runtime = Runtime::new().configured(&config);
    runtime.run(&Bundle::busybox(&runtime).sh("exit 3"), "traced").run().expect(3);
    let mut names = Vec::new();
    let mut traces = Vec::new();
    let wanted = [
        "sandbox start",
        "machine",
        "vmm.launch",
        "filedaemon.start",
        "share.plug",
        "guest.boot",
        "guest.prepare",
        "agent.create_sandbox",
        "CreateSandbox",
        "task.create",
        "container.make",
        "agent.create_container",
        "CreateContainer",
        "container.create",
        "task.start",
        "agent.start_container",
        "StartContainer",
    ];
    while !wanted.iter().all(|name| names.iter().any(|n| n == name)) {
        let document = documents.recv_timeout(SOON).unwrap_or_else(|_| panic!("of the spans came only {names:?}"));
        for resource in document["resourceSpans"].as_array().unwrap() {
            let sandbox = &resource["resource"]["attributes"][2]["value"]["stringValue"];
            assert_eq!(sandbox, "traced", "{resource}");
            for span in resource["scopeSpans"][0]["spans"].as_array().unwrap() {
                names.push(span["name"].as_str().unwrap().to_owned());
                traces.push(span["traceId"].as_str().unwrap().to_owned());
            }
        }
    }
    traces.sort();
    traces.dedup();
    assert_eq!(traces.len(), 1, "one trace");
    // A collector that is not there is in nobody's way; an address that is none is refused.
    let nobody = "[runtime]\nenable_tracing = true\njaeger_endpoint = \"http://127.0.0.1:1\"\n";
    let runtime = Runtime::new().configured(nobody);
    runtime.run(&Bundle::busybox(&runtime).sh("exit 4"), "untaken").run().expect(4);
    let wrong = "[runtime]\nenable_tracing = true\njaeger_endpoint = \"http://localhost:14268/api/traces\"\n";
    let runtime = Runtime::new().configured(wrong);
    runtime.run(&Bundle::busybox(&runtime).sh("exit 4"), "wrong").run().fails().complained("jaeger_endpoint");
}
