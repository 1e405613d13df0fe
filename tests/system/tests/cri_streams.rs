//! exec, attach, port-forward and logs of pods, as kubectl and the kubelet use them (see `cri_pods.rs` for the oracle).

use std::fs;
use std::time::{Duration, Instant};

use kata_testkit::leaks::Guard;
use kata_testkit::noise::Noise;
use kata_testkit::wait;
use kata_testkit_cri::api;
use kata_testkit_cri::client::Code;
use kata_testkit_cri::log::Log;
use kata_testkit_cri::{Container, Node, Pod};

/// For what happens at once in a VM that runs, on a slow machine.
const SOON: Duration = Duration::from_secs(20);
/// For megabytes.
const BULK: Duration = Duration::from_secs(60);

fn idle<'a>(pod: &'a Pod<'a>, name: &str) -> Container<'a> {
    let container = pod.container(name).sh("echo ready; exec sleep 10000").start();
    container.says("ready", SOON);
    container
}

#[test]
fn exec_sync_tells_outputs_and_codes_and_keeps_its_timeout() {
    let _leaks = Guard::new();
    let node = Node::start();
    let pod = node.pod("exec").run();
    let main = idle(&pod, "main");
    let done = main.exec("echo out; echo err >&2; exit 7");
    assert_eq!((done.code, done.stdout.as_str(), done.stderr.as_str()), (7, "out", "err"));
    // It has no input, and the container's user, directory and environment.
    assert_eq!(main.out("wc -c; pwd; id -u; echo $PATH"), "0\n/\n0\n/bin");
    assert_eq!(main.exec("kill -TERM $$").code, 143);
    let big = main.try_exec(&["sh", "-c", "dd if=/dev/zero bs=1M count=8 2> /dev/null | tr '\\0' x"], 60).unwrap();
    assert_eq!(big.stdout.len(), 8 << 20);
    let absent = main.try_exec(&["no-such-program"], 10).unwrap_err();
    assert!(absent.message().contains("executable file not found in $PATH"), "{absent}");

    // After the timeout the command is gone, and the container is not.
    let start = Instant::now();
    let late = main.try_exec(&["sleep", "4321"], 2).unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    assert!(
        start.elapsed() >= Duration::from_secs(2) && start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    wait::until("end of the command that took too long", SOON, || {
        (!main.out("ps -o args").contains("sleep 4321")).then_some(())
    });
    // Many at once.
    std::thread::scope(|scope| {
        let one = |n: i32| assert_eq!(main.exec(&format!("sleep 0.2; exit {n}")).code, n);
        let all: Vec<_> = (0..8).map(|n| scope.spawn(move || one(n))).collect();
        all.into_iter().for_each(|one| one.join().unwrap());
    });
    pod.end();
    node.holds_nothing();
}

#[test]
fn exec_has_streams_and_terminals() {
    let _leaks = Guard::new();
    let node = Node::start();
    let pod = node.pod("streams").run();
    let main = idle(&pod, "main");

    let exec = main.exec_with_streams(&["sh", "-c", "echo err >&2; wc -c; exit 3"], false);
    exec.write(b"twelve bytes");
    exec.close_stdin();
    let ended = exec.end(SOON);
    assert_eq!((ended.code, ended.stdout.trim_ascii(), ended.stderr.trim_ascii()), (Some(3), &b"12"[..], &b"err"[..]));
    // Back and forth, in turns.
    let exec = main.exec_with_streams(&["sh", "-c", "while read -r line; do echo \"<$line>\"; done"], false);
    for word in ["one", "two"] {
        exec.write(format!("{word}\n").as_bytes());
        exec.says(&format!("<{word}>"), SOON);
    }
    exec.close_stdin();
    assert_eq!(exec.end(SOON).code, Some(0));
    let bytes = Noise::bytes(8 << 20);
    let exec = main.exec_with_streams(&["cat"], false);
    exec.write(&bytes);
    exec.close_stdin();
    let ended = exec.end(BULK);
    assert!(
        ended.code == Some(0) && ended.stdout == bytes,
        "{} bytes came back: {}",
        ended.stdout.len(),
        ended.message
    );

    // A terminal has both outputs in one, an echo, a size that follows, and makes a signal of Ctrl-C.
    let script = "tty; read -r line; echo \"you said $line\"; trap 'echo now $(stty size)' WINCH; \
                  trap 'echo interrupted; exit 5' INT; echo ready; while :; do sleep 0.1; done";
    let exec = main.exec_with_streams(&["sh", "-c", script], true);
    exec.says("/dev/pts/", SOON);
    exec.write(b"hello\r");
    exec.says("you said hello", SOON);
    exec.says("ready", SOON);
    exec.resize(50, 132);
    exec.says("now 50 132", SOON);
    exec.write(b"\x03");
    exec.says("interrupted", SOON);
    assert_eq!(exec.end(SOON).code, Some(5));
    pod.end();
    node.holds_nothing();
}

#[test]
fn attach_is_the_containers_own_streams() {
    let _leaks = Guard::new();
    let node = Node::start();
    let pod = node.pod("attach").run();
    let script = "echo begun; while read -r line; do echo \"<$line>\"; echo \"e $line\" >&2; done; echo end; exit 6";
    let main = pod.container("main").sh(script).with(|config| (config.stdin, config.stdin_once) = (true, true)).start();
    main.says("begun", SOON);
    let one = main.attach(false);
    one.write(b"first\n");
    one.says("<first>", SOON);
    // A second watcher sees what the first one causes, from when it is there.
    let two = main.attach(false);
    let mut pokes = 0;
    wait::until("line of the first watcher's at the second", SOON, || {
        one.write(b"poke\n");
        pokes += 1;
        two.said("<poke>", Duration::from_millis(200)).then_some(())
    });
    drop(two);
    // `stdin_once`: with the first client's input the container's own ends.
    one.close_stdin();
    assert_eq!(main.ends(SOON).exit_code, 6);
    let ended = one.end(SOON);
    let (out, err) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    let (wanted_out, wanted_err) =
        ("<poke>\n".repeat(pokes) + "end\n", "e first\n".to_owned() + &"e poke\n".repeat(pokes));
    assert!(out.ends_with(&wanted_out) && err == wanted_err, "{out:?}, {err:?}");
    // The log has all of it.
    let log = main.log();
    assert_eq!((log.stdout, log.stderr), (format!("begun\n<first>\n{wanted_out}"), wanted_err));

    let shell = pod.container("shell").sh("exec sh").with(|config| (config.stdin, config.tty) = (true, true)).start();
    let attached = shell.attach(true);
    attached.resize(33, 111);
    attached.write(b"stty size; exit 4\r");
    attached.says("33 111", SOON);
    assert_eq!(shell.ends(SOON).exit_code, 4);
    pod.end();
    node.holds_nothing();
}

#[test]
fn port_forward_reaches_servers_on_localhost_of_the_pod() {
    let _leaks = Guard::new();
    let node = Node::start();
    let pod = node.pod("ports").run();
    let serve = "mkdir /tmp/www; echo pong > /tmp/www/ping; dd if=/dev/zero of=/tmp/www/big bs=1M count=4 2> /dev/null; \
                 httpd -p 127.0.0.1:8080 -h /tmp/www; httpd -p 8081 -h /tmp/www; \
                 until wget -q -O /dev/null http://127.0.0.1:8080/ping; do sleep 0.1; done; echo ready; exec sleep 10000";
    let server = pod.container("server").sh(serve).start();
    server.says("ready", SOON);
    let get = |path: &str| format!("GET /{path} HTTP/1.0\r\n\r\n").into_bytes();
    for port in [8080, 8081] {
        let forward = pod.forward(port);
        // Several connections through one session.
        for _ in 0..3 {
            let answer = forward.request(&get("ping"), SOON).unwrap_or_else(|e| panic!("port {port}: {e}"));
            assert!(
                String::from_utf8_lossy(&answer).ends_with("\r\n\r\npong\n"),
                "{:?}",
                String::from_utf8_lossy(&answer)
            );
        }
        let big = forward.request(&get("big"), BULK).unwrap();
        assert!(big.len() > 4 << 20, "{} bytes", big.len());
    }
    // Nobody listens there, which is told, and harms nobody.
    let refused = pod.forward(9).request(b"x", SOON).unwrap_err();
    assert!(refused.contains("9"), "{refused}");
    assert!(pod.forward(8080).request(&get("ping"), SOON).is_ok());
    pod.end();
    node.holds_nothing();
}

#[test]
fn logs_are_rotated_and_nothing_is_lost() {
    let _leaks = Guard::new();
    let node = Node::start();
    let pod = node.pod("logs").run();
    let script =
        "n=0; trap 'stop=1' TERM; while [ -z $stop ]; do echo line $n; n=$((n + 1)); sleep 0.01; done; echo last";
    let main = pod.container("main").sh(script).start();
    main.says("line 20\n", SOON);
    // As a kubelet does: the file is moved, and then the runtime is told.
    let rotated = main.log_file().with_extension("log.1");
    fs::rename(main.log_file(), &rotated).unwrap();
    main.reopen_log().unwrap();
    wait::until("new log", SOON, || (main.log().stdout.lines().count() > 20).then_some(()));
    main.stop(SOON).unwrap();
    let whole = Log::read(&rotated).stdout + &main.log().stdout;
    let lines: Vec<&str> = whole.lines().collect();
    let (last, counted) = lines.split_last().unwrap();
    assert_eq!(*last, "last");
    assert!(counted.iter().enumerate().all(|(n, line)| *line == format!("line {n}")), "{whole}");
    let gone = main.reopen_log().unwrap_err();
    assert!(gone.message().contains("not running"), "{gone}");

    // Long lines come in parts and are one line; an unfinished one is not lost.
    let long = pod.container("long").sh("head -c 100000 /dev/zero | tr '\\0' x; echo; printf end").start();
    assert_eq!(long.ends(SOON).exit_code, 0);
    let log = long.log();
    assert_eq!(log.stdout.trim_end().len(), 100_000 + "\nend".len());
    assert!(log.stdout.trim_end().ends_with("x\nend"));
    assert_eq!(pod.status().state(), api::PodSandboxState::SandboxReady);
    pod.end();
    node.holds_nothing();
}
