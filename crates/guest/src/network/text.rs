//! How addresses are written in requests and answers.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kata_proto::types::IPFamily;

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Six hexadecimal numbers with colons between them.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next()?;
            if part.is_empty() || part.len() > 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return None;
            }
            *byte = u8::from_str_radix(part, 16).ok()?;
        }
        parts.next().is_none().then_some(Mac(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// An address and how many of its first bits name the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Net {
    /// The address.
    pub address: IpAddr,
    /// 0 to 32, or to 128.
    pub prefix: u8,
}

impl Net {
    /// `None` where the prefix is longer than the address.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        (prefix <= width(address)).then_some(Net { address, prefix })
    }

    /// "address/prefix", or an address, which is a network of its own.
    pub fn parse(text: &str) -> Option<Self> {
        match text.split_once('/') {
            Some((address, prefix)) => Net::new(address.parse().ok()?, prefix.parse().ok()?),
            None => text.parse().ok().map(Net::host),
        }
    }

    /// The whole address.
    pub fn host(address: IpAddr) -> Self {
        Net { address, prefix: width(address) }
    }

    /// Everything of a family.
    pub fn all(v6: bool) -> Self {
        let address = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        Net { address, prefix: 0 }
    }

    /// Without the bits that name a host.
    pub fn masked(self) -> Self {
        let keep = u32::from(self.prefix);
        let address = match self.address {
            IpAddr::V4(a) => Ipv4Addr::from_bits(a.to_bits() & u32::MAX.checked_shl(32 - keep).unwrap_or(0)).into(),
            IpAddr::V6(a) => Ipv6Addr::from_bits(a.to_bits() & u128::MAX.checked_shl(128 - keep).unwrap_or(0)).into(),
        };
        Net { address, ..self }
    }

    /// The address that means all hosts of it, where there is one.
    pub fn broadcast(self) -> Option<Ipv4Addr> {
        match self.address {
            IpAddr::V4(a) if self.prefix < 31 => {
                Some(Ipv4Addr::from_bits(a.to_bits() | u32::MAX.checked_shr(self.prefix.into()).unwrap_or(0)))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv6() { 128 } else { 32 }
}

/// The family as messages to the host name it.
pub fn family(address: IpAddr) -> IPFamily {
    if address.is_ipv6() { IPFamily::v6 } else { IPFamily::v4 }
}

/// The family as the kernel numbers it.
pub fn kernel_family(v6: bool) -> u8 {
    (if v6 { libc::AF_INET6 } else { libc::AF_INET }) as u8
}

/// An address as the kernel writes it.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// The reverse.
pub fn from_octets(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_strictly_and_written_as_others_do() {
        assert_eq!(Mac::parse("02:AB:0:1:2:ff").unwrap().to_string(), "02:ab:00:01:02:ff");
        for bad in ["", "02:ab:00:01:02", "02:ab:00:01:02:03:04", "02:ab:00:01:02:+3", "g2:ab:00:01:02:03"] {
            assert_eq!(Mac::parse(bad), None, "{bad:?}");
        }
        assert_eq!(Net::parse("10.1.2.3").unwrap().to_string(), "10.1.2.3/32");
        assert_eq!(Net::parse("fd00::1/64").unwrap().to_string(), "fd00::1/64");
        for bad in ["", "10.0.0.1/33", "::/129", "10.0.0/8", "10.0.0.1/", "eth0"] {
            assert_eq!(Net::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn networks_have_masks_at_every_length() {
        let masked = |text: &str| Net::parse(text).unwrap().masked().to_string();
        assert_eq!(masked("10.1.2.3/8"), "10.0.0.0/8");
        assert_eq!(masked("10.1.2.3/0"), "0.0.0.0/0");
        assert_eq!(masked("10.1.2.3/32"), "10.1.2.3/32");
        assert_eq!(masked("fd00::1:2/112"), "fd00::1:0/112");
        assert_eq!(masked("fd00::1/0"), "::/0");
        let broadcast = |text: &str| Net::parse(text).unwrap().broadcast().map(|a| a.to_string());
        assert_eq!(broadcast("10.1.2.3/24").as_deref(), Some("10.1.2.255"));
        assert_eq!(broadcast("10.1.2.3/0").as_deref(), Some("255.255.255.255"));
        assert_eq!((broadcast("10.1.2.3/31"), broadcast("fd00::1/64")), (None, None));
    }
}
