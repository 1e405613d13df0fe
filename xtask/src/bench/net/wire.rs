//! Two network namespaces with a cable between them: one for whoever serves, one for whoever asks.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::bench::netns::Netns;
use crate::run;

/// In the namespace of whoever serves.
pub const CARD: &str = "eth0";
pub const ADDRESS: &str = "10.231.7.2";
const PREFIX: &str = "24";
const ASKER: &str = "10.231.7.1";
const TAP: &str = "tap0";

/// A tap for a VM.
pub struct Tap {
    /// Its name.
    pub name: &'static str,
    /// The address that the VM's card must have: the other end remembers it for longer than a round.
    pub mac: String,
}

/// Both namespaces.
pub struct Wire {
    /// Of whoever serves.
    pub here: Netns,
    /// Of whoever asks.
    pub there: Netns,
}

impl Wire {
    /// Makes them, with addresses.
    ///
    /// # Errors
    /// ip's.
    pub fn new() -> Result<Wire> {
        let this = Wire { here: Netns::new("here")?, there: Netns::new("there")? };
        let (here, there) = (&this.here.name, &this.there.name);
        ip(&["-n", here, "link", "add", CARD, "type", "veth", "peer", "name", CARD, "netns", there])?;
        for (netns, address) in [(here, ADDRESS), (there, ASKER)] {
            ip(&["-n", netns, "addr", "add", &format!("{address}/{PREFIX}"), "dev", CARD])?;
            ip(&["-n", netns, "link", "set", CARD, "up"])?;
        }
        Ok(this)
    }

    /// A tap there, and all that comes by either of tap and card goes out by the other one: what our own driver does,
    /// made by `tc`.
    ///
    /// # Errors
    /// ip's and tc's.
    pub fn tap(&self) -> Result<Tap> {
        ip(&["-n", &self.here.name, "tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr"])?;
        ip(&["-n", &self.here.name, "link", "set", TAP, "up"])?;
        for (from, to) in [(TAP, CARD), (CARD, TAP)] {
            self.tc(&["qdisc", "add", "dev", from, "ingress"])?;
            self.tc(&[
                "filter", "add", "dev", from, "parent", "ffff:", "protocol", "all", "u32", "match", "u8", "0", "0",
                "action", "mirred", "egress", "redirect", "dev", to,
            ])?;
        }
        let links: Value = serde_json::from_str(&run::output(&mut run::cmd(
            "ip",
            ["-n", &self.here.name, "-json", "link", "show", "dev", CARD],
        ))?)?;
        let mac = links[0]["address"].as_str().context("a card without an address")?.to_owned();
        Ok(Tap { name: TAP, mac })
    }

    /// Takes the tap away, and the card's redirection.
    ///
    /// # Errors
    /// ip's and tc's.
    pub fn untap(&self) -> Result<()> {
        self.tc(&["qdisc", "del", "dev", CARD, "ingress"])?;
        ip(&["-n", &self.here.name, "link", "del", TAP])
    }

    fn tc(&self, words: &[&str]) -> Result<()> {
        run::check(run::cmd("tc", ["-n", &self.here.name]).args(words))
    }
}

fn ip(words: &[&str]) -> Result<()> {
    run::check(&mut run::cmd("ip", words))
}
