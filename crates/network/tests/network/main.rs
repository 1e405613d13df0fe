//! Real namespaces, interfaces and frames. Everything is in namespaces that no name leads to: they go with this process.

mod localhost;
mod support;

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use kata_network::{
    Address, AttachError, Attachment, Kind, Model, Netns, NetnsError, Watch, attach, detach, hear_name_servers, scan,
    vhost_available,
};
use kata_testkit::harness::{self, block_on};
use support::*;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|a| a == "connect-and-wait") {
        connect_and_wait(Path::new(&args[1]), &args[2].to_string_lossy());
    }
    harness::run(
        &args,
        &[
            ("namespaces_are_told_apart", namespaces_are_told_apart),
            ("the_hosts_network_is_refused", the_hosts_network_is_refused),
            ("a_namespace_is_one_sandboxs", a_namespace_is_one_sandboxs),
            ("an_empty_namespace_has_nothing", an_empty_namespace_has_nothing),
            ("what_is_there_is_found", what_is_there_is_found),
            ("frames_pass_both_ways", frames_pass_both_ways),
            ("the_hosts_own_stack_is_silent", the_hosts_own_stack_is_silent),
            ("the_host_hears_name_servers_if_it_is_to", the_host_hears_name_servers_if_it_is_to),
            ("many_queues", many_queues),
            ("large_frames", large_frames),
            ("detaching_is_thorough_and_idempotent", detaching_is_thorough_and_idempotent),
            ("what_somebody_else_filters_is_left_alone", what_somebody_else_filters_is_left_alone),
            ("a_kill_leaves_nothing_that_is_in_the_way", a_kill_leaves_nothing_that_is_in_the_way),
            ("macvlans", macvlans),
            ("macvtap", macvtap),
            ("a_tap_made_for_the_vm_is_given_to_it", a_tap_made_for_the_vm_is_given_to_it),
            ("what_cannot_be_a_card_is_refused", what_cannot_be_a_card_is_refused),
            ("vhost", vhost),
            ("changes_are_heard_of", changes_are_heard_of),
            ("connections_to_localhost_are_taken", localhost::connections_to_localhost_are_taken),
            ("our_own_changes_are_not_heard_of", our_own_changes_are_not_heard_of),
        ],
        Duration::from_secs(30),
    )
}

const IN: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OUT: [u8; 6] = [2, 0, 0, 0, 0, 2];

fn namespaces_are_told_apart() {
    if !root() {
        return;
    }
    let host = Netns::current().unwrap();
    let new = Netns::create().unwrap();
    assert!(!new.is(&host) && host.is(&Netns::open(Path::new("/proc/self/ns/net")).unwrap()));
    assert!(Netns::open(&path(&new)).unwrap().is(&new));
    // The work is done there, and this thread stays.
    let there = new.run(|| Netns::current().unwrap()).unwrap();
    assert!(there.is(&new) && Netns::current().unwrap().is(&host));

    // By a name, as engines keep them: mounted somewhere. Here nobody else sees it.
    std::thread::scope(|scope| {
        let named = scope.spawn(|| {
            use nix::mount::{MsFlags, mount};
            use nix::sched::{CloneFlags, unshare};
            let none = None::<&str>;
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some("tmpfs"), "/mnt", Some("tmpfs"), MsFlags::empty(), none).unwrap();
            std::fs::write("/mnt/name", "").unwrap();
            mount(Some(&path(&new)), "/mnt/name", none, MsFlags::MS_BIND, none).unwrap();
            Netns::open(Path::new("/mnt/name")).unwrap().is(&new)
        });
        assert!(named.join().unwrap());
    });

    let missing = Netns::open(Path::new("/run/netns/none-of-this-name")).unwrap_err().to_string();
    assert!(missing.contains("/run/netns/none-of-this-name") && missing.contains("No such file"), "{missing}");
    for other in ["/proc/self/ns/mnt", "/dev/null", "/"] {
        let e = Netns::open(Path::new(other)).unwrap_err();
        assert!(matches!(e, NetnsError::NotOne { .. }) && e.to_string().contains(other), "{e}");
    }
}

fn the_hosts_network_is_refused() {
    let host = Netns::current().unwrap();
    let e = Netns::open(Path::new("/proc/self/ns/net")).unwrap().refuse(&host).unwrap_err();
    assert!(matches!(e, NetnsError::Host { .. }), "{e}");
    assert!(e.to_string().contains("host network") && e.to_string().contains("/proc/self/ns/net"), "{e}");
    if root() {
        Netns::create().unwrap().refuse(&host).unwrap();
    }
}

fn a_namespace_is_one_sandboxs() {
    if !root() {
        return;
    }
    let netns = Netns::create().unwrap();
    let claim = netns.claim().unwrap();
    let e = Netns::open(&path(&netns)).unwrap().claim().unwrap_err();
    assert!(matches!(e, NetnsError::Claimed { .. }) && e.to_string().contains("another sandbox"), "{e}");
    let other = Netns::create().unwrap().claim().unwrap();
    drop(claim);
    drop(netns.claim().unwrap());
    drop(other);
}

fn an_empty_namespace_has_nothing() {
    if !root() {
        return;
    }
    let netns = Netns::create().unwrap();
    ip(&netns, "link set lo up");
    assert_eq!(found(&netns), Default::default());
}

fn what_is_there_is_found() {
    if !root() {
        return;
    }
    let (netns, _outside) = pair();
    ip(&netns, "link set eth0 mtu 1400");
    ip(&netns, "addr add 10.1.2.3/24 dev eth0");
    ip(&netns, "addr add fd00::3/64 dev eth0 nodad");
    ip(&netns, "route add default via 10.1.2.1");
    ip(&netns, "route add default via 10.1.2.9 metric 50");
    ip(&netns, "route add 10.9.0.0/16 via 169.254.1.1 dev eth0 onlink mtu 1300");
    ip(&netns, "route add 169.254.1.1 dev eth0 scope link");
    ip(&netns, "route add 10.8.0.0/16 dev eth0 table 77");
    ip(&netns, "route add blackhole 10.7.0.0/16");
    ip(&netns, "-6 route add default via fd00::1 dev eth0");
    ip(&netns, "neigh add 10.1.2.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent");
    ip(&netns, "neigh add 10.1.2.78 lladdr 02:00:00:00:00:78 dev eth0 nud stale");
    // Down and without an address: not there yet. A bridge's port is the bridge's.
    ip(&netns, "link add later type veth peer name other");
    ip(&netns, "link add br0 type bridge");
    ip(&netns, "link set later master br0 up");

    let found = found(&netns);
    let names: Vec<(&str, &Kind)> = found.interfaces.iter().map(|i| (i.name.as_str(), &i.kind)).collect();
    assert_eq!(names, [("eth0", &Kind::Veth), ("other", &Kind::Veth), ("br0", &Kind::Bridge)]);
    let eth0 = &found.interfaces[0];
    assert_eq!((eth0.mtu, eth0.mac.unwrap().to_string().as_str()), (1400, "02:00:00:00:00:01"));
    assert!(eth0.in_use() && eth0.is_up() && eth0.has_carrier() && !eth0.base);
    assert!(!found.interfaces[1].in_use() && !found.interfaces[2].in_use());
    let address = |ip: &str, prefix| Address { ip: ip.parse::<IpAddr>().unwrap(), prefix };
    // Not the address that the kernel has made of the Ethernet address.
    assert!(ip(&netns, "-6 addr show dev eth0").contains("fe80::ff:fe00:1"));
    assert_eq!(eth0.addresses, [address("10.1.2.3", 24), address("fd00::3", 64)]);

    let routes: Vec<String> = found
        .routes
        .iter()
        .map(|r| {
            let to = r.destination.map_or("default".to_owned(), |d| format!("{}/{}", d.ip, d.prefix));
            let via = r.gateway.map_or(String::new(), |g| format!(" via {g}"));
            let rest = (r.scope, r.flags, r.metric, r.mtu.unwrap_or(0));
            format!("{to}{via} dev {} {rest:?}", r.interface)
        })
        .collect();
    assert_eq!(
        routes,
        [
            "169.254.1.1/32 dev eth0 (253, 0, 0, 0)",
            "10.9.0.0/16 via 169.254.1.1 dev eth0 (0, 4, 0, 1300)",
            "default via 10.1.2.1 dev eth0 (0, 0, 0, 0)",
            "default via 10.1.2.9 dev eth0 (0, 0, 50, 0)",
            "default via fd00::1 dev eth0 (0, 0, 1024, 0)",
        ]
    );
    let neighbours: Vec<String> =
        found.neighbours.iter().map(|n| format!("{} {} {} {:#x}", n.interface, n.ip, n.mac, n.state)).collect();
    assert_eq!(neighbours, ["eth0 10.1.2.77 02:00:00:00:00:77 0x80"]);
}

fn frames_pass_both_ways() {
    if !root() {
        return;
    }
    let (inside, outside) = pair();
    ip(&inside, "link set eth0 mtu 1444");
    let (a, b) = (connect(&inside, Model::Tcfilter, 1), connect(&outside, Model::Tcfilter, 1));
    assert!(ip(&inside, "link show tap0_kata").contains("mtu 1444"));
    // What we made is not the engine's.
    assert_eq!(found(&inside).interfaces.len(), 1);

    let there = frame(OUT, IN, OURS, &[0xaa; 60]);
    send(&a, 0, &there);
    assert_eq!(receive(&b, OURS, SOON).as_deref(), Some(&there[..]));
    let back = frame(IN, OUT, OURS, &[0xbb; 900]);
    send(&b, 0, &back);
    assert_eq!(receive(&a, OURS, SOON).as_deref(), Some(&back[..]));
    // To everybody, and to somebody else than the interface: guests may have addresses of their own.
    for to in [[0xff; 6], [2, 9, 9, 9, 9, 9]] {
        let frame = frame(to, OUT, OURS, &[0xcc; 60]);
        send(&b, 0, &frame);
        assert_eq!(receive(&a, OURS, SOON).as_deref(), Some(&frame[..]));
    }
}

/// The engine's interface still has its address, and the kernel would answer for it: two would answer.
fn the_hosts_own_stack_is_silent() {
    if !root() {
        return;
    }
    let (inside, outside) = pair();
    ip(&inside, "addr add 10.1.2.3/24 dev eth0");
    let b = connect(&outside, Model::Tcfilter, 1);
    // Who has 10.1.2.3? Tell 10.1.2.4 (RFC 826).
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, 1];
    body.extend([&OUT[..], &[10, 1, 2, 4], &[0; 6], &[10, 1, 2, 3]].concat());
    let question = frame([0xff; 6], OUT, ARP, &body);
    send(&b, 0, &question);
    let answer = receive(&b, ARP, SOON).expect("before it is connected, the host answers");
    assert_eq!(answer[6..12], IN);

    let a = connect(&inside, Model::Tcfilter, 1);
    send(&b, 0, &question);
    assert_eq!(receive(&a, ARP, SOON).as_deref(), Some(&question[..]));
    assert_eq!(receive(&b, ARP, NEVER), None);
}

/// Answers of name servers to the host's ports, and ARP; nothing else.
fn the_host_hears_name_servers_if_it_is_to() {
    if !root() {
        return;
    }
    let (inside, outside) = pair();
    for (netns, address) in [(&inside, "10.1.2.3/24"), (&outside, "10.1.2.1/24")] {
        ip(netns, &format!("addr add {address} dev eth0"));
    }
    let a = connect(&inside, Model::Tcfilter, 1);
    // A server of names, and one of something else.
    let server = |port: u16| outside.run(|| UdpSocket::bind(("10.1.2.1", port)).unwrap()).unwrap();
    let servers = [server(53), server(54)];
    let ask = |port: u16| {
        let client = inside.run(|| UdpSocket::bind("10.1.2.3:0").unwrap()).unwrap();
        client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        client.send_to(b"who?", ("10.1.2.1", port)).unwrap();
        let server = &servers[usize::from(port - 53)];
        server.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let mut buffer = [0; 10];
        let port = client.local_addr().unwrap().port();
        // An earlier question may have waited for ARP.
        while server.recv_from(&mut buffer).ok()?.1.port() != port {}
        server.send_to(b"me", ("10.1.2.3", port)).unwrap();
        client.recv(&mut buffer).is_ok().then_some(port)
    };
    assert_eq!(ask(53), None, "without being told, the host hears nothing");
    hear_name_servers(&inside, &a.attachment).unwrap();
    // The first question has left an unanswered ARP request, which is sent again only after a second (arp(7)).
    assert!((0..10).find_map(|_| ask(53)).is_some_and(|port| port >= 61_440));
    assert_eq!(ask(54), None);
    // The guest hears ARP as well.
    let outer = connect(&outside, Model::Tcfilter, 1);
    let question = frame([0xff; 6], OUT, ARP, &[0; 28]);
    send(&outer, 0, &question);
    assert!(std::iter::from_fn(|| receive(&a, ARP, SOON)).any(|frame| frame == question));
    detach(&inside, &a.attachment).unwrap();
    assert!(!run(&inside, "tc qdisc show dev eth0").1.contains("ingress"));
}

fn many_queues() {
    if !root() {
        return;
    }
    let (inside, outside) = pair();
    let (a, b) = (connect(&inside, Model::Tcfilter, 4), connect(&outside, Model::Tcfilter, 1));
    assert_eq!(a.queues.len(), 4);
    let queue = |direction: &str| {
        // The sysfs of that namespace, mounted where nobody else sees it.
        let look = format!("mount -t sysfs s /sys && ls -d /sys/class/net/tap0_kata/queues/{direction}-3");
        run_words(&inside, &["unshare", "-m", "sh", "-c", &look])
    };
    for direction in ["rx", "tx"] {
        let (ok, text) = queue(direction);
        assert!(ok, "{text}");
    }
    for queue in 0..4 {
        let frame = frame(OUT, IN, OURS, &[queue as u8; 60]);
        send(&a, queue, &frame);
        assert_eq!(receive(&b, OURS, SOON).as_deref(), Some(&frame[..]), "queue {queue}");
    }
    let frame = frame(IN, OUT, OURS, &[9; 60]);
    send(&b, 0, &frame);
    assert_eq!(receive(&a, OURS, SOON).as_deref(), Some(&frame[..]));
}

fn large_frames() {
    if !root() {
        return;
    }
    let (inside, outside) = pair();
    for netns in [&inside, &outside] {
        ip(netns, "link set eth0 mtu 9000");
    }
    let (a, b) = (connect(&inside, Model::Tcfilter, 1), connect(&outside, Model::Tcfilter, 1));
    let frame = frame(OUT, IN, OURS, &[7; 8986]);
    send(&a, 0, &frame);
    assert_eq!(receive(&b, OURS, SOON), Some(frame));
}

fn detaching_is_thorough_and_idempotent() {
    if !root() {
        return;
    }
    let (inside, _outside) = pair();
    for model in [Model::Tcfilter, Model::Macvtap] {
        if model == Model::Macvtap && !has_macvtap() {
            continue;
        }
        let attached = connect(&inside, model, 2);
        let attachment = attached.attachment.clone();
        assert!(ip(&inside, "link show").contains("tap0_kata"));
        drop(attached.queues);
        for _ in 0..2 {
            detach(&inside, &attachment).unwrap();
            assert!(!ip(&inside, "link show").contains("kata"), "{model:?}");
            assert!(!run(&inside, "tc qdisc show dev eth0").1.contains("ingress"), "{model:?}");
        }
        // It can be had again.
        let again = connect(&inside, model, 1).attachment;
        // An interface that has left, and a whole namespace of another kind, are no trouble.
        detach(&Netns::create().unwrap(), &again).unwrap();
        detach(&inside, &again).unwrap();
    }
}

fn what_somebody_else_filters_is_left_alone() {
    if !root() {
        return;
    }
    let (inside, _outside) = pair();
    let tc = |words: &str| {
        let (ok, text) = run(&inside, &format!("tc {words}"));
        assert!(ok, "tc {words}: {text}");
    };
    tc("qdisc add dev eth0 ingress");
    tc("filter add dev eth0 parent ffff: protocol ip u32 match u32 0 0 flowid 1:1");
    let e = attach(&inside, &interface(&inside, "eth0"), 0, how(Model::Tcfilter, 1)).unwrap_err();
    assert!(matches!(e, AttachError::Busy { .. }) && e.to_string().contains("eth0"), "{e}");
    assert!(!ip(&inside, "link show").contains("kata"));
    let theirs = Attachment {
        index: interface(&inside, "eth0").index,
        name: "eth0".into(),
        ours: Some("tap0_kata".into()),
        model: Model::Tcfilter,
    };
    detach(&inside, &theirs).unwrap();
    assert!(run(&inside, "tc filter show dev eth0 ingress").1.contains("u32"));
}

/// What is killed below: connects eth0 of a namespace, says so, and waits.
fn connect_and_wait(netns: &Path, model: &str) -> ! {
    let model = if model == "macvtap" { Model::Macvtap } else { Model::Tcfilter };
    let netns = Netns::open(netns).unwrap();
    let _claim = netns.claim().unwrap();
    let _attached = connect(&netns, model, 2);
    println!("connected");
    std::thread::sleep(Duration::from_secs(60));
    std::process::exit(1);
}

fn a_kill_leaves_nothing_that_is_in_the_way() {
    if !root() {
        return;
    }
    for model in [Model::Tcfilter, Model::Macvtap] {
        if model == Model::Macvtap && !has_macvtap() {
            continue;
        }
        let (inside, outside) = pair();
        let mut child = Command::new("/proc/self/exe")
            .args([
                OsString::from("connect-and-wait"),
                path(&inside).into(),
                format!("{model:?}").to_lowercase().into(),
            ])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "connected\n");
        assert!(ip(&inside, "link show").contains("tap0_kata") && inside.claim().is_err());
        child.kill().unwrap();
        child.wait().unwrap();
        if model == Model::Tcfilter {
            assert!(!ip(&inside, "link show").contains("kata"), "the tap went with its last descriptor");
        }
        let _claim = inside.claim().unwrap();
        let (a, b) = (connect(&inside, model, 1), connect(&outside, Model::Tcfilter, 1));
        let frame = frame(IN, OUT, OURS, &[9; 60]);
        send(&b, 0, &frame);
        assert_eq!(receive(&a, OURS, SOON).as_deref(), Some(&frame[..]));
    }
}

fn macvlans() {
    if !root() {
        return;
    }
    let (parent, outside) = pair();
    let inside = Netns::create().unwrap();
    let (made, text) = run(&parent, "ip link add link eth0 name mv0 type macvlan mode bridge");
    if !made {
        println!("SKIP: the kernel has no macvlan: {text}");
        return;
    }
    // The way of an engine: moved, renamed, switched on.
    ip(&parent, &format!("link set mv0 netns {} name eth0", path(&inside).display()));
    ip(&inside, "link set eth0 address 02:00:00:00:00:05 up");
    let eth0 = interface(&inside, "eth0");
    assert_eq!((&eth0.kind, eth0.base), (&Kind::Macvlan, false));
    let (a, b) = (connect(&inside, Model::Tcfilter, 1), connect(&outside, Model::Tcfilter, 1));
    let mine = [2, 0, 0, 0, 0, 5];
    let there = frame(OUT, mine, OURS, &[1; 60]);
    send(&a, 0, &there);
    assert_eq!(receive(&b, OURS, SOON).as_deref(), Some(&there[..]));
    let back = frame(mine, OUT, OURS, &[2; 60]);
    send(&b, 0, &back);
    assert_eq!(receive(&a, OURS, SOON).as_deref(), Some(&back[..]));

    let e = attach(&inside, &eth0, 1, how(Model::Macvtap, 1)).unwrap_err();
    assert!(matches!(e, AttachError::Unsupported { .. }) && e.to_string().contains("tcfilter"), "{e}");
    // The parent, seen from its own namespace, has somebody on top only if that is there too.
    ip(&parent, "link add link eth0 name mv1 type macvlan mode bridge");
    assert!(interface(&parent, "eth0").base && !interface(&parent, "mv1").base);
    let e = attach(&parent, &interface(&parent, "eth0"), 0, how(Model::Tcfilter, 1)).unwrap_err();
    assert!(e.to_string().contains("on top of it"), "{e}");
}

fn has_macvtap() -> bool {
    let has = std::fs::read_to_string("/proc/devices").unwrap().contains("macvtap");
    if !has {
        println!("SKIP: the kernel has no macvtap");
    }
    has
}

fn macvtap() {
    if !root() || !has_macvtap() {
        return;
    }
    let (inside, outside) = pair();
    ip(&inside, "link set eth0 mtu 1300");
    let (a, b) = (connect(&inside, Model::Macvtap, 2), connect(&outside, Model::Tcfilter, 1));
    let shown = ip(&inside, "-d link show tap0_kata");
    assert!(shown.contains("mtu 1300") && shown.contains("passthru") && shown.contains("02:00:00:00:00:01"), "{shown}");
    assert_eq!(found(&inside).interfaces.len(), 1);
    let there = frame(OUT, IN, OURS, &[3; 60]);
    for queue in 0..2 {
        send(&a, queue, &there);
        assert_eq!(receive(&b, OURS, SOON).as_deref(), Some(&there[..]));
    }
    let back = frame(IN, OUT, OURS, &[4; 60]);
    send(&b, 0, &back);
    assert_eq!(receive(&a, OURS, SOON).as_deref(), Some(&back[..]));
}

fn a_tap_made_for_the_vm_is_given_to_it() {
    if !root() {
        return;
    }
    let netns = Netns::create().unwrap();
    for (words, queues) in [("tuntap add tap7 mode tap", 1), ("tuntap add tap8 mode tap multi_queue", 2)] {
        ip(&netns, words);
        let name = words.split(' ').nth(2).unwrap();
        ip(&netns, &format!("link set {name} up"));
        let tap = interface(&netns, name);
        assert_eq!(tap.kind, Kind::Tap);
        for model in [Model::None, Model::Tcfilter] {
            let got = attach(&netns, &tap, 0, how(model, 2)).unwrap().unwrap();
            assert_eq!((got.queues.len(), &got.attachment.ours), (queues, &None), "{name}");
            detach(&netns, &got.attachment).unwrap();
        }
        assert!(ip(&netns, "link show").contains(name), "it is the engine's");
    }
    let (inside, _outside) = pair();
    assert!(attach(&inside, &interface(&inside, "eth0"), 0, how(Model::None, 1)).unwrap().is_none());
}

fn what_cannot_be_a_card_is_refused() {
    if !root() {
        return;
    }
    let netns = Netns::create().unwrap();
    ip(&netns, "tuntap add tun0 mode tun");
    ip(&netns, "addr add 10.5.5.5/24 dev tun0");
    ip(&netns, "link set tun0 up");
    let tun = interface(&netns, "tun0");
    for model in [Model::Tcfilter, Model::Macvtap] {
        let e = attach(&netns, &tun, 0, how(model, 1)).unwrap_err();
        assert!(matches!(e, AttachError::Unsupported { .. }), "{e}");
        assert!(e.to_string().contains("tun0") && e.to_string().contains("Ethernet"), "{e}");
    }
}

fn vhost() {
    if !root() {
        return;
    }
    let (inside, _outside) = pair();
    let attached = attach(
        &inside,
        &interface(&inside, "eth0"),
        0,
        kata_network::Attach { model: Model::Tcfilter, queues: 2, vhost: true },
    );
    if vhost_available() {
        assert!(attached.unwrap().unwrap().queues.iter().all(|q| q.vhost.is_some()));
        return;
    }
    let e = attached.unwrap_err().to_string();
    assert!(e.contains("/dev/vhost-net") && e.contains("eth0"), "{e}");
    assert!(!run(&inside, "tc qdisc show dev eth0").1.contains("ingress"));
    assert!(!ip(&inside, "link show").contains("kata"));
    println!("SKIP: no /dev/vhost-net here; that it is missed was checked");
}

fn changes_are_heard_of() {
    if !root() {
        return;
    }
    let (netns, _outside) = pair();
    block_on(async {
        // What making it has set off.
        let mut settled = Watch::new(&netns).unwrap();
        while tokio::time::timeout(Duration::from_secs(3), settled.changed()).await.is_ok() {}
        let mut watch = Watch::new(&netns).unwrap();
        for words in [
            "addr add 10.1.2.3/24 dev eth0",
            "route add default via 10.1.2.1",
            "neigh add 10.1.2.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent",
            "route del default",
            "addr del 10.1.2.3/24 dev eth0",
            "addr add fd00::9/64 dev eth0 nodad",
            "link set eth0 mtu 1400",
            "link add eth1 type veth peer name eth2",
            "link del eth1",
        ] {
            ip(&netns, words);
            let heard = tokio::time::timeout(SOON, watch.changed()).await;
            heard.unwrap_or_else(|_| panic!("nothing was heard of: {words}")).unwrap();
        }
        // A burst is told once, soon after it.
        tokio::time::sleep(NEVER).await;
        while tokio::time::timeout(NEVER, watch.changed()).await.is_ok() {}
        for n in 1..=20 {
            ip(&netns, &format!("addr add 10.3.3.{n}/24 dev eth0"));
        }
        let begun = Instant::now();
        watch.changed().await.unwrap();
        assert!(begun.elapsed() < Duration::from_millis(600), "{:?}", begun.elapsed());
        assert_eq!(scan(&netns).unwrap().interfaces[0].addresses.iter().filter(|a| a.ip.is_ipv4()).count(), 20);
        assert!(tokio::time::timeout(NEVER, watch.changed()).await.is_err(), "it was told twice");
        // What is forgotten and remembered by itself is no change.
        ip(&netns, "neigh add 10.1.2.10 lladdr 02:00:00:00:00:0a dev eth0 nud stale");
        assert!(tokio::time::timeout(NEVER, watch.changed()).await.is_err());
    });
}

fn our_own_changes_are_not_heard_of() {
    if !root() {
        return;
    }
    let (netns, _outside) = pair();
    block_on(async {
        let mut watch = Watch::new(&netns).unwrap();
        while tokio::time::timeout(Duration::from_secs(3), watch.changed()).await.is_ok() {}
        let attached = connect(&netns, Model::Tcfilter, 1);
        drop(attached.queues);
        detach(&netns, &attached.attachment).unwrap();
        assert!(tokio::time::timeout(NEVER, watch.changed()).await.is_err());
    });
}
