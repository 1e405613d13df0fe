//! What must hold before a change is sent. Everything runs even if something fails, so that one run tells all.

use anyhow::{Result, bail, ensure};

use crate::{arrows, deps, run};

/// Format, arrows, lints, unit tests, licences and advisories, docs.
///
/// # Errors
/// Names every check that failed; what each found is printed before.
pub fn run() -> Result<()> {
    deps::ensure(deps::BUILD)?;
    let mut failed = Vec::new();
    let mut check = |name: &'static str, work: &dyn Fn() -> Result<()>| {
        if let Err(err) = run::step(name, work) {
            eprintln!("    {err:#}");
            failed.push(name);
        }
    };
    check("format", &|| run::check(&mut run::cargo(["fmt", "--all", "--check"])));
    check("direction of dependencies", &arrows::check);
    check("lints", &|| {
        run::check(&mut run::cargo([
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ]))
    });
    check("unit tests", &|| {
        let args =
            ["test", "--quiet", "--workspace", "--exclude", "kata-system-tests", "--lib", "--bins", "--no-fail-fast"];
        run::check(&mut run::cargo(args))
    });
    check("licences and advisories", &licences);
    check("documentation", &|| {
        let mut doc = run::cargo(["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"]);
        run::check(doc.env("RUSTDOCFLAGS", "-D warnings"))
    });
    if failed.is_empty() {
        return Ok(());
    }
    bail!("not ready to be sent: {}", failed.join(", "))
}

fn licences() -> Result<()> {
    let (name, version) = deps::LICENCE_CHECK;
    let deny = deps::program(name, version)?.to_string_lossy().into_owned();
    run::check(&mut run::cmd(&deny, ["--all-features", "check", "bans", "licenses", "sources"]))?;
    let advisories = run::cmd(&deny, ["--all-features", "check", "advisories"]).output()?;
    let said = String::from_utf8_lossy(&advisories.stderr);
    if said.contains("failed to fetch advisory database") {
        eprintln!("    SKIPPED: advisories: their database cannot be fetched here");
        return Ok(());
    }
    eprint!("{said}");
    ensure!(advisories.status.success(), "cargo-deny found advisories");
    Ok(())
}
