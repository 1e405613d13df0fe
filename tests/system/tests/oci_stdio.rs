//! The OCI command line: pipes and terminals.

use std::io::Write;
use std::time::Duration;

use kata_testkit::bundle::Bundle;
use kata_testkit::console::{ConsoleSocket, Terminal};
use kata_testkit::image::sha256;
use kata_testkit::leaks::Guard;
use kata_testkit::noise::Noise;
use kata_testkit::runtime::Runtime;
use serde_json::json;

/// For what happens at once in a VM that runs, on a slow machine.
const SOON: Duration = Duration::from_secs(15);
/// Until a VM has started.
const STARTS: Duration = Duration::from_secs(60);

#[test]
fn megabytes_pass_through_pipes_whole_in_both_directions() {
    let _leaks = Guard::new();
    let rt = Runtime::new();
    let bytes = Noise::bytes(8 << 20);
    // The first process: in and out at once.
    let bundle = Bundle::busybox(&rt).args(["cat"]);
    let out = rt.run(&bundle, "pipes").input(bytes.clone()).ok();
    assert!(out.stdout == bytes, "{} bytes came back, with checksum {}", out.stdout.len(), sha256(&out.stdout));

    // Execs: the end of input is seen, outputs stay apart, and one that nobody reads does not hold up another.
    let bundle = Bundle::busybox(&rt).args(["sleep", "1000"]);
    rt.run_detached(&bundle, "piped");
    let sum = format!("{}  -", sha256(&bytes));
    let stalled = rt.cmd(["exec", "piped", "yes"]).outputs(unread_pipe(), std::process::Stdio::null()).start();
    assert_eq!(rt.exec("piped", "sha256sum").input(bytes.clone()).ok().out(), sum);
    let script = "head -c 2097152 /dev/zero; head -c 1048576 /dev/zero >&2; exit 4";
    let out = rt.exec("piped", script).run().expect(4);
    assert_eq!((out.stdout.len(), out.stderr.len()), (2 << 20, 1 << 20));
    drop(stalled);
    // Without input it ends at once instead of waiting.
    assert_eq!(rt.exec("piped", "wc -c").ok().out(), "0");
    // Input that goes on while the process lives, and one that is closed by it.
    let mut talk =
        rt.cmd(["exec", "piped", "sh", "-c", "read a; echo got $a; read b; echo then $b"]).held_input().start();
    let mut stdin = talk.stdin();
    stdin.write_all(b"one\n").unwrap();
    talk.says("got one");
    stdin.write_all(b"two\n").unwrap();
    drop(stdin);
    talk.wait().expect(0).said("then two");
    rt.exec("piped", "exec <&-; exit 6").input(bytes).run().expect(6);
    rt.cmd(["kill", "piped", "KILL"]).ok();
    rt.comes_to("piped", "stopped", SOON);
    rt.delete("piped");
}

/// A pipe whose other end stays open and is never read.
fn unread_pipe() -> std::process::Stdio {
    let (read, write) = nix::unistd::pipe().unwrap();
    // It goes with the process.
    std::mem::forget(read);
    write.into()
}

#[test]
fn a_terminal_is_handed_over_has_its_size_and_follows_its_changes() {
    let _leaks = Guard::new();
    let rt = Runtime::new();
    let bundle = Bundle::busybox(&rt)
        .with(|spec| {
            spec["process"]["terminal"] = json!(true);
            spec["process"]["consoleSize"] = json!({ "height": 33, "width": 101 });
        })
        .sh("tty; stty size; read -r line; echo \"you said $line\"; \
             trap 'echo now $(stty size)' WINCH; trap 'go=1; echo interrupted' INT; echo ready; \
             while [ -z $go ]; do sleep 0.1; done; wc -l; exit 21");
    let socket = ConsoleSocket::bind(&rt.file("console.sock"));
    let create =
        rt.cmd(["create", "--console-socket"]).arg(socket.path()).arg("--bundle").arg(bundle.write()).arg("tty");
    // Its stdio is not the container's: it can be waited for.
    let out = create.ok();
    assert!(out.ended, "{}", out.report());
    let mut terminal = socket.master(STARTS);
    rt.cmd(["start", "tty"]).ok();
    terminal.shows("/dev/", SOON);
    terminal.shows("33 101", SOON);
    terminal.type_in("hello\n");
    terminal.shows("you said hello", SOON);
    terminal.shows("ready", SOON);
    terminal.resize(50, 132);
    terminal.shows("now 50 132", SOON);
    // The guest's line discipline turns ^C into a signal.
    terminal.type_in("\x03");
    terminal.shows("interrupted", SOON);

    // A second terminal, of an exec.
    let socket = ConsoleSocket::bind(&rt.file("exec.sock"));
    let exec = rt.cmd(["exec", "--tty", "--detach", "--console-socket"]).arg(socket.path());
    let exec = exec.args(["tty", "sh", "-c", "stty size; read a; echo exec got $a"]).start();
    let mut second = socket.master(SOON);
    exec.wait().expect(0);
    second.type_in("x\n");
    second.shows("exec got x", SOON);
    second.closes(SOON);

    terminal.type_in("a\nb\n\x04");
    terminal.shows("\r\n2\r\n", SOON);
    terminal.closes(SOON);
    rt.comes_to("tty", "stopped", SOON);
    rt.delete("tty");
}

#[test]
fn run_and_exec_in_a_terminal_use_it_and_leave_it_as_it_was() {
    let _leaks = Guard::new();
    let rt = Runtime::new();
    let bundle = Bundle::busybox(&rt)
        .with(|spec| spec["process"]["terminal"] = json!(true))
        .sh("stty size; read a; echo got $a; exit 8");
    let (mut terminal, slave) = Terminal::open(24, 80);
    let keep = slave.try_clone().unwrap();
    let before = nix::sys::termios::tcgetattr(&keep).unwrap();
    let run = rt.run(&bundle, "ours").in_terminal(&slave).start();
    terminal.shows("24 80", STARTS);
    let mut exec = rt.cmd(["exec", "--tty", "ours", "sh", "-c", "tty && exit 4"]).start();
    wait_for_end(&mut exec);
    // Without a terminal of its own there is none to use.
    let out = exec.wait().expect(255);
    assert!(out.err().contains("terminal"), "{}", out.report());
    terminal.type_in("word\r");
    terminal.shows("got word", SOON);
    run.wait().expect(8);
    let after = nix::sys::termios::tcgetattr(&keep).unwrap();
    assert_eq!(before.local_flags, after.local_flags, "the terminal is not as it was");

    let socket = rt.file("unused.sock");
    let bundle = Bundle::busybox(&rt).args(["true"]);
    let run = rt.cmd(["create", "--console-socket"]).arg(&socket).arg("--bundle").arg(bundle.write()).arg("none");
    run.run().expect(1).complained("--console-socket");
}

fn wait_for_end(run: &mut kata_testkit::cmd::Running) {
    kata_testkit::wait::until("end of the command", SOON, || run.ended().then_some(()));
}
