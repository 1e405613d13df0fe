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

/// The priority of our filter, by which we know it again.
const PRIORITY: u16 = 0xca7a;
/// The ingress discipline's handle, the parent of its filters: ffff:0.
const INGRESS: TcHandle = TcHandle { major: u16::MAX, minor: 0 };

/// `ETH_P_ALL`, in network order.
fn all_protocols() -> u16 {
    (libc::ETH_P_ALL as u16).to_be()
}

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
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    // One key, whose mask lets all pass.
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];
    let mut mirror = TcMirror::default();
    mirror.generic = TcActionGeneric::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];
    let mut filter = message(from);
    filter.header.parent = INGRESS;
    filter.header.info = TcHandle { major: PRIORITY, minor: all_protocols() }.into();
    filter.attributes = vec![
        TcAttribute::Kind(TcFilterU32::KIND.to_owned()),
        TcAttribute::Options(vec![
            TcOption::U32(TcFilterU32Option::Selector(selector)),
            TcOption::U32(TcFilterU32Option::Action(vec![action])),
        ]),
    ];
    (Message::NewTrafficFilter(filter), NLM_F_CREATE | NLM_F_EXCL)
}

/// Whether all filters that an interface has on what arrives are ours (or there are none).
pub(crate) fn is_ours(netlink: &mut Netlink, index: u32) -> io::Result<bool> {
    let mut filters = message(index);
    filters.header.parent = INGRESS;
    let all = netlink.list(&Message::GetTrafficFilter(filters))?;
    Ok(all.iter().all(|m| matches!(m, Message::NewTrafficFilter(f) if f.header.info >> 16 == u32::from(PRIORITY))))
}
