//! Health checks: docker makes them by itself, podman when it is told to (elsewhere systemd tells it). Each test is one of
//! runc, too: `KATA_TEST_ORACLE=runc`.

use std::time::Duration;

use kata_testkit::engine::{Docker, Engine, Podman, Release};
use kata_testkit::image::BUSYBOX;
use kata_testkit::leaks::Guard;
use kata_testkit::wait;

/// For what happens at once in a VM that runs, on a slow machine.
const SOON: Duration = Duration::from_secs(20);
/// A container that is well while it has a file.
const WELL: [&str; 4] = [BUSYBOX, "sh", "-c", "echo quite well > /tmp/well; exec sleep 1000"];
/// Whether it is.
const CHECK: &str = "cat /tmp/well";

fn status(engine: &dyn Engine, name: &str) -> String {
    engine.value(name, "{{.State.Health.Status}}")
}

/// The last result that the engine keeps: an exit code and what the check said.
fn last(engine: &dyn Engine, name: &str) -> (i64, String) {
    let health = engine.value(name, "{{json .State.Health.Log}}");
    let log: serde_json::Value = serde_json::from_str(&health).unwrap_or_else(|e| panic!("{e}: {health}"));
    let last = log.as_array().and_then(|log| log.last()).unwrap_or_else(|| panic!("no result: {health}"));
    (last["ExitCode"].as_i64().unwrap_or(-99), last["Output"].as_str().unwrap_or_default().trim().to_owned())
}

fn docker_checks(release: Release) {
    let _leaks = Guard::new();
    let docker = Docker::of(release);
    let check = |command: &'static str, timeout: &'static str| {
        let flags = ["--network", "none", "--health-cmd", command, "--health-timeout", timeout];
        [&flags[..], &["--health-interval", "1s", "--health-retries", "2"]].concat()
    };
    docker.detached("box", &check(CHECK, "20s"), &WELL);
    docker.detached("stuck", &check("exec sleep 4321", "1s"), &WELL);
    let comes_to = |name: &str, wanted: &str| {
        wait::until(&format!("{name} that is {wanted}"), SOON, || (status(&docker, name) == wanted).then_some(()));
    };
    comes_to("box", "healthy");
    assert_eq!(last(&docker, "box"), (0, "quite well".into()));
    docker.exec("box", "rm /tmp/well").ok();
    comes_to("box", "unhealthy");
    let (code, said) = last(&docker, "box");
    assert!(code == 1 && said.contains("No such file"), "{code} {said}");
    docker.exec("box", "echo well again > /tmp/well").ok();
    comes_to("box", "healthy");
    assert_eq!(last(&docker, "box"), (0, "well again".into()));
    let listed = docker.docker(["ps", "--filter", "health=healthy", "--format", "{{.Names}} {{.Status}}"]).ok();
    assert!(listed.out().starts_with("box Up") && listed.out().ends_with("(healthy)"), "{}", listed.report());

    // One that takes too long is killed, and the next one is made then.
    comes_to("stuck", "unhealthy");
    let (code, said) = last(&docker, "stuck");
    assert!(code == -1 && said.contains("exceeded timeout (1s)"), "{code} {said}");
    let checks = docker.exec("stuck", "ps -o args | grep -c '^[s]leep 4321' || true").ok().out();
    assert!(["0", "1"].contains(&checks.as_str()), "{checks} checks run");
    docker.remove_all(&["box", "stuck"]);
}

#[test]
fn docker_makes_checks_and_kills_those_that_take_too_long() {
    docker_checks(Release::Distribution);
}

#[test]
fn a_newer_docker_makes_checks_and_kills_those_that_take_too_long() {
    docker_checks(Release::Newer);
}

#[test]
fn podman_makes_a_check_when_it_is_told_to() {
    let _leaks = Guard::new();
    let podman = Podman::new();
    let flags = ["--network", "none", "--health-cmd", CHECK, "--health-interval", "disable", "--health-retries", "2"];
    podman.detached("box", &flags, &WELL);
    let check = || podman.podman(["healthcheck", "run", "box"]).run();
    wait::until("a container that is well", SOON, || (podman.exec("box", CHECK).run().code() == 0).then_some(()));
    check().expect(0);
    assert_eq!(status(&podman, "box"), "healthy");
    assert_eq!(last(&podman, "box"), (0, "quite well".into()));
    podman.exec("box", "rm /tmp/well").ok();
    // The first failure is forgiven.
    check().expect(1);
    assert_eq!(status(&podman, "box"), "healthy");
    check().expect(1);
    assert_eq!(status(&podman, "box"), "unhealthy");
    let (code, said) = last(&podman, "box");
    assert!(code == 1 && said.contains("No such file"), "{code} {said}");
    podman.exec("box", "echo well again > /tmp/well").ok();
    check().expect(0);
    assert_eq!(status(&podman, "box"), "healthy");

    // Nobody is asked who does not run, or has no check.
    podman.podman(["stop", "--time", "0", "box"]).ok();
    check().expect(125).complained("not running");
    podman.detached("unchecked", &["--network", "none"], &WELL);
    podman.podman(["healthcheck", "run", "unchecked"]).run().expect(125).complained("no defined healthcheck");
    podman.remove_all(&["box", "unchecked"]);
}
