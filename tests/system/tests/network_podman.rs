//! Podman's default network, made by netavark before the container is. Podman lives in a network of its own, so that nothing
//! of the host's is touched.

use std::time::Duration;

use kata_testkit::engine::Podman;
use kata_testkit::image::BUSYBOX;
use kata_testkit::leaks::Guard;
use kata_testkit::wait;

/// For what happens at once in a VM that runs, on a slow machine.
const SOON: Duration = Duration::from_secs(20);

#[test]
fn the_default_network_and_a_published_port() {
    let _leaks = Guard::new();
    let podman = Podman::networked();
    let script = "mkdir /www; echo I am $(hostname) > /www/index.html; exec httpd -f -p 80 -h /www";
    let flags = ["--detach", "--name", "web", "--hostname", "web", "--publish", "8080:80"];
    podman.run_connected(flags).args([BUSYBOX, "sh", "-c", script]).ok();
    let format = "{{.NetworkSettings.IPAddress}} {{.NetworkSettings.MacAddress}} {{.NetworkSettings.Gateway}}";
    let told = podman.podman(["inspect", "--format", format, "web"]).ok().out();
    let [address, mac, gateway] = told.split(' ').collect::<Vec<_>>().try_into().unwrap();
    let seen = podman.podman(["exec", "web", "sh", "-c", "ip addr show eth0; ip route"]).ok().out();
    assert!(seen.contains(&format!("inet {address}/16")) && seen.contains(mac), "{told}: {seen}");
    assert!(seen.contains(&format!("default via {gateway} dev eth0")), "{told}: {seen}");
    for url in ["http://127.0.0.1:8080/".to_owned(), format!("http://{address}/")] {
        let page = wait::until(&url, SOON, || {
            let out = podman.on_host("curl", ["--silent", "--fail", "--max-time", "3", &url]).run();
            out.status.is_some_and(|s| s.success()).then(|| out.out())
        });
        assert_eq!(page, "I am web", "{url}");
    }
    let other = podman.run_connected(["--rm", BUSYBOX, "wget", "-q", "-O", "-"]).arg(format!("http://{address}/")).ok();
    assert_eq!(other.out(), "I am web");
    let host = podman.run_connected(["--rm", "--network", "host", BUSYBOX, "true"]).run().fails();
    host.complained("host network");
    podman.podman(["rm", "--force", "--time", "0", "web"]).ok();
    podman.holds_nothing();
}
