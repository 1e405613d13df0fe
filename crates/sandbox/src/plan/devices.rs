//! The host's devices that a container is given: what the guest has of its own under the same numbers, what is plugged
//! into the VM, and what cannot be had.

use kata_oci::{DeviceCgroup, LinuxDevice};

/// A device node of the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// A block device, else a character device.
    pub block: bool,
    /// Its major number.
    pub major: i64,
    /// Its minor number.
    pub minor: i64,
}

/// A block device of the host's to plug.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its numbers on the host.
    pub major: i64,
    /// Its numbers on the host.
    pub minor: i64,
    /// The guest may not write.
    pub read_only: bool,
    /// Where the container has it: of a device or of a mount in the spec.
    pub container_path: String,
}

/// Character devices that any guest has, with the numbers that they have everywhere
/// (Documentation/admin-guide/devices.txt), and where its own devtmpfs has them.
const GUESTS_OWN: [(i64, i64, &str); 12] = [
    (1, 3, "/dev/null"),
    (1, 5, "/dev/zero"),
    (1, 7, "/dev/full"),
    (1, 8, "/dev/random"),
    (1, 9, "/dev/urandom"),
    (1, 11, "/dev/kmsg"),
    (5, 0, "/dev/tty"),
    (5, 1, "/dev/console"),
    (5, 2, "/dev/ptmx"),
    (10, 200, "/dev/net/tun"),
    (10, 229, "/dev/fuse"),
    (10, 237, "/dev/loop-control"),
];

/// The guest's node for a character device of the host's.
pub fn guests_own(node: Node) -> Option<&'static str> {
    let found = GUESTS_OWN.iter().find(|(major, minor, _)| (*major, *minor) == (node.major, node.minor));
    found.filter(|_| !node.block).map(|(.., path)| *path)
}

/// The node that a device of the spec is; `None` for a FIFO.
pub fn node_of(device: &LinuxDevice) -> Option<Node> {
    let node = |block| Node { block, major: device.major, minor: device.minor };
    match device.kind.as_str() {
        "b" => Some(node(true)),
        "p" => None,
        _ => Some(node(false)),
    }
}

/// What the device rules let a container do with a block device: `(read, write)`. A later rule overrides an earlier one,
/// and what none allows is denied.
pub fn access(rules: &[DeviceCgroup], node: Node) -> (bool, bool) {
    let (mut read, mut write) = (false, false);
    for rule in rules {
        let kind = match rule.kind.as_str() {
            "" | "a" => true,
            "b" => node.block,
            "c" => !node.block,
            _ => false,
        };
        let any = rule.kind.is_empty() || rule.kind == "a";
        let number = |wanted: Option<i64>, is| any || wanted.is_none_or(|w| w < 0 || w == is);
        if kind && number(rule.major, node.major) && number(rule.minor, node.minor) {
            let touches = |c| rule.access.is_empty() || rule.access.contains(c);
            read = if touches('r') { rule.allow } else { read };
            write = if touches('w') { rule.allow } else { write };
        }
    }
    (read, write)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(allow: bool, kind: &str, major: Option<i64>, minor: Option<i64>, access: &str) -> DeviceCgroup {
        DeviceCgroup { allow, kind: kind.into(), major, minor, access: access.into() }
    }

    #[test]
    fn the_last_rule_that_matches_decides() {
        let disk = Node { block: true, major: 8, minor: 16 };
        let deny = rule(false, "a", None, None, "rwm");
        assert_eq!(access(&[], disk), (false, false));
        assert_eq!(access(&[deny.clone(), rule(true, "b", Some(8), Some(16), "rwm")], disk), (true, true));
        assert_eq!(access(&[deny.clone(), rule(true, "b", Some(8), Some(-1), "rm")], disk), (true, false));
        assert_eq!(access(&[deny.clone(), rule(true, "c", Some(8), Some(16), "rwm")], disk), (false, false));
        assert_eq!(access(&[deny.clone(), rule(true, "b", Some(8), Some(0), "rwm")], disk), (false, false));
        assert_eq!(
            access(&[rule(true, "", None, None, ""), rule(false, "b", Some(8), None, "w")], disk),
            (true, false)
        );
    }

    #[test]
    fn only_character_devices_that_are_the_same_everywhere_are_the_guests() {
        assert_eq!(guests_own(Node { block: false, major: 10, minor: 229 }), Some("/dev/fuse"));
        assert_eq!(guests_own(Node { block: true, major: 1, minor: 3 }), None);
        assert_eq!(guests_own(Node { block: false, major: 10, minor: 130 }), None);
    }
}
