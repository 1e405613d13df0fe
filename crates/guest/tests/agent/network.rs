//! Interfaces, routes, neighbours, packet filter. The agent as a process has a network namespace of its own, into which
//! these tests put pairs of virtual cables and look with ip(8); a machine has two cards that are wired to each other.

use std::process::Command;
use std::time::{Duration, Instant};

use kata_proto::agent as pb;
use kata_proto::channel::Stdio;
use kata_proto::types::{ARPNeighbor, IPAddress, IPFamily, Interface, Route};

use crate::guest::{Guest, MACS, process};
use crate::host::Host;
use crate::{ALL, all_of, context, create, in_a_machine, remove, start, status};

const ONLINK: u32 = 4;
const LINK_SCOPE: u32 = 253;

pub async fn network(guest: &Guest, host: &Host) {
    let namespace = (!in_a_machine()).then(|| Namespace::of(guest));
    if let Some(namespace) = &namespace {
        namespace.cable("v0", MACS[0], "v1", MACS[1]);
    }
    let lo = interface(host, "lo").await;
    assert!(lo.raw_flags & libc_up() != 0, "the loopback is up: {lo:?}");
    assert_eq!(addresses(&lo)[0], "127.0.0.1/8");
    let missing = tokio::join!(nowhere(host), async {
        interfaces(host).await;
        names(host, namespace.is_none()).await;
        routes(host).await;
        route_errors(host).await;
        if let Some(namespace) = &namespace {
            looked_at(host, namespace).await;
            plugged_and_unplugged(host, namespace).await;
        }
        seen_by_containers(host).await;
        packet_filter(host).await;
    })
    .0;
    assert!(missing >= Duration::from_secs(9), "it was waited for, and nobody was kept waiting: {missing:?}");
}

/// Where an agent that is a process has its interfaces.
struct Namespace(String);

impl Namespace {
    fn of(guest: &Guest) -> Self {
        let pid = guest.agent_pid();
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
        assert_ne!(of(&pid), of("self"), "the agent has a network of its own");
        Namespace(pid)
    }

    fn ip(&self, words: &str) -> String {
        let out = Command::new("nsenter")
            .args(["--net", "--target", &self.0, "ip"])
            .args(words.split_whitespace())
            .output()
            .expect("nsenter and ip are installed");
        assert!(out.status.success(), "ip {words}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    fn cable(&self, one: &str, mac: &str, other: &str, other_mac: &str) {
        self.ip(&format!("link add {one} address {mac} type veth peer name {other} address {other_mac}"));
        self.ip(&format!("link set {other} up"));
    }
}

fn libc_up() -> u32 {
    1
}

fn request(mac: &str, name: &str, nets: &[&str]) -> Interface {
    let address = |net: &&str| {
        let (address, mask) = net.split_once('/').unwrap();
        IPAddress { address: address.into(), mask: mask.into(), ..Default::default() }
    };
    let list = nets.iter().map(address).collect();
    Interface { name: name.into(), hwAddr: mac.into(), IPAddresses: list, mtu: 1500, ..Default::default() }
}

async fn update(host: &Host, interface: Interface) -> Result<Interface, (ttrpc::Code, String)> {
    let request = pb::UpdateInterfaceRequest { interface: Some(interface).into(), ..Default::default() };
    host.agent.update_interface(context(), &request).await.map_err(status)
}

async fn all_interfaces(host: &Host) -> Vec<Interface> {
    host.agent.list_interfaces(context(), &pb::ListInterfacesRequest::default()).await.unwrap().Interfaces
}

async fn interface(host: &Host, name: &str) -> Interface {
    let all = all_interfaces(host).await;
    all.iter().find(|i| i.name == name).unwrap_or_else(|| panic!("no {name} in {all:?}")).clone()
}

/// Without those that the kernel makes of the Ethernet address.
fn addresses(interface: &Interface) -> Vec<String> {
    let all = interface.IPAddresses.iter().map(|a| format!("{}/{}", a.address, a.mask));
    let mut all: Vec<_> = all.filter(|a| !a.starts_with("fe80::")).collect();
    all.sort();
    all
}

/// How long one waits for a card that does not come.
async fn nowhere(host: &Host) -> Duration {
    let begun = Instant::now();
    let (code, text) = update(host, request("02:00:00:00:99:99", "eth9", &[])).await.unwrap_err();
    assert_eq!(code, ttrpc::Code::NOT_FOUND);
    assert_eq!(text, "no interface with the address 02:00:00:00:99:99 appeared within 10 s");
    begun.elapsed()
}

async fn interfaces(host: &Host) {
    // By its place a card can be found in a machine alone; there it also gets another address.
    let mut first = request(MACS[0], "eth0", &["10.7.0.2/24", "10.7.0.3/24", "fd07::2/64"]);
    first.mtu = 1400;
    if in_a_machine() {
        let mut placed = first.clone();
        placed.devicePath = "0a".into();
        placed.hwAddr = "02:00:00:00:07:77".into();
        assert_eq!(update(host, placed).await.unwrap().hwAddr, "02:00:00:00:07:77");
        first.devicePath = "0a".into();
    } else {
        let placed = Interface { devicePath: "0a".into(), ..first.clone() };
        let (code, text) = update(host, placed).await.unwrap_err();
        assert!(code == ttrpc::Code::UNIMPLEMENTED && text.contains("PCI path 0a"), "{code:?} {text}");
    }
    let begun = Instant::now();
    let is = update(host, first.clone()).await.unwrap();
    println!("    an interface is set up in {:?}", begun.elapsed());
    assert_eq!((is.name.as_str(), is.hwAddr.as_str(), is.mtu), ("eth0", MACS[0], 1400));
    assert_eq!(addresses(&is), ["10.7.0.2/24", "10.7.0.3/24", "fd07::2/64"]);
    assert!(is.raw_flags & libc_up() != 0, "{is:?}");
    let v6 = is.IPAddresses.iter().filter(|a| a.family.unwrap() == IPFamily::v6);
    assert!(v6.clone().count() >= 1 && v6.into_iter().all(|a| a.address.contains(':')), "{is:?}");
    // The routes of an interface that is not touched stay.
    let via = vec![Route { gateway: "10.7.0.1".into(), device: "eth0".into(), ..Default::default() }];
    set_routes(host, via).await.unwrap();
    // The kernel finds out a moment later that there is a carrier, and then makes its own address.
    let automatic = |i: &Interface| {
        let own = i.IPAddresses.iter().any(|a| a.address == "fe80::ff:fe00:a");
        own && i.raw_flags & libc::IFF_RUNNING.cast_unsigned() != 0
    };
    let (mut is, begun) = (is, Instant::now());
    while !automatic(&is) {
        assert!(begun.elapsed() < Duration::from_secs(20), "no address of its own: {is:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
        is = interface(host, "eth0").await;
    }
    let again = update(host, first.clone()).await.unwrap();
    assert_eq!(again, is);
    assert!(routes_now(host).await.iter().any(|r| r.dest == "0.0.0.0/0" && r.gateway == "10.7.0.1"));
    // With the first address of its network the kernel removes the second, which is still wanted.
    first.IPAddresses.remove(0);
    let fewer = update(host, first.clone()).await.unwrap();
    assert_eq!(addresses(&fewer), ["10.7.0.3/24", "fd07::2/64"]);
    first.raw_flags = 0x80;
    first.name.clear();
    let quiet = update(host, first.clone()).await.unwrap();
    assert!(quiet.raw_flags & 0x80 != 0 && quiet.name == "eth0", "{quiet:?}");
    first.raw_flags = 0;
    assert_eq!(update(host, first).await.unwrap().raw_flags & 0x80, 0);

    for (bad, word) in [
        (request("nonsense", "eth0", &[]), "nonsense"),
        (request("", "eth0", &[]), "neither hwAddr nor devicePath"),
        (request(MACS[0], "a/b", &[]), "a/b"),
        (request(MACS[0], "eth0", &["10.0.0.1/40"]), "10.0.0.1"),
        (Interface { mtu: 1 << 40, ..request(MACS[0], "eth0", &[]) }, "1099511627776"),
        (request(MACS[0], "lo", &[]), "\"lo\""),
    ] {
        let (code, text) = update(host, bad).await.unwrap_err();
        assert!(code == ttrpc::Code::INVALID_ARGUMENT && text.contains(word), "{code:?} {text}");
    }
    let (code, text) =
        update(host, Interface { mtu: 10, ..request(MACS[0], "eth0", &["10.7.0.3/24"]) }).await.unwrap_err();
    assert!(
        code == ttrpc::Code::INTERNAL && text.starts_with("cannot set the MTU 10 of the interface eth0: "),
        "{text}"
    );
    assert_eq!(interface(host, "eth0").await.mtu, 1400);
}

/// A name that another interface has is taken from it, and that one gets ours.
async fn names(host: &Host, two_cards: bool) {
    let old = if two_cards { "eth1" } else { "v1" };
    let list = vec![route("10.99.0.0/16", "10.7.0.1", "eth0"), route("fd99::/16", "fd07::1", "eth0")];
    let before = told(&set_routes(host, list).await.unwrap());
    assert_eq!(before.len(), 2, "{before:?}");
    let second = update(host, request(MACS[1], "eth0", &["10.8.0.2/16"])).await.unwrap();
    assert_eq!((second.name.as_str(), second.hwAddr.as_str()), ("eth0", MACS[1]));
    let first = interface(host, old).await;
    assert_eq!((first.hwAddr.as_str(), first.raw_flags & libc_up()), (MACS[0], libc_up()));
    assert_eq!(addresses(&first), ["10.7.0.3/24", "fd07::2/64"], "it keeps what it has");
    let after: Vec<_> = before.iter().map(|line| line.replace("eth0", old)).collect();
    assert_eq!(told(&routes_now(host).await), after);
    let first = update(host, request(MACS[0], "eth0", &["10.7.0.2/24", "fd07::2/64"])).await.unwrap();
    assert_eq!((first.name.as_str(), first.hwAddr.as_str()), ("eth0", MACS[0]));
    let second = update(host, request(MACS[1], "eth1", &["10.8.0.2/16"])).await.unwrap();
    assert_eq!((second.name.as_str(), second.hwAddr.as_str()), ("eth1", MACS[1]));
}

async fn routes_now(host: &Host) -> Vec<Route> {
    host.agent.list_routes(context(), &pb::ListRoutesRequest::default()).await.unwrap().Routes
}

async fn set_routes(host: &Host, list: Vec<Route>) -> Result<Vec<Route>, (ttrpc::Code, String)> {
    let routes = Some(pb::Routes { Routes: list, ..Default::default() }).into();
    let request = pb::UpdateRoutesRequest { routes, ..Default::default() };
    host.agent.update_routes(context(), &request).await.map(|r| r.Routes).map_err(status)
}

fn route(dest: &str, gateway: &str, device: &str) -> Route {
    Route { dest: dest.into(), gateway: gateway.into(), device: device.into(), ..Default::default() }
}

fn wanted_routes() -> Vec<Route> {
    let v6 = IPFamily::v6.into();
    // What goes by a gateway comes before what makes the gateway reachable.
    vec![
        route("", "10.7.0.1", "eth0"),
        Route { metric: 50, ..route("0.0.0.0/0", "10.8.0.1", "eth1") },
        route("10.30.0.0/16", "10.20.0.9", "eth0"),
        Route { scope: LINK_SCOPE, ..route("10.20.0.0/24", "", "eth0") },
        Route { source: "10.8.0.2".into(), mtu: 1300, ..route("10.40.0.0/16", "10.8.0.3", "eth1") },
        Route { flags: ONLINK, ..route("10.50.0.0/16", "192.0.2.1", "eth0") },
        route("10.60.0.1", "", "eth1"),
        Route { family: v6, ..route("", "fd07::1", "eth0") },
        route("fd09::/48", "fe80::9", "eth0"),
        Route { metric: 9, ..route("fd0a::/64", "", "eth1") },
    ]
}

/// The routes that the kernel did not make by itself.
fn told(list: &[Route]) -> Vec<String> {
    let line = |r: &Route| {
        format!("{} {} {} {} {} {} {} {}", r.dest, r.gateway, r.device, r.source, r.scope, r.flags, r.mtu, r.metric)
    };
    let automatic = |r: &Route| r.gateway.is_empty() && (r.metric == 256 || !r.source.is_empty() && r.scope == 253);
    let mut lines: Vec<_> = list.iter().filter(|r| !automatic(r)).map(line).collect();
    lines.sort();
    lines
}

async fn routes(host: &Host) {
    let expected = [
        "0.0.0.0/0 10.7.0.1 eth0  0 0 0 0",
        "0.0.0.0/0 10.8.0.1 eth1  0 0 0 50",
        "10.20.0.0/24  eth0  253 0 0 0",
        "10.30.0.0/16 10.20.0.9 eth0  0 0 0 0",
        "10.40.0.0/16 10.8.0.3 eth1 10.8.0.2 0 0 1300 0",
        "10.50.0.0/16 192.0.2.1 eth0  0 4 0 0",
        "10.60.0.1/32  eth1  0 0 0 0",
        "::/0 fd07::1 eth0  0 0 0 1024",
        "fd09::/48 fe80::9 eth0  0 0 0 1024",
        "fd0a::/64  eth1  0 0 0 9",
    ];
    let begun = Instant::now();
    let made = set_routes(host, wanted_routes()).await.unwrap();
    println!("    ten routes are set in {:?}", begun.elapsed());
    assert_eq!(told(&made), expected, "{made:?}");
    let connected = |list: &[Route]| {
        list.iter().any(|r| r.dest == "10.7.0.0/24" && r.source == "10.7.0.2")
            && list.iter().any(|r| r.dest == "fd07::/64" && r.family.unwrap() == IPFamily::v6)
    };
    assert!(connected(&made), "the kernel's own are there: {made:?}");
    // What was listed can be set, and once more is the same.
    let again = set_routes(host, made.clone()).await.unwrap();
    assert_eq!(told(&again), expected);
    // A gateway of another family.
    let mut list = wanted_routes();
    list.push(route("10.70.0.0/16", "fe80::7", "eth0"));
    let more = set_routes(host, list).await.unwrap();
    assert!(more.iter().any(|r| r.dest == "10.70.0.0/16" && r.gateway == "fe80::7"), "{more:?}");
    // Without metrics the first way counts.
    let two = vec![route("", "10.7.0.1", "eth0"), route("", "10.8.0.1", "eth1")];
    assert_eq!(told(&set_routes(host, two).await.unwrap()), ["0.0.0.0/0 10.7.0.1 eth0  0 0 0 0"]);
    let none = set_routes(host, Vec::new()).await.unwrap();
    assert!(told(&none).is_empty() && connected(&none), "{none:?}");
    assert_eq!(told(&set_routes(host, wanted_routes()).await.unwrap()), expected);
}

async fn route_errors(host: &Host) {
    let before = told(&routes_now(host).await);
    for (bad, code, text) in [
        (
            route("10.9.0.0/16", "", "eth7"),
            ttrpc::Code::NOT_FOUND,
            "the route 10.9.0.0/16 dev eth7: there is no interface \"eth7\"",
        ),
        (route("10.9.0.0/99", "", "eth0"), ttrpc::Code::INVALID_ARGUMENT, "route 10.9.0.0/99 dev eth0: "),
        (route("10.9.0.0/16", "", ""), ttrpc::Code::INVALID_ARGUMENT, "route 10.9.0.0/16: "),
    ] {
        let (got, said) = set_routes(host, vec![bad]).await.unwrap_err();
        assert!(got == code && said.starts_with(text), "{got:?} {said}");
        assert_eq!(told(&routes_now(host).await), before, "nothing was changed");
    }
    let mut list = wanted_routes();
    list.push(route("10.9.0.0/16", "203.0.113.1", "eth0"));
    let (code, text) = set_routes(host, list).await.unwrap_err();
    let begins = "cannot add the route 10.9.0.0/16 via 203.0.113.1 dev eth0: Network is unreachable (";
    assert!(code == ttrpc::Code::INTERNAL && text.starts_with(begins), "{text}");
    assert_eq!(told(&routes_now(host).await), before);
}

fn neighbour(address: &str, device: &str, lladdr: &str) -> ARPNeighbor {
    let to = IPAddress { address: address.into(), ..Default::default() };
    let (device, lladdr) = (device.into(), lladdr.into());
    ARPNeighbor { toIPAddress: Some(to).into(), device, lladdr, ..Default::default() }
}

async fn set_neighbours(host: &Host, list: Vec<ARPNeighbor>) -> Result<(), (ttrpc::Code, String)> {
    let neighbors = Some(pb::ARPNeighbors { ARPNeighbors: list, ..Default::default() }).into();
    let request = pb::AddARPNeighborsRequest { neighbors, ..Default::default() };
    host.agent.add_arp_neighbors(context(), &request).await.map(drop).map_err(status)
}

/// What ip(8) sees of all this, and neighbours, which no call lists.
async fn looked_at(host: &Host, namespace: &Namespace) {
    let mac = "02:00:00:00:00:77";
    let noarp = ARPNeighbor { state: 0x40, ..neighbour("fd07::8", "eth0", mac) };
    for _ in 0..2 {
        set_neighbours(host, vec![neighbour("10.7.0.9", "eth0", mac), noarp.clone()]).await.unwrap();
    }
    let text = namespace.ip("neigh show dev eth0 nud all");
    assert!(text.contains(&format!("10.7.0.9 lladdr {mac} PERMANENT")), "{text}");
    assert!(text.contains(&format!("fd07::8 lladdr {mac} NOARP")), "{text}");
    set_neighbours(host, vec![neighbour("10.7.0.9", "eth0", "02:00:00:00:00:78")]).await.unwrap();
    let text = namespace.ip("neigh show dev eth0 nud all");
    assert!(text.contains("10.7.0.9 lladdr 02:00:00:00:00:78 PERMANENT"), "{text}");
    let (code, text) = set_neighbours(host, vec![neighbour("10.7.0.9", "eth7", mac)]).await.unwrap_err();
    assert_eq!(
        (code, text.as_str()),
        (ttrpc::Code::NOT_FOUND, "the neighbour 10.7.0.9: there is no interface \"eth7\"")
    );
    let (code, text) = set_neighbours(host, vec![neighbour("10.7.0.33", "eth0", "")]).await.unwrap_err();
    let begins = "cannot set the neighbour 10.7.0.33 at eth0: Invalid argument";
    assert!(code == ttrpc::Code::INTERNAL && text.starts_with(begins), "{text}");
    let (code, _) = set_neighbours(host, vec![neighbour("nobody", "eth0", mac)]).await.unwrap_err();
    assert_eq!(code, ttrpc::Code::INVALID_ARGUMENT);

    let text = namespace.ip("addr show dev eth0");
    assert!(text.contains("inet 10.7.0.2/24 brd 10.7.0.255 scope global eth0"), "{text}");
    assert!(text.contains("inet6 fd07::2/64 scope global nodad"), "{text}");
    assert!(!text.contains("tentative") && text.contains("inet6 fe80::"), "all addresses work at once: {text}");
    let text = namespace.ip("route show");
    for line in [
        "default via 10.7.0.1 dev eth0",
        "10.20.0.0/24 dev eth0 scope link",
        "10.40.0.0/16 via 10.8.0.3 dev eth1 src 10.8.0.2 mtu 1300",
        "10.50.0.0/16 via 192.0.2.1 dev eth0 onlink",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    // What is not ours is left alone: other tables, and what is no way to somewhere.
    namespace.ip("route add 10.99.0.0/16 dev eth0 table 77");
    namespace.ip("route add unreachable 10.98.0.0/16");
    namespace.ip("route add 10.97.0.0/16 dev eth0");
    set_routes(host, wanted_routes()).await.unwrap();
    assert!(namespace.ip("route show table 77").contains("10.99.0.0/16"));
    let text = namespace.ip("route show");
    assert!(text.contains("unreachable 10.98.0.0/16") && !text.contains("10.97.0.0/16"), "{text}");
}

async fn plugged_and_unplugged(host: &Host, namespace: &Namespace) {
    let mac = "02:00:00:00:00:1a";
    for _ in 0..2 {
        let (made, ()) = tokio::join!(update(host, request(mac, "late", &["10.9.0.2/24"])), async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            namespace.cable("v2", mac, "v3", "02:00:00:00:00:1b");
        });
        assert_eq!(addresses(&made.unwrap()), ["10.9.0.2/24"]);
        // What lies on a card may have its address, and is not it.
        namespace.ip(&format!("link add above address {mac} type bridge"));
        assert_eq!(update(host, request(mac, "late", &["10.9.0.3/24"])).await.unwrap().name, "late");
        namespace.ip("link del above");
        namespace.ip("link del late");
        assert!(!all_interfaces(host).await.iter().any(|i| i.hwAddr == mac));
        assert!(!routes_now(host).await.iter().any(|r| r.dest.starts_with("10.9.") || r.device.is_empty()));
    }
}

/// A container's network is the one that was set up.
async fn seen_by_containers(host: &Host) {
    let script = "while read x; do echo $x; done < /proc/net/dev; while read x; do echo $x; done < /proc/net/route";
    create(host, "net", process(&["sh", "-c", script], false), ALL).await.unwrap();
    let mut out = host.stdio("net", "", Stdio::Out).await;
    start(host, "net").await;
    let text = String::from_utf8(all_of(&mut out).await).unwrap();
    assert!(text.contains("eth0:") && text.contains("eth1:"), "{text}");
    assert!(text.lines().any(|l| l.starts_with("eth0") && l.contains("00000000") && l.contains("0100070A")), "{text}");
    remove(host, "net").await;
}

async fn packet_filter(host: &Host) {
    for is_ipv6 in [false, true] {
        let get = pb::GetIPTablesRequest { is_ipv6, ..Default::default() };
        let rules = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p tcp -m tcp --dport 4711 -j DROP\nCOMMIT\n";
        let mut set = pb::SetIPTablesRequest { is_ipv6, data: rules.into(), ..Default::default() };
        if in_a_machine() {
            let six = if is_ipv6 { "6" } else { "" };
            let (code, text) = status(host.agent.get_ip_tables(context(), &get).await.unwrap_err());
            assert!(
                code == ttrpc::Code::UNIMPLEMENTED && text.contains(&format!("no ip{six}tables-save in")),
                "{text}"
            );
            let (code, text) = status(host.agent.set_ip_tables(context(), &set).await.unwrap_err());
            assert!(code == ttrpc::Code::UNIMPLEMENTED && text.contains("tables-restore in"), "{text}");
            continue;
        }
        let saved = async || host.agent.get_ip_tables(context(), &get).await.map(|r| r.data).map_err(status);
        host.agent.set_ip_tables(context(), &set).await.unwrap();
        let text = String::from_utf8(saved().await.unwrap()).unwrap();
        assert!(text.contains("--dport 4711 -j DROP"), "{text}");
        set.data = b"*filter\n-A NOWHERE -j DROP\nCOMMIT\n".to_vec();
        let (code, text) = status(host.agent.set_ip_tables(context(), &set).await.unwrap_err());
        assert!(code == ttrpc::Code::INTERNAL && text.contains("tables-restore ended with "), "{text}");
        assert!(String::from_utf8(saved().await.unwrap()).unwrap().contains("4711"), "it was all or nothing");
    }
}
