//! Starts pods as a kubelet does, one for each line of its stdin, and says how long each step took: for `cargo xtask bench`.
//!
//! `pods NAME=OPTIONS.toml...`: the runtime handlers beside runc, each ours with a configuration file; our shim must be in
//! `PATH`. A line is the name of a handler. The answer is lines of "step nanoseconds 1", then an empty one; the first answer,
//! an empty line alone, says that it is ready. It ends with its stdin, and then everything of it is gone.

use std::fmt::Write as _;
use std::io::{BufRead, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use kata_testkit::engine::{CONTAINERD_RUNTIME, Release};
use kata_testkit_cri::Node;

/// The containers of each pod, and what is said of their start.
const CONTAINERS: [(&str, &str); 2] = [("a", "first-container"), ("b", "second-container")];

fn main() -> std::io::Result<()> {
    let handlers: Vec<String> = std::env::args().skip(1).collect();
    let node = Node::start_bare(Release::Distribution, |file| add(file, &handlers));
    let mut out = std::io::stdout();
    writeln!(out)?;
    for line in std::io::stdin().lock().lines() {
        for (step, took) in life(&node, line?.trim()) {
            writeln!(out, "{step} {} 1", took.as_nanos())?;
        }
        writeln!(out)?;
        out.flush()?;
    }
    node.holds_nothing();
    Ok(())
}

/// Adds the handlers to containerd's configuration.
fn add(file: &Path, handlers: &[String]) {
    let mut text = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    for handler in handlers {
        let (name, options) = handler.split_once('=').unwrap_or_else(|| panic!("{handler} is not NAME=OPTIONS.toml"));
        let table = format!("plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.{name:?}");
        let _ = write!(
            text,
            "[{table}]\n  runtime_type = {CONTAINERD_RUNTIME:?}\n[{table}.options]\n  ConfigPath = {options:?}\n"
        );
    }
    std::fs::write(file, text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
}

/// A pod with a network and its containers, one after the other, and its end.
fn life(node: &Node, handler: &str) -> Vec<(&'static str, Duration)> {
    let mut steps = Vec::new();
    let whole = Instant::now();
    let pod = node.pod("bench").handled_by(handler).run();
    steps.push(("sandbox", whole.elapsed()));
    for (name, step) in CONTAINERS {
        let start = Instant::now();
        pod.container(name).sh("exec sleep 100000").start();
        steps.push((step, start.elapsed()));
    }
    steps.push(("pod", whole.elapsed()));
    let start = Instant::now();
    pod.end();
    steps.push(("end", start.elapsed()));
    steps
}
