//! containerd's configuration, in the words of each release.

use std::path::Path;

use kata_testkit::engine::{CONTAINERD_RUNTIME, Release};
use kata_testkit::image::PAUSE;

/// What is said of the runtime under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ours {
    /// Nothing.
    Absent,
    /// That it is there, with this sandboxer, `None` for containerd's default.
    Present(Option<&'static str>),
}

/// Of a containerd in `dir`; `cni` are the settings of its network.
pub fn containerd(dir: &Path, release: Release, ours: Ours, cni: &str) -> String {
    let at = |name: &str| dir.join(name).display().to_string();
    let common = format!(
        "root = {:?}\nstate = {:?}\n[grpc]\n  address = {:?}\n[debug]\n  level = \"debug\"\n\
         [plugins.\"io.containerd.internal.v1.opt\"]\n  path = {:?}\n",
        at("root"),
        at("state"),
        at("c.sock"),
        at("opt"),
    );
    match release {
        Release::Distribution => {
            let plugin = "io.containerd.grpc.v1.cri";
            let pods = pods(plugin, ours, cni);
            format!(
                "version = 2\n{common}[plugins.{plugin:?}]\n  sandbox_image = {PAUSE:?}\n  stats_collect_period = 1\n\
                 {pods}[plugins.{plugin:?}.containerd]\n  snapshotter = \"overlayfs\"\n"
            )
        }
        // Since 2.0 images and pods are plugins of their own. NRI's socket would be the host's.
        Release::Newer => {
            let plugin = "io.containerd.cri.v1.runtime";
            let pods = pods(plugin, ours, cni);
            format!(
                "version = 3\n{common}[plugins.\"io.containerd.nri.v1.nri\"]\n  disable = true\n\
                 [plugins.\"io.containerd.cri.v1.images\"]\n  snapshotter = \"overlayfs\"\n  \
                 stats_collect_period = 1\n[plugins.\"io.containerd.cri.v1.images\".pinned_images]\n  sandbox = {PAUSE:?}\n\
                 [plugins.{plugin:?}]\n{pods}"
            )
        }
    }
}

/// The plugin's own settings that did not change, and its tables. `restrict_oom_score_adj`: pods ask for less than this
/// process may have where it is no full root.
fn pods(plugin: &str, ours: Ours, cni: &str) -> String {
    let ours = match ours {
        Ours::Absent => String::new(),
        Ours::Present(sandboxer) => {
            let sandboxer = sandboxer.map(|name| format!("  sandboxer = {name:?}\n")).unwrap_or_default();
            format!(
                "[plugins.{plugin:?}.containerd.runtimes.kata]\n  runtime_type = {CONTAINERD_RUNTIME:?}\n{sandboxer}  \
                   privileged_without_host_devices = true\n  pod_annotations = [\"io.katacontainers.*\"]\n  \
                   container_annotations = [\"io.katacontainers.*\"]\n"
            )
        }
    };
    format!(
        "  restrict_oom_score_adj = true\n\
         [plugins.{plugin:?}.containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n\
         {ours}[plugins.{plugin:?}.cni]\n{cni}"
    )
}
