//! Several containers in one sandbox: what they share, who ends what, and the one that only stands for them all.

use std::path::PathBuf;

use kata_oci::Status;
use kata_sandbox::{CreateRequest, Endpoint, SandboxError, StdioSpec};
use kata_testkit::harness::block_on;
use serde_json::{Value, json};

use crate::refused;
use crate::support::{Fixture, SOON, until};

/// The pid that stands for the pause container. No process: nobody looks.
const PAUSE: i32 = 4_000_001;

fn cri(kind: &str) -> Value {
    json!({ "io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": "engine" })
}

impl Fixture {
    async fn create_as(&self, id: &str, pid: i32, bundle: PathBuf) -> Result<i32, SandboxError> {
        let stdout = Some(Endpoint::File(self.file(&format!("{id}.out"))));
        let stdio = StdioSpec { stdout, ..StdioSpec::default() };
        let id = id.to_owned();
        let request = CreateRequest { id, bundle, rootfs: Vec::new(), stdio, addresses: Default::default(), pid };
        tokio::time::timeout(SOON, self.sandbox.create(request)).await.expect("an answer to create")
    }

    /// The pod's sandbox, as containerd's CRI plugin asks for it. Its root file system need not be there.
    async fn pause(&self) {
        let bundle = self.bundle("engine", "exit 99", |spec| spec["annotations"] = cri("sandbox"));
        std::fs::remove_dir_all(bundle.join("rootfs")).unwrap();
        self.create_as("engine", PAUSE, bundle).await.unwrap();
        self.sandbox.start_process("engine", "").await.unwrap();
    }

    /// One of its containers; `kinds` are the namespaces that it joins.
    async fn member(&self, id: &str, script: &str, kinds: &[&str]) -> Result<(), SandboxError> {
        let shm = self.file("pod-shm");
        std::fs::create_dir_all(&shm).unwrap();
        let bundle = self.bundle(id, script, |spec| {
            spec["annotations"] = cri("container");
            for ns in spec["linux"]["namespaces"].as_array_mut().unwrap() {
                let kind = ns["type"].as_str().unwrap().to_owned();
                if kinds.contains(&kind.as_str()) {
                    ns["path"] = format!("/proc/{PAUSE}/ns/{kind}").into();
                }
            }
            let mount = json!({ "destination": "/dev/shm", "type": "bind", "source": shm, "options": ["rbind", "rw"] });
            spec["mounts"]
                .as_array_mut()
                .unwrap()
                .push(json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs" }));
            spec["mounts"].as_array_mut().unwrap().push(mount);
        });
        self.create_as(id, 1, bundle).await?;
        self.sandbox.start_process(id, "").await.map(drop)
    }

    async fn kill_and_delete(&self, id: &str) -> i32 {
        self.sandbox.kill(id, "", 9, true).await.unwrap();
        let (status, _) = self.wait(id, "").await;
        self.sandbox.delete(id, "").await.unwrap();
        status
    }
}

/// What a container's script says of a namespace.
const NAMESPACES: &str = "for n in ipc uts pid; do readlink /proc/self/ns/$n; done; hostname; ";

pub fn containers_of_a_pod_share_what_they_should() {
    block_on(async {
        let b = Fixture::start();
        b.pause().await;
        let script = format!("{NAMESPACES} echo one > /dev/shm/x; echo ready; exec sleep 1000");
        b.member("a", &script, &["ipc", "uts"]).await.unwrap();
        b.says("a", "ready").await;
        let script = format!("{NAMESPACES} cat /dev/shm/x; echo ready; exec sleep 1000");
        b.member("b", &script, &["ipc", "uts"]).await.unwrap();
        b.says("b", "ready").await;
        let (a, b_said) = (b.said("a"), b.said("b"));
        let (a, bb): (Vec<&str>, Vec<&str>) = (a.lines().collect(), b_said.lines().collect());
        assert_eq!(a[..2], bb[..2], "ipc and uts");
        assert_ne!(a[2], bb[2], "each has its own pids");
        assert_eq!((a[3], bb[3], bb[4]), ("inside", "inside", "one"));
        // The memory is the sandbox's: it outlives the container that has written there.
        assert_eq!(b.kill_and_delete("a").await, 137);
        b.member("c", "cat /dev/shm/x; df -k /dev/shm | tail -1", &["ipc"]).await.unwrap();
        assert_eq!(b.wait("c", "").await, (0, None));
        assert!(b.said("c").starts_with("one\ntmpfs "), "{}", b.said("c"));
        b.sandbox.delete("c", "").await.unwrap();
        b.kill_and_delete("b").await;
        b.kill_and_delete("engine").await;
        b.end().await;
    });
}

pub fn a_pod_has_one_pid_namespace_on_request() {
    block_on(async {
        let b = Fixture::start();
        b.pause().await;
        let all = ["ipc", "uts", "pid"];
        // What it leaves behind must not outlive it there.
        b.member("a", "sleep 777 & echo $$; read x < /proc/1/comm; echo $x; exec sleep 888", &all).await.unwrap();
        b.says("a", "pause").await;
        let pid: u32 = b.said("a").lines().next().unwrap().parse().unwrap();
        assert!(pid > 1, "the namespace's first process is not the container's");
        b.member("b", &format!("tr '\\0' ' ' < /proc/{pid}/cmdline; echo; exec sleep 1000"), &all).await.unwrap();
        b.says("b", "sleep 888").await;
        // Of the one that is orphaned, and only of that, nothing is to be seen once its container has ended.
        let look = |exec: String| {
            let b = &b;
            async move {
                b.exec("b", &exec, "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done; kill -9 1")
                    .unwrap();
                b.sandbox.start_process("b", &exec).await.unwrap();
                assert_eq!(b.wait("b", &exec).await.0, 0);
                let said = b.said(&exec);
                (said.contains("sleep 777"), said.contains("sleep 1000"))
            }
        };
        assert_eq!(look("before".into()).await, (true, true));
        b.sandbox.kill("a", "", 9, false).await.unwrap();
        assert_eq!(b.wait("a", "").await.0, 137);
        let mut seen = (true, true);
        for n in 0..100 {
            seen = look(format!("after{n}")).await;
            if !seen.0 {
                break;
            }
        }
        assert_eq!(seen, (false, true));
        b.sandbox.delete("a", "").await.unwrap();
        b.kill_and_delete("b").await;
        b.kill_and_delete("engine").await;
        b.end().await;
    });
}

pub fn a_container_is_replaced_also_by_its_own_id() {
    block_on(async {
        let b = Fixture::start();
        b.pause().await;
        for round in 0..3 {
            // Names that are there in one round are not in the next.
            let script = format!("cat /round-*; ls -d /round-*; touch /left-{round}; ls -d /left-*; exit {round}");
            let rootfs = b.file("bundle-a").join("rootfs");
            drop(std::fs::remove_dir_all(&rootfs));
            b.bundle("a", &script, |_| {});
            std::fs::write(rootfs.join(format!("round-{round}")), format!("{round}\n")).unwrap();
            b.member("a", &script, &["ipc"]).await.unwrap();
            assert_eq!(b.wait("a", "").await, (round, None));
            let expected = format!("{round}\n/round-{round}\n/left-{round}\n");
            assert!(b.said("a").ends_with(&expected), "{}", b.said("a"));
            b.sandbox.delete("a", "").await.unwrap();
        }
        b.kill_and_delete("engine").await;
        b.end().await;
    });
}

pub fn the_pause_container_only_stands_there() {
    block_on(async {
        let mut b = Fixture::start();
        b.pause().await;
        let s = &b.sandbox;
        assert_eq!(s.process("engine", "").unwrap().status(), Status::Running);
        assert_eq!(s.processes("engine").unwrap(), [(PAUSE, String::new())]);
        for err in [
            b.exec("engine", "e", "true").unwrap_err(),
            s.guest_processes("engine", "table", Vec::new()).await.unwrap_err(),
            s.update("engine", &kata_oci::Resources::default()).await.unwrap_err(),
        ] {
            assert!(
                matches!(err, SandboxError::Stands { .. }) && err.to_string().contains("container engine"),
                "{err}"
            );
        }
        s.resize("engine", "", 1, 1).await.unwrap();
        s.close_stdin("engine", "").await.unwrap();
        // Its counters are those of everything in the guest, which here is an agent beside others.
        assert!(s.stats("engine").await.unwrap().cgroup_stats.is_some());
        s.pause("engine").await.unwrap();
        s.resume("engine").await.unwrap();
        // As a first process of a pid namespace it does not die of what it does not handle.
        for ignored in [0, 1, 10, 17] {
            s.kill("engine", "", ignored, false).await.unwrap();
        }
        refused(s.delete("engine", "").await, "running");
        s.kill("engine", "", 15, false).await.unwrap();
        assert_eq!(b.wait("engine", "").await, (143, None));
        refused(b.sandbox.kill("engine", "", 9, false).await, "finished");
        b.sandbox.kill("engine", "", 9, true).await.unwrap();
        assert_eq!(b.sandbox.delete("engine", "").await.unwrap().1.status, 143);
        for name in ["Created", "Started", "Paused", "Resumed", "Exited", "Deleted"] {
            assert_eq!(b.event().await, name);
        }
        b.end().await;
    });
}

pub fn the_machine_ends_with_the_last_container_whichever_that_is() {
    block_on(async {
        let b = Fixture::start();
        b.pause().await;
        b.member("a", "exec sleep 1000", &["ipc"]).await.unwrap();
        assert!(!b.sandbox.shutdown_if_empty("a").await);
        // podman stops the infra container first.
        assert_eq!(b.kill_and_delete("engine").await, 137);
        assert!(!b.sandbox.shutdown_if_empty("engine").await);
        b.exec("a", "e", "echo still here").unwrap();
        b.sandbox.start_process("a", "e").await.unwrap();
        b.says("e", "still here").await;
        // And starts it again meanwhile.
        b.pause().await;
        b.member("b", "readlink /proc/self/ns/ipc; exec sleep 1000", &["ipc"]).await.unwrap();
        b.kill_and_delete("a").await;
        b.kill_and_delete("engine").await;
        b.kill_and_delete("b").await;
        refused(b.member("c", "true", &[]).await, "shut down");
        assert!(b.sandbox.shutdown_if_empty("b").await);
        b.end().await;
    });
}

pub fn nothing_foreign_comes_into_a_pod() {
    block_on(async {
        let b = Fixture::start();
        // It waits for its first container: somebody else's last one does not end it.
        assert!(!b.sandbox.shutdown_if_empty("a").await);
        b.pause().await;
        let other = |b: &Fixture, id: &str, change: &dyn Fn(&mut Value)| {
            b.bundle(id, "true", |spec| {
                spec["annotations"] = cri("container");
                change(spec);
            })
        };
        let bundle = other(&b, "x", &|spec| spec["annotations"]["io.kubernetes.cri.sandbox-id"] = "another".into());
        refused(b.create_as("x", 1, bundle).await, "belongs to the sandbox another");
        let bundle = other(&b, "x", &|spec| spec["linux"]["namespaces"][2]["path"] = "/proc/1/ns/ipc".into());
        refused(b.create_as("x", 1, bundle).await, "/proc/1/ns/ipc: it is the host's");
        let guests = format!("{}/ipc", kata_types::GUEST_NS_DIR);
        let bundle = other(&b, "x", &|spec| spec["linux"]["namespaces"][2]["path"] = guests.clone().into());
        refused(b.create_as("x", 1, bundle).await, "no path of the host's");
        let bundle = other(&b, "x", &|spec| spec["annotations"]["io.kubernetes.cri.container-type"] = "odd".into());
        refused(b.create_as("x", 1, bundle).await, "io.kubernetes.cri.container-type");
        b.member("a", "true", &["ipc", "uts"]).await.unwrap();
        b.wait("a", "").await;
        b.kill_and_delete("engine").await;
        b.sandbox.delete("a", "").await.unwrap();
        b.end().await;
    });
}

pub fn a_container_joins_another_that_is_no_pods() {
    block_on(async {
        let b = Fixture::start();
        const FIRST: i32 = 4_000_002;
        let script = format!("{NAMESPACES} echo $$ > /dev/null; echo ready; exec sleep 999");
        let bundle = b.bundle("x", &script, |_| {});
        b.create_as("x", FIRST, bundle).await.unwrap();
        b.sandbox.start_process("x", "").await.unwrap();
        b.says("x", "ready").await;
        let join = |b: &Fixture, id: &str| {
            b.bundle(id, &format!("{NAMESPACES} tr '\\0' ' ' < /proc/1/cmdline"), |spec| {
                for (n, kind) in [(0, "pid"), (2, "ipc")] {
                    spec["linux"]["namespaces"][n]["path"] = format!("/proc/{FIRST}/ns/{kind}").into();
                }
            })
        };
        let bundle = join(&b, "y");
        b.create_as("y", 1, bundle).await.unwrap();
        b.sandbox.start_process("y", "").await.unwrap();
        assert_eq!(b.wait("y", "").await, (0, None));
        let (x, y) = (b.said("x"), b.said("y"));
        let (x, y): (Vec<&str>, Vec<&str>) = (x.lines().collect(), y.lines().collect());
        assert_eq!((x[0], x[2]), (y[0], y[2]), "ipc and pid");
        assert_ne!(x[1], y[1], "uts");
        assert_eq!(y[4].trim(), "sleep 999");
        b.sandbox.delete("y", "").await.unwrap();
        // Nothing is left to join.
        b.sandbox.kill("x", "", 9, false).await.unwrap();
        b.wait("x", "").await;
        let bundle = join(&b, "z");
        refused(b.create_as("z", 1, bundle).await, "host's");
        b.sandbox.delete("x", "").await.unwrap();
        b.end().await;
    });
}

pub fn a_pods_sandbox_that_dies_is_told_by_all_its_containers() {
    block_on(async {
        let b = Fixture::start();
        b.pause().await;
        b.member("a", "exec sleep 1000", &["ipc"]).await.unwrap();
        b.kill("vm");
        for id in ["engine", "a"] {
            let (status, reason) = b.wait(id, "").await;
            assert!(status == 137 && reason.is_some_and(|r| r.contains("machine")), "{id}: {status}");
        }
        let text = || std::fs::read_to_string(b.run_dir().join("state.json")).unwrap();
        until("the exits in the state file", || text().matches("\"exit_status\":137").count() == 2).await;
        b.sandbox.delete("engine", "").await.unwrap();
        b.sandbox.delete("a", "").await.unwrap();
        b.end().await;
    });
}
