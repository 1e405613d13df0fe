//! The direction of dependencies: who may use whom. Host and guest share only what is in the shared crates, and within
//! each side a crate uses only what lies below it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::run;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Shared,
    Host,
    Guest,
    /// Tests and chores: may use anything, and only tests use them.
    Test,
}

/// Every crate with its side and its height; an arrow goes to a lower height of the same side or of the shared one.
/// A crate that is missing here is an error: whoever adds one decides where it stands.
const CRATES: &[(&str, Side, u8)] = &[
    ("kata-types", Side::Shared, 0),
    ("kata-oci", Side::Shared, 1),
    ("kata-sys", Side::Shared, 1),
    ("kata-metrics", Side::Shared, 1),
    ("kata-proto", Side::Shared, 2),
    ("kata-config", Side::Host, 3),
    ("kata-http", Side::Host, 2),
    ("kata-trace", Side::Host, 3),
    ("kata-vmm", Side::Host, 3),
    ("kata-vmm-qemu", Side::Host, 4),
    ("kata-storage", Side::Host, 4),
    ("kata-network", Side::Host, 4),
    ("kata-agent-client", Side::Host, 4),
    ("kata-sandbox", Side::Host, 5),
    ("kata-factory", Side::Host, 6),
    ("kata-monitor", Side::Host, 7),
    ("kata-shim", Side::Host, 7),
    // The command line is a client of the daemon, whose protocols are the shim's.
    ("kata-cli", Side::Host, 8),
    // The installer knows files and engines, nothing of sandboxes.
    ("kata-deploy", Side::Host, 3),
    ("kata", Side::Host, 9),
    ("kata-jail", Side::Guest, 3),
    ("kata-guest", Side::Guest, 4),
    ("kata-agent", Side::Guest, 5),
    ("kata-testkit", Side::Test, 10),
    ("kata-testkit-cri", Side::Test, 11),
    ("kata-system-tests", Side::Test, 12),
    ("xtask", Side::Test, 12),
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// "dev", "build", or null for an ordinary one.
    kind: Option<String>,
    /// Set for our own crates.
    path: Option<String>,
}

/// Checks every crate of the workspace.
///
/// # Errors
/// Each arrow that points the wrong way, and each crate that is not in the table.
pub fn check() -> Result<()> {
    let json = run::output(&mut run::cargo(["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: Metadata = serde_json::from_str(&json).context("cargo metadata's output is not as expected")?;
    let wrong = wrong(&metadata);
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("these dependencies are not allowed (the table is in xtask/src/arrows.rs):\n    {}", wrong.join("\n    "))
}

fn wrong(metadata: &Metadata) -> Vec<String> {
    let table: BTreeMap<&str, (Side, u8)> =
        CRATES.iter().map(|(name, side, height)| (*name, (*side, *height))).collect();
    let mut wrong = Vec::new();
    for package in &metadata.packages {
        let Some(&(side, height)) = table.get(package.name.as_str()) else {
            wrong.push(format!("{} has no place in the table", package.name));
            continue;
        };
        // What only tests are built with may come from anywhere: it is in no program.
        let ours = package.dependencies.iter().filter(|d| d.path.is_some() && d.kind.as_deref() != Some("dev"));
        for dependency in ours {
            let allowed = table.get(dependency.name.as_str()).is_some_and(|&(to, to_height)| {
                to_height < height && (to == side || to == Side::Shared || side == Side::Test)
            });
            if !allowed {
                wrong.push(format!("{} -> {}", package.name, dependency.name));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(name: &str, dependency: &str, kind: Option<&str>) -> Metadata {
        let dependency =
            Dependency { name: dependency.into(), kind: kind.map(str::to_owned), path: Some("somewhere".into()) };
        Metadata { packages: vec![Package { name: name.into(), dependencies: vec![dependency] }] }
    }

    #[test]
    fn the_workspace_keeps_to_it() {
        check().unwrap();
    }

    #[test]
    fn arrows_point_down_and_never_across() {
        let ok = |from, to, kind| wrong(&metadata(from, to, kind)).is_empty();
        assert!(ok("kata-sandbox", "kata-vmm", None));
        assert!(ok("kata-guest", "kata-proto", None));
        assert!(ok("kata-testkit", "kata-guest", None));
        assert!(ok("kata-sandbox", "kata-testkit", Some("dev")));
        assert!(!ok("kata-vmm", "kata-sandbox", None));
        assert!(!ok("kata-guest", "kata-config", None));
        assert!(!ok("kata-sandbox", "kata-jail", None));
        assert!(!ok("kata-shim", "kata-cli", None));
        assert!(!ok("kata-types", "kata-sys", Some("build")));
        assert!(!ok("kata-cli", "kata-testkit", None));
        assert!(!ok("kata-newcomer", "kata-types", None));
    }
}
