//! Which namespace a sandbox's network is in.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kata_config::Runtime;
use kata_network::{Claim, Netns};
use kata_oci::Spec;

use super::NetworkError;

/// A namespace that this sandbox has and no other.
#[derive(Debug)]
pub struct Joined {
    pub(super) netns: Netns,
    /// Where hooks run: the network of whoever started us.
    pub(super) host: Arc<Netns>,
    /// For a crash's cleaner, where the namespace has a name.
    pub(super) path: Option<PathBuf>,
    _claim: Claim,
}

/// What a spec asks for (config-linux.md, "Namespaces").
#[derive(Debug, PartialEq, Eq)]
enum Wish<'a> {
    Host,
    New,
    At(&'a str),
}

impl Joined {
    /// What the sandbox's first container asks for. `None`: the configuration says that networks are not our business.
    /// `spare`: a new namespace, made beforehand. Afterwards the calling thread is in the namespace.
    ///
    /// # Errors
    /// [`NetworkError`]: the host's network, or another container's.
    pub fn of(
        spec: &Spec,
        runtime: &Runtime,
        host: Netns,
        spare: Option<Netns>,
    ) -> Result<Option<Joined>, NetworkError> {
        if runtime.disable_new_netns {
            return Ok(None);
        }
        let (netns, path) = match wish(spec) {
            Wish::Host => return Err(NetworkError::Host),
            Wish::New => (spare.map_or_else(Netns::create, Ok)?, None),
            Wish::At(path) => {
                let netns = Netns::open(Path::new(path))?;
                netns.refuse(&host)?;
                if is_of_a_process(path) {
                    return Err(NetworkError::Another { path: path.to_owned() });
                }
                (netns, Some(PathBuf::from(path)))
            }
        };
        let claim = netns.claim()?;
        netns.enter()?;
        Ok(Some(Joined { netns, host: Arc::new(host), path, _claim: claim }))
    }
}

fn wish(spec: &Spec) -> Wish<'_> {
    let mut namespaces = spec.linux.iter().flat_map(|l| &l.namespaces);
    match namespaces.find(|ns| ns.kind == "network") {
        None => Wish::Host,
        Some(ns) if ns.path.is_empty() => Wish::New,
        Some(ns) => Wish::At(&ns.path),
    }
}

/// Whether the path leads to a namespace through a process that lives in it: `/proc/PID/ns/net`. Engines write it for
/// "the network of that container"; redirecting its interfaces into our VM would cut it off.
fn is_of_a_process(path: &str) -> bool {
    let mut parts = Path::new(path).components().filter_map(|c| c.as_os_str().to_str()).filter(|p| *p != "/");
    let pid = parts.next().filter(|p| *p == "proc").and_then(|_| parts.next());
    pid.is_some_and(|pid| pid.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(namespaces: &str) -> Spec {
        serde_json::from_str(&format!(r#"{{"linux":{{"namespaces":[{namespaces}]}}}}"#)).unwrap()
    }

    #[test]
    fn what_a_spec_asks_for() {
        assert_eq!(wish(&spec(r#"{"type":"pid"}"#)), Wish::Host);
        assert_eq!(wish(&Spec::default()), Wish::Host);
        assert_eq!(wish(&spec(r#"{"type":"pid"},{"type":"network"}"#)), Wish::New);
        assert_eq!(wish(&spec(r#"{"type":"network","path":"/run/netns/x"}"#)), Wish::At("/run/netns/x"));
    }

    #[test]
    fn a_process_lives_in_it() {
        assert!(is_of_a_process("/proc/12/ns/net") && is_of_a_process("/proc/12/task/13/ns/net"));
        for other in ["/run/netns/x", "/var/run/docker/netns/5", "/proc/self/ns/net", "/run/proc/12/ns/net"] {
            assert!(!is_of_a_process(other), "{other}");
        }
    }

    #[test]
    fn the_hosts_network_is_refused_unless_networks_are_not_our_business() {
        let host = || Netns::current().unwrap();
        let asks = spec(r#"{"type":"pid"}"#);
        let e = Joined::of(&asks, &Runtime::default(), host(), None).unwrap_err().to_string();
        assert!(e.contains("host network") && e.contains("disable_new_netns"), "{e}");
        let named = spec(r#"{"type":"network","path":"/proc/self/ns/net"}"#);
        let e = Joined::of(&named, &Runtime::default(), host(), None).unwrap_err().to_string();
        assert!(e.contains("host network") && e.contains("/proc/self/ns/net"), "{e}");
        let off = Runtime { disable_new_netns: true, ..Runtime::default() };
        assert!(Joined::of(&asks, &off, host(), None).unwrap().is_none());
    }
}
