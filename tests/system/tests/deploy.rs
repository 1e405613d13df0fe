//! `kata-deploy` beside a real containerd: pods of what it has installed, an upgrade and a removal under pods that run.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kata_testkit::cmd::{Cmd, Output};
use kata_testkit::engine::Release;
use kata_testkit::leaks::Guard;
use kata_testkit::runtime::{Sandbox, scratch, stage};
use kata_testkit_cri::node::is_kata;
use kata_testkit_cri::{Node, Pod};
use serde_json::Value;

/// Copying and comparing some 100 MB of programs that are not optimised.
const COPY: Duration = Duration::from_secs(60);
/// For what happens at once.
const SOON: Duration = Duration::from_secs(20);
/// What `remove` ends with while something runs from the installation.
const IN_USE: i32 = 3;

/// The installer of an installation, for a prefix of the test's own.
struct Deploy {
    program: PathBuf,
    prefix: PathBuf,
}

impl Deploy {
    fn call(&self, args: &[&str]) -> Output {
        Cmd::new(&self.program).args(args).arg("--prefix").arg(&self.prefix).deadline(COPY).run()
    }

    fn install(&self, config: &Path) -> Output {
        let config = config.display().to_string();
        self.call(&["install", "--engine", "containerd", "--engine-config", &config]).expect(0)
    }

    fn status(&self) -> Value {
        let out = self.call(&["status", "--json"]).expect(0);
        serde_json::from_slice::<Value>(&out.stdout).unwrap()["installation"].clone()
    }
}

/// The stage, and one more like it but for a file: another version.
fn another(dir: &Path) -> PathBuf {
    let other = dir.join("other");
    for name in ["bin", "libexec"] {
        fs::create_dir_all(&other).unwrap();
        Cmd::new("cp").arg("-a").arg(stage().join(name)).arg(&other).deadline(COPY).ok();
    }
    Cmd::new("cp").arg("-a").arg(stage().join("share")).arg(&other).deadline(COPY).ok();
    fs::write(other.join("share/kata-containers/of-another-version"), "").unwrap();
    other
}

/// The program of a process of this sandbox, as the kernel knows it.
fn program(pod: &Pod<'_>, part: &str) -> PathBuf {
    let pid = Sandbox::find(pod.id()).pid(part);
    fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_else(|e| panic!("the program of {part}: {e}"))
}

fn is_ready(pod: &Pod<'_>) -> bool {
    pod.status().state == 0
}

#[test]
fn pods_live_through_an_upgrade_and_a_removal_that_leave_no_trace() {
    pods_live_through(Release::Distribution);
}

#[test]
fn the_same_beside_containerd_2_and_its_own_form_of_configuration() {
    pods_live_through(Release::Newer);
}

fn pods_live_through(release: Release) {
    if !is_kata() {
        println!("the oracle is not installed by this");
        return;
    }
    let _leaks = Guard::new();
    let dir = scratch();
    let deploy = Deploy { program: stage().join("bin/kata-deploy"), prefix: dir.path().join("kata") };
    let mut before = String::new();
    let mut node = Node::start_bare(release, |config| {
        if release == Release::Newer {
            let migrate = Cmd::new(release.program("usr/bin/containerd")).arg("--config").arg(config);
            fs::write(config, migrate.args(["config", "migrate"]).ok().stdout).unwrap();
        }
        before = fs::read_to_string(config).unwrap();
        let out = deploy.install(config);
        assert!(out.out().contains("was given the runtime"), "{}", out.report());
        // A process that starts in the same tick of the kernel's clock (1/100 s) may have started before.
        std::thread::sleep(Duration::from_millis(20));
    });

    // The configuration that is in force, in containerd's own words.
    let dump = Cmd::new(release.program("usr/bin/containerd")).arg("--config").arg(node.config_file());
    let dump = dump.args(["config", "dump"]).ok().out();
    let shim = deploy.prefix.join("current/bin/containerd-shim-kata-v2").display().to_string();
    // 1.x writes strings in double quotes, 2.x in single ones.
    assert!(dump.contains(&format!("{shim:?}")) || dump.contains(&format!("'{shim}'")), "{dump}");
    assert!(dump.contains(".containerd.runtimes.runc]"), "{dump}");
    assert_eq!(deploy.status()["engine_restarted"], true, "{}", deploy.status());

    // containerd's PATH does not have the shim: it is found where the configuration says.
    let old_pod = node.pod("old").run();
    let old = deploy.status()["version"].as_str().unwrap().to_owned();
    let versions = deploy.prefix.join("versions");
    assert_eq!(program(&old_pod, "daemon"), versions.join(&old).join("bin/kata"));

    // An upgrade: the pod goes on, and the next one is of the new version, without a restart of containerd.
    let newer = Deploy { program: another(dir.path()).join("bin/kata-deploy"), prefix: deploy.prefix.clone() };
    let out = newer.install(&node.config_file());
    let new = newer.status()["version"].as_str().unwrap().to_owned();
    assert!(new != old && out.out().contains(&format!("version {old} stays")), "{}", out.report());
    assert!(out.out().contains("has the runtime already"), "{}", out.report());
    let new_pod = node.pod("new").run();
    assert_eq!(program(&new_pod, "daemon"), versions.join(&new).join("bin/kata"));
    assert_eq!(program(&old_pod, "daemon"), versions.join(&old).join("bin/kata"));
    assert!(is_ready(&old_pod) && is_ready(&new_pod));

    // A removal: the configuration is as it was, the pods go on, also over a restart of containerd.
    let out = newer.call(&["remove"]).expect(IN_USE);
    assert!(out.out().contains("sandboxes run"), "{}", out.report());
    assert_eq!(fs::read_to_string(node.config_file()).unwrap(), before);
    assert_eq!(newer.status()["removing"], true);
    drop((old_pod, new_pod));
    let ids: Vec<String> = pods(&node).into_iter().map(|(id, _)| id).collect();
    node.restart();
    let after = pods(&node);
    assert_eq!(after.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>(), ids);
    assert!(after.iter().all(|(_, ready)| *ready), "{after:?}");

    // With the pods, the rest goes: the old version's cleaned up after by the current one.
    for (id, _) in after {
        end(&node, &id);
    }
    node.remove_pod_cgroups();
    node.holds_nothing();
    kata_testkit::wait::until("a removal", SOON, || (newer.call(&["remove"]).code() == 0).then_some(()));
    assert!(!deploy.prefix.exists(), "{:?}", fs::read_dir(&deploy.prefix).map(|d| d.flatten().collect::<Vec<_>>()));
    assert!(newer.call(&["remove"]).expect(0).out().contains("nothing is installed"));
}

/// All pods, and whether they are ready, by id.
fn pods(node: &Node) -> Vec<(String, bool)> {
    let list = node.client().list_pod_sandbox(kata_testkit_cri::api::ListPodSandboxRequest { filter: None }).unwrap();
    let mut pods: Vec<(String, bool)> = list.items.into_iter().map(|pod| (pod.id, pod.state == 0)).collect();
    pods.sort();
    pods
}

fn end(node: &Node, id: &str) {
    use kata_testkit_cri::api::{RemovePodSandboxRequest, StopPodSandboxRequest};
    node.client().stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id.into() }).unwrap();
    node.client().remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id.into() }).unwrap();
}

#[test]
fn upstreams_kata_is_replaced_and_given_back_under_containerd() {
    let _leaks = Guard::new();
    let dir = scratch();
    let deploy = Deploy { program: stage().join("bin/kata-deploy"), prefix: dir.path().join("kata") };
    // What upstream has: its files in the same prefix, its runtime of the same name.
    fs::create_dir_all(deploy.prefix.join("bin")).unwrap();
    symlink("/bin/false", deploy.prefix.join("bin/containerd-shim-kata-v2")).unwrap();
    let theirs = deploy.prefix.join("bin/containerd-shim-kata-v2").display().to_string();
    let file = dir.path().join("config.toml");
    let before = format!(
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.kata]\n  \
         runtime_type = \"io.containerd.kata.v2\"\n  runtime_path = {theirs:?} # theirs\n"
    );
    fs::write(&file, &before).unwrap();
    let config = file.display().to_string();
    let args = ["install", "--engine", "containerd", "--engine-config", &config];
    let refused = deploy.call(&args).expect(1);
    assert!(refused.err().contains("--replace-upstream"), "{}", refused.report());
    assert_eq!(fs::read_to_string(&file).unwrap(), before);
    deploy.call(&[&args[..], &["--replace-upstream"]].concat()).expect(0);
    let dump = |file: &str| Cmd::new("/usr/bin/containerd").args(["--config", file, "config", "dump"]).ok().out();
    assert!(!dump(&config).contains(&theirs) && dump(&config).contains("/kata/current/bin/"), "{}", dump(&config));
    deploy.call(&["remove"]).expect(0);
    assert_eq!(fs::read_to_string(&file).unwrap(), before);
    assert!(deploy.prefix.join("bin/containerd-shim-kata-v2").exists() && !deploy.prefix.join("versions").exists());
}
