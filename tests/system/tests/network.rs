//! Docker's networks: bridges, ports, names, networks that come and go. Docker lives in a network of its own, so that
//! nothing of the host's is touched.

use std::time::Duration;

use kata_testkit::engine::{Docker, Engine, HOST_PROGRAMS, Release};
use kata_testkit::image::BUSYBOX;
use kata_testkit::leaks::Guard;
use kata_testkit::wait;

/// For what happens at once in a VM that runs, on a slow machine.
const SOON: Duration = Duration::from_secs(20);
/// A page that says whose it is.
const SERVER: &str = "mkdir /www; echo I am $(hostname) > /www/index.html; exec httpd -f -p 80 -h /www";
/// Sends back what comes by UDP.
const ECHO: &str = "exec /usr/bin/perl -MIO::Socket::INET -e 'my $s = IO::Socket::INET->new(LocalPort => 5353, Proto => \"udp\"); \
                    while (defined $s->recv(my $b, 2000)) { $s->send(\"back: $b\") }'";
/// Sends a line, and prints what comes back.
const ASK: &str = "my $s = IO::Socket::INET->new(PeerAddr => \"127.0.0.1:8053\", Proto => \"udp\"); $s->send(\"x\"); \
                   alarm 2; $s->recv(my $b, 2000); print $b";

/// A container in the background.
fn detached(docker: &Docker, name: &str, flags: &[&str], script: &str) {
    docker.detached(name, flags, &[BUSYBOX, "sh", "-c", script]);
}

fn exec(docker: &Docker, name: &str, script: &str) -> String {
    docker.exec(name, script).ok().out()
}

/// Whether a script in a container ends well.
fn succeeds(docker: &Docker, name: &str, script: &str) -> bool {
    docker.exec(name, script).run().status.is_some_and(|s| s.success())
}

/// What a page is, once somebody answers.
fn fetched(docker: &Docker, name: &str, url: &str) -> String {
    wait::until(url, SOON, || {
        let out = docker.docker(["exec", name, "timeout", "5", "wget", "-q", "-O", "-", url]).run();
        out.status.is_some_and(|s| s.success()).then(|| out.out())
    })
}

/// The same from where docker publishes ports.
fn fetched_on_host(docker: &Docker, url: &str) -> String {
    wait::until(url, SOON, || {
        let out = docker.on_host("curl", ["--silent", "--fail", "--max-time", "3", "--globoff", url]).run();
        out.status.is_some_and(|s| s.success()).then(|| out.out())
    })
}

#[test]
fn the_default_bridge_its_address_and_published_ports() {
    let _leaks = Guard::new();
    let docker = Docker::networked(Release::Distribution);
    detached(&docker, "web", &["--publish", "8080:80"], SERVER);
    let (address, mac) = (
        docker.inspect("web", "{{.NetworkSettings.IPAddress}}"),
        docker.inspect("web", "{{.NetworkSettings.MacAddress}}"),
    );
    let seen = exec(&docker, "web", "ip addr show eth0; cat /sys/class/net/eth0/address; ip route");
    assert!(seen.contains(&format!("inet {address}/16")) && seen.contains(&mac), "{seen}");
    assert!(seen.contains("default via 172.17.0.1 dev eth0") && seen.contains("mtu 1500"), "{seen}");
    assert_eq!(fetched_on_host(&docker, "http://127.0.0.1:8080/"), "I am web");
    assert_eq!(fetched_on_host(&docker, &format!("http://{address}/")), "I am web");
    // The bridge's address, through the guest's stack and back.
    exec(&docker, "web", "ping -c 2 -W 3 172.17.0.1");
    // Another one reaches it by address.
    let out = docker.run_connected(["--rm", BUSYBOX, "wget", "-q", "-O", "-"]).arg(format!("http://{address}/")).ok();
    assert_eq!(out.out(), "I am web");
    docker.remove_all(&["web"]);

    detached(&docker, "echo", &[&HOST_PROGRAMS[..], &["--publish", "8053:5353/udp"]].concat(), ECHO);
    let udp = wait::until("an answer by UDP", SOON, || {
        let out = docker.on_host("perl", ["-MIO::Socket::INET", "-e", ASK]).run().out();
        (!out.is_empty()).then_some(out)
    });
    assert_eq!(udp, "back: x");
    docker.remove_all(&["echo"]);
}

#[test]
fn a_network_of_ones_own_with_names_addresses_and_what_is_asked_for() {
    let _leaks = Guard::new();
    let docker = Docker::networked(Release::Distribution);
    docker.docker(["network", "create", "--subnet", "10.77.0.0/24", "inner"]).ok();
    let flags =
        ["--network", "inner", "--ip", "10.77.0.9", "--mac-address", "02:42:0a:4d:00:99", "--network-alias", "www"];
    detached(&docker, "web", &flags, SERVER);
    let seen = exec(&docker, "web", "ip addr show eth0");
    assert!(seen.contains("inet 10.77.0.9/24") && seen.contains("02:42:0a:4d:00:99"), "{seen}");
    let more =
        ["--network", "inner", "--dns", "10.77.0.200", "--dns-search", "example.org", "--add-host", "there:10.77.0.9"];
    detached(&docker, "client", &more, "exec sleep 1000");
    for name in ["10.77.0.9", "there", "web", "www", "web.inner"] {
        assert_eq!(fetched(&docker, "client", &format!("http://{name}/")), "I am web", "{name}");
    }
    let files = exec(&docker, "client", "cat /etc/resolv.conf /etc/hosts /etc/hostname");
    assert!(files.contains("nameserver 127.0.0.11") && files.contains("search example.org"), "{files}");
    assert!(files.contains("10.77.0.9\tthere") && files.lines().any(|l| l == "client"), "{files}");
    // Nobody has this name: the answer is no, and not a silence.
    assert!(!succeeds(&docker, "client", "nslookup no-such-name.inner"));
    docker.remove_all(&["web", "client"]);
}

#[test]
fn networks_come_and_go_while_it_runs() {
    let _leaks = Guard::new();
    let docker = Docker::networked(Release::Distribution);
    docker
        .docker([
            "network",
            "create",
            "--subnet",
            "10.78.0.0/24",
            "--opt",
            "com.docker.network.driver.mtu=1400",
            "later",
        ])
        .ok();
    detached(&docker, "web", &["--network", "later"], SERVER);
    detached(&docker, "client", &[], "exec sleep 1000");
    let address = docker.inspect("web", "{{.NetworkSettings.Networks.later.IPAddress}}");
    let url = format!("http://{address}/");
    assert!(!succeeds(&docker, "client", &format!("timeout 5 wget -q -O - {url}")), "networks are apart");
    for round in 1..=2 {
        docker.docker(["network", "connect", "later", "client"]).ok();
        assert_eq!(fetched(&docker, "client", &url), "I am web", "round {round}");
        let seen = exec(&docker, "client", "ip addr; ip route");
        assert!(seen.contains("mtu 1400") && seen.contains("default via 172.17.0.1 dev eth0"), "{seen}");
        docker.docker(["network", "disconnect", "later", "client"]).ok();
        wait::until("the interface to go", SOON, || {
            (!exec(&docker, "client", "ip addr").contains("10.78.0.")).then_some(())
        });
        exec(&docker, "client", "ping -c 1 -W 3 172.17.0.1");
    }
    docker.remove_all(&["web", "client"]);
}

#[test]
fn an_internal_network_with_ipv6() {
    let _leaks = Guard::new();
    let docker = Docker::networked(Release::Distribution);
    let subnets = ["--subnet", "10.79.0.0/24", "--subnet", "fd00:79::/64"];
    docker.docker(["network", "create", "--internal", "--ipv6"]).args(subnets).arg("inside").ok();
    detached(&docker, "web", &["--network", "inside", "--ip6", "fd00:79::9"], SERVER);
    detached(&docker, "client", &["--network", "inside"], "exec sleep 1000");
    let seen = exec(&docker, "web", "ip addr show eth0");
    assert!(seen.contains("inet6 fd00:79::9/64"), "{seen}");
    assert_eq!(fetched(&docker, "client", "http://[fd00:79::9]/"), "I am web");
    // What docker does about a way out is the same for both runtimes.
    let on_runc = ["run", "--runtime", "runc", "--detach", "--name", "beside", "--network", "inside"];
    docker.docker(on_runc).args([BUSYBOX, "sleep", "1000"]).ok();
    for command in ["ip route | grep ^default", "ip -6 route | grep ^default"] {
        assert_eq!(exec(&docker, "client", command), exec(&docker, "beside", command), "{command}");
    }
    assert_eq!(fetched(&docker, "beside", "http://[fd00:79::9]/"), "I am web");
    // A server outside answers everybody but those inside.
    let outside = ["run", "--runtime", "runc", "--detach", "--name", "outside", BUSYBOX, "sh", "-c", SERVER];
    docker.docker(outside).ok();
    let address = docker.inspect("outside", "{{.NetworkSettings.IPAddress}}");
    fetched_on_host(&docker, &format!("http://{address}/"));
    assert!(!succeeds(&docker, "client", &format!("timeout 3 wget -q -O - http://{address}/")));
    docker.remove_all(&["web", "client", "beside", "outside"]);
}

#[test]
fn the_hosts_network_and_another_containers_are_refused() {
    let _leaks = Guard::new();
    let docker = Docker::networked(Release::Distribution);
    let out = docker.run_connected(["--rm", "--network", "host", BUSYBOX, "true"]).run().expect(125);
    out.complained("host network");
    docker.run_with("runc", ["--detach", "--name", "beside"]).args([BUSYBOX, "sleep", "1000"]).ok();
    let out = docker.run_connected(["--rm", "--network", "container:beside", BUSYBOX, "true"]).run().expect(125);
    out.complained("network of another container");
    docker.remove_all(&["beside"]);
}

#[test]
fn a_newer_docker_attaches_the_network_after_create() {
    let _leaks = Guard::new();
    let docker = Docker::networked(Release::Newer);
    detached(&docker, "web", &["--publish", "8080:80"], SERVER);
    assert_eq!(fetched_on_host(&docker, "http://127.0.0.1:8080/"), "I am web");
    docker.docker(["network", "create", "inner"]).ok();
    docker.docker(["network", "connect", "inner", "web"]).ok();
    detached(&docker, "client", &["--network", "inner"], "exec sleep 1000");
    assert_eq!(fetched(&docker, "client", "http://web/"), "I am web");
    docker.docker(["network", "disconnect", "inner", "web"]).ok();
    assert_eq!(fetched_on_host(&docker, "http://127.0.0.1:8080/"), "I am web");
    docker.remove_all(&["web", "client"]);
}
