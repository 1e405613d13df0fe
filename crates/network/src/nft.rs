//! The one rule of the packet filter that we make, in nf_tables' own messages (linux/netfilter/nf_tables.h): the host may have
//! no program for it.

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

/// How long the kernel may take to answer. Its first rule of a kind can load a module.
const ANSWER: Duration = Duration::from_secs(10);

// nfnetlink.h
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NFTABLES: u16 = 10;
// nf_tables.h, `enum nf_tables_msg_types`
const NEW_TABLE: u16 = NFTABLES << 8;
const DEL_TABLE: u16 = NFTABLES << 8 | 2;
const NEW_CHAIN: u16 = NFTABLES << 8 | 3;
const NEW_RULE: u16 = NFTABLES << 8 | 6;
/// A nested attribute (netlink.h).
const NESTED: u16 = 0x8000;

const TABLE: &str = "kata_localhost";
const CHAIN: &str = "output";
/// `NF_INET_LOCAL_OUT`
const OUTPUT: u32 = 3;
/// `NF_IP_PRI_NAT_DST`
const PRIORITY: i32 = -100;
/// `NFT_REG_1`
const REGISTER: u32 = 1;
/// `NFT_META_OIF`, `NFT_META_L4PROTO`
const OUTGOING_INTERFACE: u32 = 5;
const PROTOCOL: u32 = 16;
/// The loopback interface is every namespace's first.
const LOOPBACK: u32 = 1;

/// Redirects TCP connections that go out by the loopback interface of the calling thread's namespace, of this family
/// (`NFPROTO_IPV4`, `NFPROTO_IPV6`), to a port of its own loopback address. A rule that was there before is replaced.
///
/// # Errors
/// The kernel's: `EOPNOTSUPP` or `ENOENT` where it has no such filter.
pub(crate) fn redirect_loopback(family: u8, port: u16) -> io::Result<()> {
    let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    let patience = TimeVal::new(ANSWER.as_secs().cast_signed(), 0);
    setsockopt(&fd, sockopt::ReceiveTimeout, &patience)?;
    let batch = batch(family, port);
    if send(fd.as_raw_fd(), &batch.bytes, MsgFlags::empty())? != batch.bytes.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    let mut buffer = vec![0; 16 << 10];
    let mut answered = 0;
    let deadline = Instant::now() + ANSWER;
    while answered < batch.acknowledged {
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let n = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        answered += acknowledgements(&buffer[..n])?;
    }
    Ok(())
}

/// Messages, one after the other.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    sequence: u32,
    /// How many of them the kernel answers.
    acknowledged: usize,
}

fn batch(family: u8, port: u16) -> Batch {
    let mut batch = Batch::default();
    let table = attribute(1, &text(TABLE));
    let create = libc::NLM_F_CREATE;
    batch.message(BATCH_BEGIN, 0, NFTABLES, 0, &[]);
    // Made so that it can be removed, with all that is in it.
    batch.message(NEW_TABLE, create, 0, family, &table);
    batch.message(DEL_TABLE, 0, 0, family, &table);
    batch.message(NEW_TABLE, create, 0, family, &table);
    let hook = [attribute(1, &OUTPUT.to_be_bytes()), attribute(2, &PRIORITY.to_be_bytes())].concat();
    let chain = [
        attribute(1, &text(TABLE)),
        attribute(3, &text(CHAIN)),
        attribute(4 | NESTED, &hook),
        attribute(7, &text("nat")),
    ];
    batch.message(NEW_CHAIN, create, 0, family, &chain.concat());
    let rule = [attribute(1, &text(TABLE)), attribute(2, &text(CHAIN)), attribute(4 | NESTED, &expressions(port))];
    batch.message(NEW_RULE, create | libc::NLM_F_APPEND, 0, family, &rule.concat());
    batch.message(BATCH_END, 0, NFTABLES, 0, &[]);
    batch
}

/// "out by loopback, of TCP: to this port".
fn expressions(port: u16) -> Vec<u8> {
    let register = |kind| attribute(kind, &REGISTER.to_be_bytes());
    // What is compared and loaded is a value within an attribute.
    let value = |kind: u16, bytes: &[u8]| attribute(kind | NESTED, &attribute(1, bytes));
    let meta = |key: u32| expression("meta", &[register(1), attribute(2, &key.to_be_bytes())]);
    // NFT_CMP_EQ is 0.
    let equals = |bytes: &[u8]| expression("cmp", &[register(1), attribute(2, &0u32.to_be_bytes()), value(3, bytes)]);
    [
        meta(OUTGOING_INTERFACE),
        // The kernel's own number, in its own byte order.
        equals(&LOOPBACK.to_ne_bytes()),
        meta(PROTOCOL),
        equals(&[libc::IPPROTO_TCP.cast_unsigned() as u8]),
        expression("immediate", &[register(1), value(2, &port.to_be_bytes())]),
        expression("redir", &[register(1)]),
    ]
    .concat()
}

fn expression(name: &str, data: &[Vec<u8>]) -> Vec<u8> {
    attribute(1 | NESTED, &[attribute(1, &text(name)), attribute(2 | NESTED, &data.concat())].concat())
}

fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

impl Batch {
    /// `resource`: what a batch is for; 0 within it.
    fn message(&mut self, kind: u16, flags: i32, resource: u16, family: u8, attributes: &[u8]) {
        self.sequence += 1;
        let within = kind > 0xff;
        let mut all = flags | libc::NLM_F_REQUEST;
        if within {
            all |= libc::NLM_F_ACK;
            self.acknowledged += 1;
        }
        let length = u32::try_from(20 + attributes.len()).unwrap_or(u32::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((all as u16).to_ne_bytes());
        self.bytes.extend(self.sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        // nfgenmsg
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.bytes.extend(attributes);
    }
}

/// How many messages of a datagram say that all is well.
///
/// # Errors
/// The first that says it is not.
fn acknowledgements(mut bytes: &[u8]) -> io::Result<usize> {
    let mut good = 0;
    while let Some((length, _)) = bytes.split_first_chunk::<4>() {
        let length = u32::from_ne_bytes(*length) as usize;
        let Some(one) = bytes.get(..length).filter(|one| one.len() >= 16) else { break };
        let kind = u16::from_ne_bytes([one[4], one[5]]);
        if i32::from(kind) == libc::NLMSG_ERROR
            && let Some(code) = one.get(16..20).and_then(|code| code.try_into().ok()).map(i32::from_ne_bytes)
        {
            if code != 0 {
                return Err(io::Error::from_raw_os_error(-code));
            }
            good += 1;
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_counted_without_the_padding() {
        assert_eq!(attribute(1, b"abc")[..2], 7u16.to_ne_bytes());
        assert_eq!(attribute(1, b"abc").len(), 8);
        assert_eq!(text("x"), b"x\0");
    }

    #[test]
    fn a_batch_is_whole_messages_of_which_those_within_are_answered() {
        let batch = batch(2, 1234);
        let (mut at, mut kinds) = (0, Vec::new());
        while at < batch.bytes.len() {
            let length = u32::from_ne_bytes(batch.bytes[at..at + 4].try_into().unwrap()) as usize;
            kinds.push(u16::from_ne_bytes(batch.bytes[at + 4..at + 6].try_into().unwrap()));
            at += length;
        }
        assert_eq!(at, batch.bytes.len());
        assert_eq!(kinds, [BATCH_BEGIN, NEW_TABLE, DEL_TABLE, NEW_TABLE, NEW_CHAIN, NEW_RULE, BATCH_END]);
        assert_eq!(batch.acknowledged, 5);
    }

    #[test]
    fn an_answer_is_well_or_an_error_and_rubbish_is_neither() {
        let answer = |code: i32| {
            let mut bytes = [20u32.to_ne_bytes(), [2, 0, 0, 0]].concat();
            bytes.extend([0; 8]);
            bytes.extend((-code).to_ne_bytes());
            bytes
        };
        assert_eq!(acknowledgements(&[answer(0), answer(0)].concat()).unwrap(), 2);
        let err = acknowledgements(&[answer(0), answer(libc::ENOENT)].concat()).unwrap_err();
        assert_eq!(err.raw_os_error(), Some(libc::ENOENT));
        for rubbish in [&[0u8; 16][..], &[0xff; 20], &[]] {
            assert_eq!(acknowledgements(rubbish).unwrap(), 0);
        }
    }
}
