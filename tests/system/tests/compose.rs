//! docker compose: services that find each other by name, wait for each other, and are gone when they are taken down. Each
//! test is one of runc, too: `KATA_TEST_ORACLE=runc`.

use std::time::Duration;

use kata_testkit::engine::{Docker, Release};
use kata_testkit::image::BUSYBOX;
use kata_testkit::leaks::Guard;
use kata_testkit::oracle::handler;
use kata_testkit::wait;
use serde_json::{Value, json};

/// For what happens at once in a VM that runs, on a slow machine.
const SOON: Duration = Duration::from_secs(20);
/// Until three VMs have started, one after the other.
const STARTS: Duration = Duration::from_secs(180);
/// The page of `web`.
const WEB: &str = "mkdir /www; echo I am web > /www/index.html; exec httpd -f -p 80 -h /www";
/// A page of `api`, which asks `web` each time.
const API: &str = r#"
    mkdir -p /www/cgi-bin
    printf '#!/bin/sh\nprintf "Content-Type: text/plain\\r\\n\\r\\n"; echo "web told me: $(wget -q -O - http://web/)"\n' \
        > /www/cgi-bin/ask
    chmod +x /www/cgi-bin/ask
    exec httpd -f -p 80 -h /www"#;
/// Asks `api` until it answers.
const CLIENT: &str = "until wget -q -O - http://api/cgi-bin/ask; do sleep 0.2; done; exec sleep 1000";
/// What comes of it.
const TOLD: &str = "web told me: I am web";

/// Client and `api` share one network, `api` and `web` another one.
fn project() -> Value {
    let service = |script: &str, networks: &[&str], more: Value| {
        let mut service = json!({
            "image": BUSYBOX, "runtime": handler(), "pull_policy": "never", "networks": networks,
            // compose has variables of its own.
            "command": ["sh", "-c", script.replace('$', "$$")],
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            service[key] = value.clone();
        }
        service
    };
    let asks = ["CMD", "wget", "-q", "-O", "/dev/null", "http://127.0.0.1/"];
    let health = json!({ "healthcheck": { "test": asks, "interval": "1s", "timeout": "20s", "retries": 20 } });
    let after = |name: &str, condition: &str| json!({ name: { "condition": condition } });
    json!({
        "name": "three",
        "services": {
            "web": service(WEB, &["back"], health),
            "api": service(API, &["front", "back"], json!({
                "depends_on": after("web", "service_healthy"), "ports": ["8080:80"],
            })),
            "client": service(CLIENT, &["front"], json!({ "depends_on": after("api", "service_started") })),
        },
        "networks": { "front": {}, "back": {} },
    })
}

#[test]
fn three_services_that_talk() {
    three_services(Release::Distribution);
}

#[test]
fn three_services_that_talk_with_a_newer_docker() {
    three_services(Release::Newer);
}

fn three_services(release: Release) {
    let _leaks = Guard::new();
    let docker = Docker::networked(release);
    let file = docker.file("compose.yaml");
    std::fs::write(&file, project().to_string()).unwrap();
    let compose = |words: &[&str]| docker.compose(&file, words).deadline(STARTS);
    compose(&["up", "--detach"]).ok();
    let rows = compose(&["ps", "--format", "{{.Service}} {{.State}} {{.Health}}"]).ok().out();
    let mut rows: Vec<&str> = rows.lines().map(str::trim).collect();
    rows.sort_unstable();
    assert_eq!(rows, ["api running", "client running", "web running healthy"]);

    wait::until("what the client was told", SOON, || {
        compose(&["logs", "--no-log-prefix", "client"]).ok().out().lines().any(|line| line == TOLD).then_some(())
    });
    let curl = ["--silent", "--show-error", "--fail", "--max-time", "10", "http://127.0.0.1:8080/cgi-bin/ask"];
    assert_eq!(docker.on_host("curl", curl).ok().out(), TOLD);
    // They share no network. The older docker asks the host's name server about such a name, which is not there.
    let apart = ["exec", "-T", "client", "timeout", "3", "wget", "-q", "-O", "-", "http://web/"];
    compose(&apart).run().fails();

    compose(&["restart", "--timeout", "0", "web"]).ok();
    let again = ["exec", "-T", "client", "wget", "-q", "-O", "-", "http://api/cgi-bin/ask"];
    wait::until("an answer after a restart", SOON, || (compose(&again).run().out() == TOLD).then_some(()));

    compose(&["down", "--timeout", "0"]).ok();
    assert_eq!(compose(&["ps", "--all", "--quiet"]).ok().out(), "");
    let networks = docker.docker(["network", "ls", "--format", "{{.Name}}"]).ok().out();
    let mut networks: Vec<&str> = networks.lines().collect();
    networks.sort_unstable();
    assert_eq!(networks, ["bridge", "host", "none"]);
    docker.holds_nothing();
}
