//! containerd 2.x with our shim.

use std::time::Duration;

use kata_testkit::engine::{Containerd, Release};
use kata_testkit::image::BUSYBOX;
use kata_testkit::leaks::Guard;
use kata_testkit::runtime::host_kernel;
use kata_testkit::wait;

const SOON: Duration = Duration::from_secs(15);

#[test]
fn a_task_lives_and_goes_on_through_a_restart() {
    let _leaks = Guard::new();
    let mut containerd = Containerd::of(Release::Newer);
    let version = containerd.ctr(["version"]).ok().out();
    println!("{version}");
    let out = containerd.run(["--rm"]).args([BUSYBOX, "one", "sh", "-c", "uname -r; exit 7"]).run().expect(7);
    assert!(!out.out().is_empty() && out.out() != host_kernel(), "{}", out.report());

    let script = "trap 'exit 42' TERM; while :; do sleep 0.1; done";
    let run = containerd.run(["--detach"]).args([BUSYBOX, "life", "sh", "-c", script]);
    run.output_to(&containerd.file("life.log")).ok();
    let exec =
        |name: &str, script: &str| containerd.ctr(["task", "exec", "--exec-id", name, "life", "sh", "-c", script]);
    exec("e1", "exit 9").run().expect(9);
    containerd.restart();
    let exec = containerd.ctr(["task", "exec", "--exec-id", "e2", "life", "echo", "still here"]).ok();
    assert_eq!(exec.out(), "still here");
    containerd.ctr(["task", "metrics", "life"]).ok();
    containerd.ctr(["task", "kill", "life"]).ok();
    wait::until("a task that has stopped", SOON, || {
        containerd.ctr(["task", "list"]).ok().out().contains("STOPPED").then_some(())
    });
    containerd.ctr(["task", "delete", "life"]).ok().complained("exit with non-zero exit code 42");
    containerd.ctr(["container", "delete", "life"]).ok();
    containerd.holds_nothing();
}
