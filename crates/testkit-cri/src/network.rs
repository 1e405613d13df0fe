//! A node's pod network: Debian's CNI plugins on a bridge of the test's own, and its removal.

use std::fs;
use std::path::{Path, PathBuf};

use kata_testkit::cmd::Cmd;
use serde_json::json;

/// Where Debian's package containernetworking-plugins has its programs.
const PLUGINS: &str = "/usr/lib/cni";
/// Private addresses that neither Docker, Podman nor Kubernetes takes by default.
const V4: (&str, &str) = ("10.213.0.0/24", "10.213.0.1");
const V6: (&str, &str) = ("fd6b:6174:6100::/64", "fd6b:6174:6100::1");
/// The chains that the plugin `portmap` makes once and keeps.
const KEPT_CHAINS: &str = "CNI-HOSTPORT-";

/// The network's files and its bridge.
pub struct Network {
    bridge: String,
    /// With the configuration's files.
    conf: PathBuf,
}

impl Network {
    /// Writes the configuration below `dir`.
    ///
    /// # Panics
    /// When it cannot.
    pub fn configure(dir: &Path) -> Network {
        // Interfaces' names end at 15 bytes.
        let bridge = format!("kcri{}", std::process::id() % 1_000_000);
        let conf = dir.join("net.d");
        fs::create_dir_all(&conf).unwrap_or_else(|e| panic!("{}: {e}", conf.display()));
        let range = |(subnet, gateway): (&str, &str)| json!([{ "subnet": subnet, "gateway": gateway }]);
        let mut ranges = vec![range(V4)];
        let mut routes = vec![json!({ "dst": "0.0.0.0/0" })];
        if has_v6() {
            ranges.push(range(V6));
            routes.push(json!({ "dst": "::/0" }));
        }
        let list = json!({
            "cniVersion": "0.4.0",
            "name": bridge,
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": bridge,
                    "isGateway": true,
                    "ipMasq": true,
                    "ipam": { "type": "host-local", "dataDir": dir.join("ipam"), "ranges": ranges, "routes": routes },
                },
                { "type": "portmap", "capabilities": { "portMappings": true } },
            ],
        });
        let file = conf.join("10-pods.conflist");
        fs::write(&file, list.to_string()).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let network = Network { bridge, conf };
        network.make_bridge();
        network
    }

    /// The plugin takes one that is there. Where the host has IPv6 turned off for new interfaces, the plugin's own would
    /// refuse its address; and nobody waits for the search for duplicates on a bridge of ours.
    fn make_bridge(&self) {
        Cmd::new("ip").args(["link", "add", &self.bridge, "type", "bridge"]).ok();
        let settings = Path::new("/proc/sys/net/ipv6/conf").join(&self.bridge);
        for (name, value) in [("disable_ipv6", "0"), ("accept_dad", "0")].iter().filter(|_| has_v6()) {
            let file = settings.join(name);
            fs::write(&file, value).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.bridge
    }

    /// containerd's settings for it.
    pub fn settings(&self) -> String {
        format!("bin_dir = {PLUGINS:?}\nconf_dir = {:?}\n", self.conf)
    }
}

/// Whether the kernel has IPv6.
pub fn has_v6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

impl Drop for Network {
    fn drop(&mut self) {
        Cmd::new("ip").args(["link", "delete", &self.bridge]).run();
        for family in ["iptables", "ip6tables"] {
            remove_kept_chains(family);
        }
    }
}

/// Removes what `portmap` keeps for the next pod's ports. What belonged to one pod is for the plugins to remove, and is
/// found by the leak checker if they do not.
fn remove_kept_chains(family: &str) {
    let saved = Cmd::new(format!("{family}-save")).args(["-t", "nat"]).run().out();
    let (mut rules, mut chains) = (String::new(), String::new());
    for line in saved.lines() {
        if let Some(rule) = line.strip_prefix("-A ").filter(|_| line.contains(&format!("-j {KEPT_CHAINS}"))) {
            rules += &format!("-D {rule}\n");
        }
        if let Some(chain) = line.strip_prefix(':').filter(|chain| chain.starts_with(KEPT_CHAINS)) {
            let name = chain.split(' ').next().unwrap_or_default();
            chains += &format!("-F {name}\n-X {name}\n");
        }
    }
    if !chains.is_empty() {
        let input = format!("*nat\n{rules}{chains}COMMIT\n");
        Cmd::new(format!("{family}-restore")).arg("--noflush").input(input).run();
    }
}
