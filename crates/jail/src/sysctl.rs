//! Kernel parameters of the spec's `sysctl`.

use std::collections::HashMap;

use crate::error::{JailError, Step};

/// Writes them as the calling process, whose namespaces decide what they are about.
pub(crate) fn apply(sysctl: &HashMap<String, String>) -> Result<(), JailError> {
    let mut all: Vec<_> = sysctl.iter().collect();
    all.sort();
    for (key, value) in all {
        let path = path(key)?;
        std::fs::write(&path, value).step(|| format!("setting sysctl {key} to {value:?}"))?;
    }
    Ok(())
}

/// sysctl(8): either separator; the first of the two decides, and the other one is then part of a name.
pub(crate) fn path(key: &str) -> Result<String, JailError> {
    let dots = match key.find(['.', '/']) {
        Some(at) => key[at..].starts_with('.'),
        None => true,
    };
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    let name: String = if dots { key.chars().map(swap).collect() } else { key.to_owned() };
    if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(JailError::invalid(format!("sysctl name {key:?}")));
    }
    Ok(format!("/proc/sys/{name}"))
}

#[cfg(test)]
mod tests {
    use super::path;

    #[test]
    fn names_with_dots_and_slashes() {
        assert_eq!(path("net.ipv4.ip_forward").unwrap(), "/proc/sys/net/ipv4/ip_forward");
        assert_eq!(path("net.ipv4.conf.eth0/1.forwarding").unwrap(), "/proc/sys/net/ipv4/conf/eth0.1/forwarding");
        assert_eq!(path("net/ipv4/conf/eth0.1/x").unwrap(), "/proc/sys/net/ipv4/conf/eth0.1/x");
        for bad in ["", "a..b", "kernel/../../x", ".a", "a/", "a././b"] {
            assert!(path(bad).is_err(), "{bad}");
        }
    }
}
