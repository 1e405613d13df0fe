//! Redirection between two interfaces with traffic control: an ingress queueing discipline on both, and a filter that
//! matches all of every protocol and has each packet leave through the other (tc-u32(8), tc-mirred(8)).

use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionMirror, TcActionMirrorOption, TcActionOption, TcActionType,
    TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Key,
    TcU32Selector, TcU32SelectorFlags,
};

use crate::netlink::{Change, Netlink};

/// The priorities of our filters, by which we know them again; the least is asked first.
const BOTH_HEAR: u16 = 0xca78;
const HOST_HEARS: u16 = 0xca79;
const PRIORITY: u16 = 0xca7a;
/// The ingress discipline's handle, the parent of its filters: ffff:0.
const INGRESS: TcHandle = TcHandle { major: u16::MAX, minor: 0 };

/// `ETH_P_ALL`.
const ALL: u16 = libc::ETH_P_ALL as u16;
/// `ETH_P_ARP`.
const ARP: u16 = libc::ETH_P_ARP as u16;
/// `ETH_P_IP`.
const IPV4: u16 = libc::ETH_P_IP as u16;

fn message(index: u32) -> TcMessage {
    TcMessage::with_index(index.cast_signed())
}

fn ingress(index: u32) -> TcMessage {
    let mut qdisc = message(index);
    qdisc.header.handle = INGRESS;
    qdisc.header.parent = TcHandle::INGRESS;
    qdisc.attributes.push(TcAttribute::Kind("ingress".to_owned()));
    qdisc
}

/// Gives an interface the discipline to which filters can be added. `EEXIST`: it has one.
pub(crate) fn add_ingress(index: u32) -> Change {
    (Message::NewQueueDiscipline(ingress(index)), NLM_F_CREATE | NLM_F_EXCL)
}

/// Takes it away with its filters.
pub(crate) fn remove_ingress(index: u32) -> Change {
    (Message::DelQueueDiscipline(ingress(index)), 0)
}

/// Sends all that arrives at `from` out through `to`.
pub(crate) fn redirect(from: u32, to: u32) -> Change {
    // One key, whose mask lets all pass.
    let action = mirred(TcMirrorActionType::EgressRedir, TcActionType::Stolen, to);
    filter(from, PRIORITY, ALL, vec![TcU32Key::default()], TcFilterU32Option::Action(vec![action]))
}

/// What the host's own stack hears at `from`, though all else is redirected to `to`: who has which address (ARP), as the
/// guest does, and what name servers send to ports from `0xf000` on, which the guest does not.
pub(crate) fn hear_name_servers(from: u32, to: u32) -> Vec<Change> {
    let copy = mirred(TcMirrorActionType::EgressMirror, TcActionType::Ok, to);
    let arp = filter(from, BOTH_HEAR, ARP, vec![TcU32Key::default()], TcFilterU32Option::Action(vec![copy]));
    let answers = |protocol: u32| {
        // Words of an IPv4 header without options, and of the first fragment; then the ports (RFC 791).
        let keys = vec![
            key(0, 0x0500_0000, 0x0f00_0000),
            key(4, 0, 0x0000_1fff),
            key(8, protocol << 16, 0x00ff_0000),
            key(20, (53 << 16) | 0xf000, 0xffff_f000),
        ];
        let let_through = TcFilterU32Option::ClassId(TcHandle { major: 1, minor: 1 });
        filter(from, HOST_HEARS, IPV4, keys, let_through)
    };
    vec![arp, answers(libc::IPPROTO_UDP.cast_unsigned()), answers(libc::IPPROTO_TCP.cast_unsigned())]
}

fn key(offset: i32, value: u32, mask: u32) -> TcU32Key {
    let mut key = TcU32Key::default();
    (key.off, key.val, key.mask) = (offset, value, mask);
    key
}

fn mirred(what: TcMirrorActionType, then: TcActionType, to: u32) -> TcAction {
    let mut mirror = TcMirror::default();
    mirror.generic = TcActionGeneric::default();
    mirror.generic.action = then;
    mirror.eaction = what;
    mirror.ifindex = to;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];
    action
}

fn filter(from: u32, priority: u16, protocol: u16, keys: Vec<TcU32Key>, what: TcFilterU32Option) -> Change {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    // A handful.
    selector.nkeys = keys.len() as u8;
    selector.keys = keys;
    let mut filter = message(from);
    filter.header.parent = INGRESS;
    filter.header.info = TcHandle { major: priority, minor: protocol.to_be() }.into();
    filter.attributes = vec![
        TcAttribute::Kind(TcFilterU32::KIND.to_owned()),
        TcAttribute::Options(vec![TcOption::U32(TcFilterU32Option::Selector(selector)), TcOption::U32(what)]),
    ];
    (Message::NewTrafficFilter(filter), NLM_F_CREATE | NLM_F_EXCL)
}

/// Whether all filters that an interface has on what arrives are ours (or there are none).
pub(crate) fn is_ours(netlink: &mut Netlink, index: u32) -> io::Result<bool> {
    let mut filters = message(index);
    filters.header.parent = INGRESS;
    let all = netlink.list(&Message::GetTrafficFilter(filters))?;
    let ours = u32::from(BOTH_HEAR)..=u32::from(PRIORITY);
    Ok(all.iter().all(|m| matches!(m, Message::NewTrafficFilter(f) if ours.contains(&(f.header.info >> 16)))))
}
