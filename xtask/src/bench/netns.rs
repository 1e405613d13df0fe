//! Network namespaces of the benchmark's own.

use anyhow::Result;

use crate::run;

/// One, by name, with its loopback switched on; removed on drop.
pub struct Netns {
    /// Its name.
    pub name: String,
}

impl Netns {
    /// Makes it; `purpose` is part of its name.
    ///
    /// # Errors
    /// ip's.
    pub fn new(purpose: &str) -> Result<Self> {
        let this = Netns { name: format!("kata-bench-{}-{purpose}", std::process::id()) };
        run::check(&mut run::cmd("ip", ["netns", "add", &this.name]))?;
        run::check(&mut run::cmd("ip", ["-n", &this.name, "link", "set", "lo", "up"]))?;
        Ok(this)
    }

    /// A file that stands for it.
    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        run::succeeds("ip", &["netns", "del", &self.name]);
    }
}
