//! The real agent, and this test as its host: first the agent as an ordinary process, then, where an installation is
//! given to test, as PID 1 of a virtual machine, met at its serial port and by vsock. The program is all three: the test, the agent as a process, and the
//! helper that the agent's container engine executes.

mod guest;
mod host;
mod network;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use guest::{Guest, make_rootfs, process, spec};
use host::{Host, Place, Stream};
use kata_proto::agent as pb;
use kata_proto::channel::{STDIO_STREAMS, Stdio};
use kata_proto::health::CheckRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use ttrpc::context::Context;

/// What the agent may take beyond its own file, after all that these tests have asked of it.
const AGENTS_OWN_KIB: u64 = 1536;
const ALL: u32 = STDIO_STREAMS | 0b111;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1).peekable();
    match args.peek().and_then(|a| a.to_str()) {
        Some("jail-init") => kata_jail::helper_main(),
        Some("agent-under-test") => return kata_guest::main(args.skip(1).collect::<Vec<OsString>>()),
        _ => {}
    }
    // What cargo and nextest ask of a test without a harness.
    let words: Vec<String> = args.filter_map(|a| a.into_string().ok()).collect();
    if words.iter().any(|w| w == "--list") {
        if !words.iter().any(|w| w == "--ignored") {
            println!("agent: test");
        }
        return ExitCode::SUCCESS;
    }
    if let Err(why) = guest::possible() {
        println!("SKIP: {why}");
        return ExitCode::SUCCESS;
    }
    whole(Guest::process());
    println!("test the_agent_as_a_process ... ok");
    for (name, by_vsock) in [("the_agent_in_a_machine", false), ("the_agent_by_vsock", true)] {
        match Guest::machine(by_vsock) {
            Ok(guest) => whole(guest),
            Err(why) => println!("SKIP: {why}"),
        }
        println!("test {name} ... ok");
    }
    ExitCode::SUCCESS
}

/// One connection after the other to one agent.
fn whole(guest: Guest) {
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    rt.block_on(async {
        let start = Instant::now();
        let host = limited("connect", Host::connect(&guest.place)).await;
        println!("connected after {:?}", start.elapsed());
        limited("rootfs", make_rootfs(&host)).await;
        limited("identity", identity(&host)).await;
        limited("errors", errors(&host)).await;
        limited("sandbox", sandbox(&guest, &host)).await;
        limited("memory at rest", memory(&guest, &host)).await;
        limited("network", network::network(&guest, &host)).await;
        limited("hello", hello(&host)).await;
        limited("stdin", stdin_to_its_end(&host)).await;
        limited("polling", polling(&host)).await;
        limited("exec", exec_and_signals(&host)).await;
        limited("terminal", terminal(&host)).await;
        limited("slow reader", slow_reader(&host)).await;
        // By vsock each stream is a connection, and nothing is there to come back to.
        let host = if matches!(guest.place, Place::Serial(_)) {
            limited("many streams", many_streams(&host)).await;
            limited("reconnect", reconnect(&guest, host)).await
        } else {
            host
        };
        limited("log", log(&host)).await;
        if in_a_machine() {
            limited("machine", machine(&host)).await;
            limited("out of memory", out_of_memory(&host)).await;
            limited("throughput", throughput(&host)).await;
        }
        limited("memory", memory(&guest, &host)).await;
        limited("destroy", destroy(&host)).await;
    });
}

/// Whether the agent is a real guest's.
fn in_a_machine() -> bool {
    guest::IN_A_MACHINE.load(std::sync::atomic::Ordering::Relaxed)
}

async fn limited<T>(what: &str, work: impl Future<Output = T>) -> T {
    let start = Instant::now();
    let limit = if in_a_machine() { 120 } else { 60 };
    let Ok(result) = tokio::time::timeout(Duration::from_secs(limit), work).await else {
        panic!("{what}: nothing for {limit} s");
    };
    println!("{what}: {:?}", start.elapsed());
    result
}

/// Asks a container that shares the agent's pid namespace.
async fn memory(guest: &Guest, host: &Host) {
    let mut cat = process(&["cat", "/proc/1/smaps_rollup", "/proc/meminfo"], false);
    // The kernel shows a process's memory to those who may trace it.
    let all = vec!["CAP_SYS_PTRACE".to_owned()];
    cat.Capabilities = Some(kata_proto::oci::LinuxCapabilities {
        Bounding: all.clone(),
        Effective: all.clone(),
        Permitted: all,
        ..Default::default()
    })
    .into();
    let mut spec = spec("meter", cat);
    spec.Linux.as_mut().unwrap().Namespaces.retain(|n| n.Type != "pid");
    let request = pb::CreateContainerRequest {
        container_id: "meter".into(),
        OCI: Some(spec).into(),
        stdio_streams: ALL,
        ..Default::default()
    };
    host.agent.create_container(context(), &request).await.unwrap();
    let mut out = host.stdio("meter", "", Stdio::Out).await;
    start(host, "meter").await;
    let text = String::from_utf8(all_of(&mut out).await).unwrap();
    for line in text.lines().filter(|l| l.starts_with("Pss") || l.starts_with("MemFree") || l.starts_with("MemTotal")) {
        println!("    {line}");
    }
    let pss = text.lines().find_map(|l| l.strip_prefix("Pss:")).unwrap();
    let kib: u64 = pss.trim().trim_end_matches(" kB").parse().unwrap();
    // In a guest it is the agent alone, whose file is in memory too; here it is a program with a test in it.
    let limit = guest.agent_kib.map_or(8 << 10, |file| file + AGENTS_OWN_KIB);
    assert!(kib < limit, "the agent takes {kib} KiB");
    wait(host, "meter", "").await;
    remove(host, "meter").await;
}

fn context() -> Context {
    Context::default()
}

fn status(e: ttrpc::Error) -> (ttrpc::Code, String) {
    match e {
        ttrpc::Error::RpcStatus(s) => (s.code(), s.message().to_owned()),
        other => panic!("not a status: {other}"),
    }
}

async fn create(host: &Host, id: &str, process: kata_proto::oci::Process, streams: u32) -> ttrpc::Result<()> {
    let request = pb::CreateContainerRequest {
        container_id: id.into(),
        OCI: Some(spec(id, process)).into(),
        stdio_streams: streams,
        ..Default::default()
    };
    host.agent.create_container(context(), &request).await.map(drop)
}

async fn start(host: &Host, id: &str) {
    let request = pb::StartContainerRequest { container_id: id.into(), ..Default::default() };
    host.agent.start_container(context(), &request).await.unwrap();
}

async fn wait(host: &Host, id: &str, exec: &str) -> i32 {
    let request = pb::WaitProcessRequest { container_id: id.into(), exec_id: exec.into(), ..Default::default() };
    host.agent.wait_process(context(), &request).await.unwrap().status
}

async fn remove(host: &Host, id: &str) {
    let request = pb::RemoveContainerRequest { container_id: id.into(), ..Default::default() };
    host.agent.remove_container(context(), &request).await.unwrap();
}

async fn signal(host: &Host, id: &str, exec: &str, signal: u32) -> ttrpc::Result<()> {
    let (container_id, exec_id) = (id.into(), exec.into());
    let request = pb::SignalProcessRequest { container_id, exec_id, signal, ..Default::default() };
    host.agent.signal_process(context(), &request).await.map(drop)
}

async fn exec(host: &Host, id: &str, exec: &str, args: &[&str], streams: u32) -> ttrpc::Result<()> {
    let request = pb::ExecProcessRequest {
        container_id: id.into(),
        exec_id: exec.into(),
        process: Some(process(args, false)).into(),
        stdio_streams: streams,
        ..Default::default()
    };
    host.agent.exec_process(context(), &request).await.map(drop)
}

async fn all_of(stream: &mut Stream) -> Vec<u8> {
    let mut data = Vec::new();
    stream.read_to_end(&mut data).await.unwrap();
    data
}

async fn identity(host: &Host) {
    let version = host.health.version(context(), &CheckRequest::default()).await.unwrap();
    assert_eq!(version.agent_version, env!("CARGO_PKG_VERSION"));
    host.health.check(context(), &CheckRequest::default()).await.unwrap();
    let details = host.agent.get_guest_details(context(), &pb::GuestDetailsRequest::default()).await.unwrap();
    assert_eq!(details.agent_details.extra_features, ["kata-rs.streams", "kata-rs.watch"]);
}

async fn errors(host: &Host) {
    let e = host.agent.mem_agent_compact_set(context(), &pb::MemAgentCompactConfig::default()).await.unwrap_err();
    let (code, text) = status(e);
    assert!(code == ttrpc::Code::UNIMPLEMENTED && text.contains("MemAgentCompactSet"), "{code:?} {text}");

    let request = pb::StartContainerRequest { container_id: "nobody".into(), ..Default::default() };
    let (code, text) = status(host.agent.start_container(context(), &request).await.unwrap_err());
    assert!(code == ttrpc::Code::NOT_FOUND && text.contains("nobody"), "{code:?} {text}");

    let (code, text) = status(create(host, "../x", process(&["true"], false), ALL).await.unwrap_err());
    assert!(code == ttrpc::Code::INVALID_ARGUMENT && text.contains("../x"), "{code:?} {text}");

    // What failed leaves nothing: the same id can be used again.
    for _ in 0..2 {
        let (_, text) = status(create(host, "bad", process(&["no-such-program"], false), ALL).await.unwrap_err());
        assert_eq!(text, "exec: \"no-such-program\": executable file not found in $PATH");
    }
}

async fn sandbox(guest: &Guest, host: &Host) {
    let share = pb::Storage {
        driver: "virtio-fs".into(),
        source: kata_types::SHARE_TAG.into(),
        mount_point: kata_types::GUEST_SHARE_DIR.into(),
        ..Default::default()
    };
    let request = pb::CreateSandboxRequest {
        storages: if in_a_machine() { Vec::new() } else { vec![share] },
        sandbox_id: "s1".into(),
        hostname: "guest-of-test".into(),
        dns: vec!["10.0.0.1".into()],
        ..Default::default()
    };
    host.agent.create_sandbox(context(), &request).await.unwrap();
    let (code, text) = status(host.agent.create_sandbox(context(), &request).await.unwrap_err());
    assert!(code == ttrpc::Code::ALREADY_EXISTS && text.contains("s1"), "{code:?} {text}");
    if in_a_machine() {
        return;
    }
    // A container whose rootfs the host puts into the share.
    let rootfs = guest.share.join("shared/rootfs");
    std::fs::create_dir_all(rootfs.join("bin")).unwrap();
    for dir in ["proc", "dev", "tmp"] {
        std::fs::create_dir(rootfs.join(dir)).unwrap();
    }
    std::fs::copy("/bin/busybox", rootfs.join("bin/sh")).unwrap();
    let mut spec = spec("shared", process(&["sh", "-c", "exit 9"], false));
    spec.Root.as_mut().unwrap().Path = format!("{}/shared/rootfs", kata_types::GUEST_SHARE_DIR);
    let request = pb::CreateContainerRequest {
        container_id: "shared".into(),
        OCI: Some(spec).into(),
        stdio_streams: STDIO_STREAMS,
        ..Default::default()
    };
    host.agent.create_container(context(), &request).await.unwrap();
    start(host, "shared").await;
    assert_eq!(wait(host, "shared", "").await, 9);
    remove(host, "shared").await;
}

async fn hello(host: &Host) {
    // Its stdout is opened before the container exists, its stderr after it has ended.
    let mut out = host.stdio("hello", "", Stdio::Out).await;
    let args = ["sh", "-c", "echo out; echo err >&2; hostname; exit 7"];
    create(host, "hello", process(&args, false), ALL).await.unwrap();
    let (code, text) = status(create(host, "hello", process(&args, false), ALL).await.unwrap_err());
    assert!(code == ttrpc::Code::ALREADY_EXISTS && text.contains("hello"), "{code:?} {text}");
    start(host, "hello").await;
    assert_eq!(wait(host, "hello", "").await, 7);
    assert_eq!(wait(host, "hello", "hello").await, 7, "it is told again, also by upstream's name for the init");
    assert_eq!(all_of(&mut out).await, b"out\ninside\n");
    let mut err = host.stdio("hello", "", Stdio::Err).await;
    assert_eq!(all_of(&mut err).await, b"err\n");
    let (code, _) = status(signal(host, "hello", "", 15).await.unwrap_err());
    assert_eq!(code, ttrpc::Code::NOT_FOUND);
    remove(host, "hello").await;
    let request = pb::WaitProcessRequest { container_id: "hello".into(), ..Default::default() };
    let (code, _) = status(host.agent.wait_process(context(), &request).await.unwrap_err());
    assert_eq!(code, ttrpc::Code::NOT_FOUND);
}

async fn stdin_to_its_end(host: &Host) {
    create(host, "cat", process(&["cat"], false), ALL).await.unwrap();
    let mut input = host.stdio("cat", "", Stdio::In).await;
    let mut output = host.stdio("cat", "", Stdio::Out).await;
    start(host, "cat").await;
    let data: Vec<u8> = (0..4_000_000u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
    let (sent, got) = tokio::join!(
        async {
            input.write_all(&data).await.unwrap();
            input.shutdown().await.unwrap();
        },
        all_of(&mut output)
    );
    let () = sent;
    assert!(got == data, "{} of {} bytes came back", got.len(), data.len());
    assert_eq!(wait(host, "cat", "").await, 0);
    remove(host, "cat").await;
}

/// As upstream's runtimes do it.
async fn polling(host: &Host) {
    create(host, "poll", process(&["cat"], false), 0).await.unwrap();
    start(host, "poll").await;
    let mut write = pb::WriteStreamRequest { container_id: "poll".into(), ..Default::default() };
    write.data = b"polled\n".to_vec();
    assert_eq!(host.agent.write_stdin(context(), &write).await.unwrap().len, 7);
    let read = pb::ReadStreamRequest { container_id: "poll".into(), len: 100, ..Default::default() };
    assert_eq!(host.agent.read_stdout(context(), &read).await.unwrap().data, b"polled\n");
    let close = pb::CloseStdinRequest { container_id: "poll".into(), ..Default::default() };
    host.agent.close_stdin(context(), &close).await.unwrap();
    assert_eq!(wait(host, "poll", "").await, 0);
    assert!(host.agent.read_stdout(context(), &read).await.is_err(), "the end is an error there");
    remove(host, "poll").await;
}

async fn exec_and_signals(host: &Host) {
    create(host, "box", process(&["sleep", "1000"], false), STDIO_STREAMS).await.unwrap();
    let (code, _) = status(exec(host, "box", "early", &["true"], ALL).await.unwrap_err());
    assert_eq!(code, ttrpc::Code::FAILED_PRECONDITION);
    start(host, "box").await;

    exec(host, "box", "e1", &["sh", "-c", "echo in; exit 3"], ALL).await.unwrap();
    let mut out = host.stdio("box", "e1", Stdio::Out).await;
    assert_eq!(wait(host, "box", "e1").await, 3);
    assert_eq!(all_of(&mut out).await, b"in\n");
    // Its name is free again.
    exec(host, "box", "e1", &["sh", "-c", "exit 4"], STDIO_STREAMS).await.unwrap();
    assert_eq!(wait(host, "box", "e1").await, 4);
    let (_, text) = status(exec(host, "box", "e2", &["nothing"], ALL).await.unwrap_err());
    assert!(text.contains("executable file not found"), "{text}");

    exec(host, "box", "long", &["sleep", "1000"], STDIO_STREAMS).await.unwrap();
    let (code, _) = status(exec(host, "box", "long", &["true"], ALL).await.unwrap_err());
    assert_eq!(code, ttrpc::Code::ALREADY_EXISTS);
    let list = pb::ListProcessesRequest { container_id: "box".into(), format: "json".into(), ..Default::default() };
    let json = host.agent.list_processes(context(), &list).await.unwrap().process_list;
    let json = String::from_utf8(json).unwrap();
    assert_eq!(json.matches("sleep 1000").count(), 2, "{json}");

    let id = |id: &str| pb::PauseContainerRequest { container_id: id.into(), ..Default::default() };
    host.agent.pause_container(context(), &id("box")).await.unwrap();
    let (_, text) = status(exec(host, "box", "e3", &["true"], ALL).await.unwrap_err());
    assert!(text.contains("paused"), "{text}");
    let resume = pb::ResumeContainerRequest { container_id: "box".into(), ..Default::default() };
    host.agent.resume_container(context(), &resume).await.unwrap();
    let stats = pb::StatsContainerRequest { container_id: "box".into(), ..Default::default() };
    host.agent.stats_container(context(), &stats).await.unwrap();

    signal(host, "box", "long", 0).await.unwrap();
    let (code, _) = status(signal(host, "box", "long", 1000).await.unwrap_err());
    assert_eq!(code, ttrpc::Code::INVALID_ARGUMENT);
    let (first, second, ()) = tokio::join!(wait(host, "box", "long"), wait(host, "box", "long"), async {
        signal(host, "box", "long", 15).await.unwrap();
    });
    assert_eq!((first, second), (143, 143));
    signal(host, "box", "", 9).await.unwrap();
    assert_eq!(wait(host, "box", "").await, 137);
    remove(host, "box").await;

    // Killed before it was started, and removed while it runs.
    create(host, "unborn", process(&["true"], false), STDIO_STREAMS).await.unwrap();
    signal(host, "unborn", "", 15).await.unwrap();
    assert_eq!(wait(host, "unborn", "").await, 137);
    remove(host, "unborn").await;
    create(host, "lively", process(&["sleep", "1000"], false), STDIO_STREAMS).await.unwrap();
    start(host, "lively").await;
    let (status, ()) = tokio::join!(wait(host, "lively", ""), remove(host, "lively"));
    assert_eq!(status, 137);
}

async fn terminal(host: &Host) {
    let mut p = process(&["sh", "-c", "stty size; read x; stty size; echo $x"], true);
    p.ConsoleSize = Some(kata_proto::oci::Box { Height: 30, Width: 100, ..Default::default() }).into();
    create(host, "tty", p, STDIO_STREAMS | 0b011).await.unwrap();
    let mut output = host.stdio("tty", "", Stdio::Out).await;
    let mut input = host.stdio("tty", "", Stdio::In).await;
    start(host, "tty").await;
    let mut got = Vec::new();
    while !got.ends_with(b"30 100\r\n") {
        let mut b = [0; 64];
        let n = output.read(&mut b).await.unwrap();
        assert!(n > 0, "{:?}", String::from_utf8_lossy(&got));
        got.extend_from_slice(&b[..n]);
    }
    let size = pb::TtyWinResizeRequest { container_id: "tty".into(), row: 40, column: 120, ..Default::default() };
    host.agent.tty_win_resize(context(), &size).await.unwrap();
    input.write_all(b"word\n").await.unwrap();
    let rest = String::from_utf8(all_of(&mut output).await).unwrap();
    assert!(rest.ends_with("40 120\r\nword\r\n"), "{rest:?}");
    assert_eq!(wait(host, "tty", "").await, 0);
    remove(host, "tty").await;
}

/// A container whose output nobody takes must not hold up another's.
async fn slow_reader(host: &Host) {
    create(host, "flood", process(&["yes"], false), ALL).await.unwrap();
    let flood = host.stdio("flood", "", Stdio::Out).await;
    start(host, "flood").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    create(host, "quick", process(&["head", "-c", "3000000", "/dev/zero"], false), ALL).await.unwrap();
    let mut quick = host.stdio("quick", "", Stdio::Out).await;
    start(host, "quick").await;
    assert_eq!(all_of(&mut quick).await.len(), 3_000_000);
    assert_eq!(wait(host, "quick", "").await, 0);
    remove(host, "quick").await;
    remove(host, "flood").await;
    drop(flood);
}

/// More streams than yamux opens unanswered, most of them silent.
async fn many_streams(host: &Host) {
    create(host, "many", process(&["sleep", "1000"], false), STDIO_STREAMS).await.unwrap();
    start(host, "many").await;
    let mut streams = Vec::new();
    let names: Vec<String> = (0..200).map(|n| format!("m{n}")).collect();
    for name in &names {
        for which in [Stdio::In, Stdio::Out, Stdio::Err] {
            streams.push(host.stdio("many", name, which).await);
        }
    }
    for name in &names[..10] {
        exec(host, "many", name, &["cat"], ALL).await.unwrap();
    }
    for n in 0..10 {
        let [input, output, _] = &mut streams[3 * n..3 * n + 3] else { unreachable!() };
        input.write_all(b"ping").await.unwrap();
        let mut b = [0; 4];
        output.read_exact(&mut b).await.unwrap();
        assert_eq!(&b, b"ping");
        input.shutdown().await.unwrap();
        assert_eq!(wait(host, "many", &names[n]).await, 0);
    }
    remove(host, "many").await;
}

/// Containers survive their host.
async fn reconnect(guest: &Guest, host: Host) -> Host {
    let script = "echo first; read x; echo got $x; read y || exit 5; exit 6";
    create(&host, "stay", process(&["sh", "-c", script], false), ALL).await.unwrap();
    let mut out = host.stdio("stay", "", Stdio::Out).await;
    let mut input = host.stdio("stay", "", Stdio::In).await;
    start(&host, "stay").await;
    let mut b = [0; 6];
    out.read_exact(&mut b).await.unwrap();
    assert_eq!(&b, b"first\n");
    input.flush().await.unwrap();
    host.leave().await;
    drop((out, input));

    let host = Host::connect(&guest.place).await;
    let mut out = host.stdio("stay", "", Stdio::Out).await;
    let mut input = host.stdio("stay", "", Stdio::In).await;
    input.write_all(b"again\n").await.unwrap();
    let mut b = [0; 10];
    out.read_exact(&mut b).await.unwrap();
    assert_eq!(&b, b"got again\n");
    // Away for a while, which a guest's port tells as being hung up.
    host.leave().await;
    drop((out, input));
    tokio::time::sleep(Duration::from_millis(700)).await;
    let host = Host::connect(&guest.place).await;
    let mut input = host.stdio("stay", "", Stdio::In).await;
    input.shutdown().await.unwrap();
    assert_eq!(wait(&host, "stay", "").await, 5);
    remove(&host, "stay").await;
    host
}

/// The clock, entropy, CPUs: only a real guest's.
async fn machine(host: &Host) {
    let mut request = pb::SetGuestDateTimeRequest { Sec: 2_000_000_000, ..Default::default() };
    host.agent.set_guest_date_time(context(), &request).await.unwrap();
    request.Usec = 1_000_000;
    host.agent.set_guest_date_time(context(), &request).await.unwrap_err();
    let request = pb::ReseedRandomDevRequest { data: vec![7; 512], ..Default::default() };
    host.agent.reseed_random_dev(context(), &request).await.unwrap();
    let request = pb::OnlineCPUMemRequest { nb_cpus: 1, ..Default::default() };
    host.agent.online_cpu_mem(context(), &request).await.unwrap();
    let script = "busybox grep -c ^processor /proc/cpuinfo; busybox date +%s; hostname; cat /tmp/machine/resolv.conf";
    let mut spec = spec("look", process(&["sh", "-c", script], false));
    let options = ["bind", "ro"].map(str::to_owned).to_vec();
    spec.Mounts.push(kata_proto::oci::Mount {
        destination: "/tmp/machine".into(),
        source: "/etc".into(),
        type_: "bind".into(),
        options,
        ..Default::default()
    });
    let request = pb::CreateContainerRequest {
        container_id: "look".into(),
        OCI: Some(spec).into(),
        stdio_streams: ALL,
        ..Default::default()
    };
    host.agent.create_container(context(), &request).await.unwrap();
    let mut out = host.stdio("look", "", Stdio::Out).await;
    start(host, "look").await;
    let text = String::from_utf8(all_of(&mut out).await).unwrap();
    println!("    {text:?}");
    assert!(text.contains("\n20000000"), "{text}");
    assert!(text.ends_with("nameserver 10.0.0.1\n"), "the guest's own name server: {text}");
    remove(host, "look").await;
}

async fn out_of_memory(host: &Host) {
    let mut spec = spec("fat", process(&["sh", "-c", "cat /dev/zero > /tmp/x; exit $?"], false));
    let memory = kata_proto::oci::LinuxMemory { Limit: 16 << 20, Swap: 16 << 20, ..Default::default() };
    let resources = kata_proto::oci::LinuxResources { Memory: Some(memory).into(), ..Default::default() };
    spec.Linux.as_mut().unwrap().Resources = Some(resources).into();
    let request = pb::CreateContainerRequest {
        container_id: "fat".into(),
        OCI: Some(spec).into(),
        stdio_streams: STDIO_STREAMS,
        ..Default::default()
    };
    host.agent.create_container(context(), &request).await.unwrap();
    start(host, "fat").await;
    let event = host.agent.get_oom_event(context(), &pb::GetOOMEventRequest::default()).await.unwrap();
    assert_eq!(event.container_id, "fat");
    assert_eq!(wait(host, "fat", "").await, 137);
    remove(host, "fat").await;
}

async fn throughput(host: &Host) {
    const BYTES: usize = 1600 << 16;
    // Not `head`, which takes each byte by itself.
    let dd = ["busybox", "dd", "if=/dev/zero", "bs=64k", "count=1600"];
    create(host, "pour", process(&dd, false), ALL).await.unwrap();
    let mut out = host.stdio("pour", "", Stdio::Out).await;
    start(host, "pour").await;
    let begin = Instant::now();
    assert_eq!(all_of(&mut out).await.len(), BYTES);
    println!("    100 MB out: {:?}", begin.elapsed());
    remove(host, "pour").await;
    create(host, "sink", process(&["sh", "-c", "cat > /dev/null"], false), ALL).await.unwrap();
    let mut input = host.stdio("sink", "", Stdio::In).await;
    start(host, "sink").await;
    let begin = Instant::now();
    input.write_all(&vec![5; BYTES]).await.unwrap();
    input.shutdown().await.unwrap();
    assert_eq!(wait(host, "sink", "").await, 0);
    println!("    100 MB in: {:?}", begin.elapsed());
    remove(host, "sink").await;
}

async fn log(host: &Host) {
    let mut log = host.log().await;
    let mut got = String::new();
    while !got.contains("this is sandbox") {
        let mut b = [0; 1024];
        let n = log.read(&mut b).await.unwrap();
        assert!(n > 0, "{got}");
        got.push_str(&String::from_utf8_lossy(&b[..n]));
    }
    assert!(got.starts_with("{\"level\":"), "{got}");
}

async fn destroy(host: &Host) {
    create(host, "left", process(&["sleep", "1000"], false), STDIO_STREAMS).await.unwrap();
    start(host, "left").await;
    host.agent.destroy_sandbox(context(), &pb::DestroySandboxRequest::default()).await.unwrap();
    let (code, _) = status(signal(host, "left", "", 0).await.unwrap_err());
    assert_eq!(code, ttrpc::Code::NOT_FOUND);
}
