//! Networks of pods, made by Debian's CNI plugins (see `cri_pods.rs` for the oracle).

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use kata_testkit::leaks::Guard;
use kata_testkit_cri::api;
use kata_testkit_cri::node::is_kata;
use kata_testkit_cri::{Container, Node, Pod};

/// For what happens at once in a VM that runs, on a slow machine.
const SOON: Duration = Duration::from_secs(20);
/// A port of the host that nobody else has here.
const HOST_PORT: u16 = 28_080;

/// A web server on port 80 that says its pod's name.
fn server<'a>(pod: &'a Pod<'a>) -> Container<'a> {
    let script = "mkdir /tmp/www; hostname > /tmp/www/name; httpd -p '[::]:80' -h /tmp/www; \
                  until wget -q -O /dev/null http://127.0.0.1/name; do sleep 0.1; done; echo ready; exec sleep 10000";
    let server = pod.container("server").sh(script).start();
    server.says("ready", SOON);
    server
}

/// What the server at this address says from the host.
fn name(address: IpAddr, port: u16) -> String {
    let address = SocketAddr::new(address, port);
    let mut tcp = TcpStream::connect_timeout(&address, SOON).unwrap_or_else(|e| panic!("{address}: {e}"));
    tcp.set_read_timeout(Some(SOON)).unwrap();
    tcp.write_all(b"GET /name HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).unwrap_or_else(|e| panic!("{address}: {e}"));
    answer.lines().last().unwrap_or_default().to_owned()
}

fn addresses(pod: &Pod<'_>) -> Vec<IpAddr> {
    let network = pod.status().network.unwrap_or_default();
    let all = std::iter::once(&network.ip).chain(network.additional_ips.iter().map(|ip| &ip.ip));
    all.map(|ip| ip.parse().unwrap_or_else(|e| panic!("{ip:?}: {e}"))).collect()
}

#[test]
fn pods_reach_each_other_the_host_and_are_reached_by_both_families_and_a_port_of_the_host() {
    let _leaks = Guard::new();
    let node = Node::start();
    let red = node.pod("red").port(HOST_PORT.into(), 80).run();
    let blue = node.pod("blue").run();
    let (in_red, in_blue) = (server(&red), server(&blue));
    let (red_at, blue_at) = (addresses(&red), addresses(&blue));
    assert!(red_at.len() == 2 && red_at[0].is_ipv4() && red_at[1].is_ipv6(), "{red_at:?}");
    for (pod, addresses) in [("red", &red_at), ("blue", &blue_at)] {
        addresses.iter().for_each(|address| assert_eq!(name(*address, 80), pod, "{address} from the host"));
    }
    let url = |address: &IpAddr| match address {
        IpAddr::V4(v4) => format!("http://{v4}/name"),
        IpAddr::V6(v6) => format!("http://[{v6}]/name"),
    };
    for address in &blue_at {
        assert_eq!(in_red.out(&format!("wget -q -O - {}", url(address))), "blue");
    }
    for address in &red_at {
        assert_eq!(in_blue.out(&format!("wget -q -O - {}", url(address))), "red");
    }
    // The node's address on the bridge, which is the default route, leads to the published port; from the node as well.
    assert_eq!(in_blue.out(&format!("wget -q -O - http://10.213.0.1:{HOST_PORT}/name")), "red");
    assert_eq!(name([10, 213, 0, 1].into(), HOST_PORT), "red");
    assert!(in_blue.out("ip route").contains("default via 10.213.0.1 dev eth0"));
    assert!(in_blue.out("ip -6 route").contains("default via fd6b:6174:6100::1 dev eth0"));
    in_blue.out("ping -c 1 -w 10 10.213.0.1");

    // The container that served is replaced; the pod's addresses are the pod's.
    in_red.remove().unwrap();
    let again = red.container("server").attempt(1);
    let script = "mkdir /tmp/www; echo red again > /tmp/www/name; echo ready; exec httpd -f -p 80 -h /tmp/www";
    let again = again.sh(script).start();
    again.says("ready", SOON);
    let answers = || TcpStream::connect((red_at[0], 80)).is_ok().then_some(());
    kata_testkit::wait::until("new server", SOON, answers);
    assert_eq!(name(red_at[0], 80), "red again");
    red.end();
    blue.end();
    node.holds_nothing();
}

#[test]
fn a_pod_with_the_hosts_network_works_or_is_refused_with_a_reason() {
    let _leaks = Guard::new();
    let node = Node::start();
    let host = |config: &mut api::PodSandboxConfig| {
        let linux = config.linux.get_or_insert_default();
        let options = linux.security_context.get_or_insert_default().namespace_options.get_or_insert_default();
        options.network = api::NamespaceMode::Node.into();
        // The host's own stays.
        config.hostname.clear();
    };
    match node.pod("host").with(host).try_run() {
        Ok(pod) => {
            assert!(!is_kata(), "a virtual machine in the host's network");
            pod.end();
        }
        Err(refused) => {
            assert!(is_kata() && refused.message().contains("host network"), "{refused}");
        }
    }
    node.holds_nothing();
}
