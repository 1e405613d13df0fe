//! The engine over a fake VMM: the real agent as a local process, the real share, no machine. What is legal in which
//! state, what is told in which order, and what happens when a part dies.

mod observe;
mod pods;
mod support;
mod volumes;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use kata_sandbox::{Endpoint, SandboxError, StdioSpec};
use kata_testkit::harness::{self, block_on};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::json;
use support::{Fixture, SOON, until};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match args.first().and_then(|word| word.to_str()) {
        Some("spawn") => return kata_vmm::spawn::helper_main(args[1..].to_vec()),
        Some("virtiofsd") => return kata_storage::virtiofsd::main(args[1..].to_vec()),
        Some("jail-init") => kata_jail::helper_main(),
        Some("agent-under-test") => return kata_guest::main(args[1..].to_vec()),
        _ => {}
    }
    if !args.iter().any(|word| word == "--list") {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIP: it needs root");
            return ExitCode::SUCCESS;
        }
        // As the sandbox's daemon does: mounts of the host's appear in it, its own stay in it.
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>).unwrap();
    }
    harness::run(
        &args,
        &[
            ("a_life_is_told_in_order", a_life_is_told_in_order),
            ("what_is_not_legal_in_a_state_is_refused_by_name", what_is_not_legal_in_a_state_is_refused_by_name),
            ("a_created_container_is_killed_or_deleted", a_created_container_is_killed_or_deleted),
            ("calls_at_once_have_one_winner", calls_at_once_have_one_winner),
            ("containers_of_a_sandbox_are_each_their_own", containers_of_a_sandbox_are_each_their_own),
            ("the_machine_grows_with_its_container", the_machine_grows_with_its_container),
            ("stdin_closes_behind_what_was_written", stdin_closes_behind_what_was_written),
            ("what_fails_leaves_the_sandbox_as_it_was", what_fails_leaves_the_sandbox_as_it_was),
            ("a_dead_vmm_ends_everything_truthfully", a_dead_vmm_ends_everything_truthfully),
            ("a_dead_file_daemon_ends_everything_truthfully", a_dead_file_daemon_ends_everything_truthfully),
            ("what_is_killed_while_its_machine_dies_is_killed", what_is_killed_while_its_machine_dies_is_killed),
            (
                "a_guest_that_does_not_come_up_is_told_with_its_words",
                a_guest_that_does_not_come_up_is_told_with_its_words,
            ),
            ("hooks_run_at_their_points", hooks_run_at_their_points),
            ("a_start_is_one_trace_of_host_and_guest", observe::a_start_is_one_trace_of_host_and_guest),
            ("operators_see_the_guest", observe::operators_see_the_guest),
            ("updates_of_a_volume_wake_who_watches_it", volumes::updates_of_a_volume_wake_who_watches_it),
            ("memory_is_shared_and_outlives_containers", volumes::memory_is_shared_and_outlives_containers),
            ("block_devices_need_a_vmm_that_plugs_them", volumes::block_devices_need_a_vmm_that_plugs_them),
            ("containers_of_a_pod_share_what_they_should", pods::containers_of_a_pod_share_what_they_should),
            ("a_pod_has_one_pid_namespace_on_request", pods::a_pod_has_one_pid_namespace_on_request),
            ("a_container_is_replaced_also_by_its_own_id", pods::a_container_is_replaced_also_by_its_own_id),
            ("the_pause_container_only_stands_there", pods::the_pause_container_only_stands_there),
            (
                "the_machine_ends_with_the_last_container_whichever_that_is",
                pods::the_machine_ends_with_the_last_container_whichever_that_is,
            ),
            ("nothing_foreign_comes_into_a_pod", pods::nothing_foreign_comes_into_a_pod),
            ("a_container_joins_another_that_is_no_pods", pods::a_container_joins_another_that_is_no_pods),
            (
                "a_pods_sandbox_that_dies_is_told_by_all_its_containers",
                pods::a_pods_sandbox_that_dies_is_told_by_all_its_containers,
            ),
        ],
        Duration::from_secs(90),
    )
}

/// Refused because of the state, or because it is not there, with this in the text.
#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, SandboxError>, words: &str) {
    let err = result.expect_err("a refusal").to_string();
    assert!(err.contains(words), "{words:?} was expected: {err}");
}

fn a_life_is_told_in_order() {
    block_on(async {
        let mut b = Fixture::start();
        b.run("c1", "echo hello; hostname; read x; exit 7").await;
        assert_eq!(b.wait("c1", "").await, (7, None));
        assert_eq!(b.said("c1"), "hello\ninside\n");
        let (_, exit) = b.sandbox.delete("c1", "").await.unwrap();
        assert_eq!(exit.status, 7);
        for name in ["Created", "Started", "Exited", "Deleted"] {
            assert_eq!(b.event().await, name);
        }
        // With its last container the machine has ended.
        refused(b.create("c2", "true").await, "shut down");
        assert_eq!(b.calls.all()[1..3], ["attach share", "resume"], "the share is there before the guest runs");
        b.end().await;
    });
}

fn what_is_not_legal_in_a_state_is_refused_by_name() {
    block_on(async {
        let b = Fixture::start();
        let s = &b.sandbox;
        refused(s.start_process("nobody", "").await, "nobody");
        refused(s.kill("nobody", "", 9, false).await, "nobody");
        refused(s.delete("nobody", "").await, "nobody");
        refused(s.pause("nobody").await, "nobody");
        refused(b.exec("nobody", "e", "true"), "nobody");

        b.create("c1", "sleep 1000").await.unwrap();
        refused(b.create("c1", "true").await, "c1 already exists");
        refused(s.resume("c1").await, "created");
        s.start_process("c1", "").await.unwrap();
        refused(s.start_process("c1", "").await, "running");
        refused(s.delete("c1", "").await, "running");
        refused(s.resume("c1").await, "running");

        b.exec("c1", "e1", "sleep 1000").unwrap();
        refused(b.exec("c1", "e1", "true"), "e1");
        refused(s.start_process("c1", "e2").await, "e2");
        s.start_process("c1", "e1").await.unwrap();
        refused(s.start_process("c1", "e1").await, "running");
        refused(s.delete("c1", "e1").await, "running");

        s.pause("c1").await.unwrap();
        refused(s.pause("c1").await, "paused");
        b.exec("c1", "e3", "true").unwrap();
        refused(s.start_process("c1", "e3").await, "paused");
        s.resume("c1").await.unwrap();

        s.kill("c1", "e1", 15, false).await.unwrap();
        assert_eq!(b.wait("c1", "e1").await.0, 143);
        refused(s.kill("c1", "e1", 15, false).await, "finished");
        s.delete("c1", "e1").await.unwrap();
        refused(s.delete("c1", "e1").await, "e1");

        s.kill("c1", "", 9, false).await.unwrap();
        assert_eq!(b.wait("c1", "").await, (137, None));
        refused(s.kill("c1", "", 9, false).await, "finished");
        refused(s.start_process("c1", "").await, "stopped");
        refused(b.exec("c1", "e4", "true"), "stopped");
        refused(s.pause("c1").await, "stopped");
        s.delete("c1", "").await.unwrap();
        refused(s.delete("c1", "").await, "c1");
        b.end().await;
    });
}

fn a_created_container_is_killed_or_deleted() {
    block_on(async {
        let b = Fixture::start();
        b.create("c1", "true").await.unwrap();
        b.create("c2", "true").await.unwrap();
        b.sandbox.kill("c1", "", 15, false).await.unwrap();
        assert_eq!(b.wait("c1", "").await.0, 137);
        b.sandbox.delete("c1", "").await.unwrap();
        // Deleting it before it was started ends it.
        b.sandbox.delete("c2", "").await.unwrap();
        b.end().await;
    });
}

fn calls_at_once_have_one_winner() {
    block_on(async {
        let b = Fixture::start();
        let (one, other) = tokio::join!(b.create("c1", "exit 3"), b.create("c1", "exit 3"));
        assert!(one.is_ok() != other.is_ok(), "{one:?} {other:?}");
        let (one, other) = tokio::join!(b.sandbox.start_process("c1", ""), b.sandbox.start_process("c1", ""));
        assert!(one.is_ok() || other.is_ok(), "{one:?} {other:?}");
        assert_eq!(b.wait("c1", "").await.0, 3);
        let (one, other) = tokio::join!(b.sandbox.delete("c1", ""), b.sandbox.delete("c1", ""));
        assert!(one.is_ok() != other.is_ok(), "{one:?} {other:?}");
        b.end().await;
    });
}

fn containers_of_a_sandbox_are_each_their_own() {
    block_on(async {
        let b = Fixture::start();
        b.run("c1", "echo one; exec sleep 1000").await;
        b.run("c2", "echo two; exec sleep 1000").await;
        b.says("c1", "one").await;
        b.says("c2", "two").await;
        b.sandbox.kill("c1", "", 9, true).await.unwrap();
        assert_eq!(b.wait("c1", "").await.0, 137);
        b.sandbox.delete("c1", "").await.unwrap();
        b.exec("c2", "e1", "echo still here").unwrap();
        b.sandbox.start_process("c2", "e1").await.unwrap();
        assert_eq!(b.wait("c2", "e1").await.0, 0);
        assert_eq!(b.said("e1"), "still here\n");
        b.sandbox.kill("c2", "", 9, true).await.unwrap();
        b.wait("c2", "").await;
        b.sandbox.delete("c2", "").await.unwrap();
        b.end().await;
    });
}

fn the_machine_grows_with_its_container() {
    block_on(async {
        let b = Fixture::start();
        let limit = |mib: u64| json!({ "memory": { "limit": mib << 20 } });
        let bundle = b.bundle("c1", "sleep 1000", |spec| spec["linux"]["resources"] = limit(300));
        // Where the host's cgroup2 has no memory controller, this agent can then not apply it.
        let made = b.create_from("c1", bundle, StdioSpec::default()).await;
        let calls = b.calls.all();
        assert!(calls.contains(&"resize to 396 MiB, 1 vCPUs".to_owned()), "the limit and the overhead: {calls:?}");
        if made.is_ok() {
            b.create("c2", "true").await.unwrap();
            b.sandbox.kill("c1", "", 9, false).await.unwrap();
            b.wait("c1", "").await;
            b.sandbox.delete("c1", "").await.unwrap();
        }
        // What is not needed is given back: the machine falls to what it began with.
        until("shrinking", || b.calls.all().last().is_some_and(|c| c == "resize to 256 MiB, 1 vCPUs")).await;
        let bundle = b.bundle("c3", "true", |spec| spec["linux"]["resources"] = limit(1));
        refused(b.create_from("c3", bundle, StdioSpec::default()).await, "too little");
        b.end().await;
    });
}

fn stdin_closes_behind_what_was_written() {
    block_on(async {
        let b = Fixture::start();
        let bundle = b.bundle("c1", "wc -c", |_| {});
        let fifo = b.file("stdin");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let stdio = StdioSpec {
            stdin: Some(Endpoint::Fifo(fifo.clone())),
            stdout: Some(Endpoint::File(b.file("c1.out"))),
            ..StdioSpec::default()
        };
        b.create_from("c1", bundle, stdio).await.unwrap();
        b.sandbox.start_process("c1", "").await.unwrap();
        // Its writer stays open, as an engine's does that closes by call.
        let mut writer = std::fs::File::options().write(true).open(&fifo).unwrap();
        writer.write_all(&[b'x'; 60_000]).unwrap();
        b.sandbox.close_stdin("c1", "").await.unwrap();
        assert_eq!(b.wait("c1", "").await.0, 0);
        assert_eq!(b.said("c1"), "60000\n");
        b.sandbox.delete("c1", "").await.unwrap();
        drop(writer);
        b.end().await;
    });
}

fn what_fails_leaves_the_sandbox_as_it_was() {
    block_on(async {
        let b = Fixture::start();
        for change in ["args", "rootfs", "mount"] {
            let bundle = b.bundle("c1", "true", |spec| match change {
                "args" => spec["process"]["args"] = json!(["no-such-program"]),
                "rootfs" => spec["root"]["path"] = json!("nowhere"),
                _ => spec["mounts"] = json!([{ "destination": "/x", "type": "nosuchfs", "source": "none" }]),
            });
            let out = Some(Endpoint::File(b.file("c1.out")));
            let failed = b.create_from("c1", bundle, StdioSpec { stdout: out, ..StdioSpec::default() }).await;
            refused(
                failed,
                match change {
                    "args" => "executable file not found in $PATH",
                    "rootfs" => "nowhere",
                    _ => "nosuchfs",
                },
            );
        }
        // The id, the share and the streams are free for one that works.
        b.run("c1", "exit 5").await;
        assert_eq!(b.wait("c1", "").await.0, 5);
        b.exec("c1", "e", "true").expect_err("stopped");
        b.sandbox.delete("c1", "").await.unwrap();
        b.end().await;
    });
}

fn a_dead_vmm_ends_everything_truthfully() {
    dies("vm", "the virtual machine killed by signal 9");
}

fn a_dead_file_daemon_ends_everything_truthfully() {
    dies("fs", "the file daemon killed by signal 9");
}

fn dies(part: &str, words: &str) {
    block_on(async {
        let b = Fixture::start();
        b.run("c1", "echo up; exec sleep 1000").await;
        b.says("c1", "up").await;
        b.exec("c1", "e1", "sleep 1000").unwrap();
        b.sandbox.start_process("c1", "e1").await.unwrap();
        b.kill(part);
        for exec in ["", "e1"] {
            let (status, reason) = b.wait("c1", exec).await;
            assert_eq!(status, 137);
            let reason = reason.expect("a reason");
            assert!(reason.contains(words), "{reason}");
        }
        refused(b.create("c2", "true").await, words);
        b.sandbox.kill("c1", "", 9, true).await.unwrap();
        b.sandbox.delete("c1", "e1").await.unwrap();
        b.sandbox.delete("c1", "").await.unwrap();
        b.end().await;
    });
}

/// An engine takes a container back whose start has failed because of that, and does not try twice.
fn what_is_killed_while_its_machine_dies_is_killed() {
    block_on(async {
        let b = Fixture::start();
        for id in ["c1", "c2", "c3", "c4"] {
            b.create(id, "sleep 1000").await.unwrap();
        }
        b.kill("vm");
        let (deleted, one, all, started) = tokio::join!(
            b.sandbox.delete("c1", ""),
            b.sandbox.kill("c2", "", 15, false),
            b.sandbox.kill("c3", "", 9, true),
            async { (b.sandbox.start_process("c4", "").await, b.sandbox.process("c4", "").unwrap().status()) },
        );
        assert_eq!(deleted.unwrap().1.status, 137);
        // On a busy host the guest may have answered before it was gone.
        if started.0.is_err() {
            refused(started.0, "killed by signal 9");
            assert_eq!(started.1.to_string(), "stopped", "when its start has failed");
        }
        if one.is_err() {
            refused(one, "finished");
        }
        all.unwrap();
        for id in ["c2", "c3", "c4"] {
            let status = b.wait(id, "").await.0;
            assert!(status == 137 || id == "c2" && status == 143, "{id}: {status}");
            b.sandbox.delete(id, "").await.unwrap();
        }
        b.end().await;
    });
}

fn a_guest_that_does_not_come_up_is_told_with_its_words() {
    block_on(async {
        let b = Fixture::with_agent(["sh", "-c", "echo no kernel today >&2; exit 9"]);
        let err = b.create("c1", "true").await.unwrap_err().to_string();
        assert!(err.contains("the virtual machine") && err.contains("code 9"), "{err}");
        // And again, without another attempt.
        refused(b.create("c1", "true").await, "code 9");
        b.sandbox.shutdown().await;
        until("end of the share", || !b.run_dir().join("share").exists()).await;
        assert_eq!(b.calls.all().len(), 1, "{:?}", b.calls.all());
    });
}

fn hooks_run_at_their_points() {
    block_on(async {
        let b = Fixture::start();
        let log = b.file("hooks");
        let hook = |name: &str| json!([{ "path": "/bin/sh", "args": ["sh", "-c", format!("echo {name} >> {}", log.display())] }]);
        let bundle = b.bundle("c1", "exit 0", |spec| {
            for name in ["prestart", "createRuntime", "poststart", "poststop"] {
                spec["hooks"][name] = hook(name);
            }
        });
        b.create_from("c1", bundle, StdioSpec::default()).await.unwrap();
        let ran = || std::fs::read_to_string(&log).unwrap_or_default();
        assert_eq!(ran(), "prestart\ncreateRuntime\n");
        b.sandbox.start_process("c1", "").await.unwrap();
        assert_eq!(ran(), "prestart\ncreateRuntime\npoststart\n");
        tokio::time::timeout(SOON, b.wait("c1", "")).await.unwrap();
        b.sandbox.delete("c1", "").await.unwrap();
        assert!(ran().ends_with("poststop\n"), "{}", ran());

        let b2 = Fixture::start();
        let bundle = b2.bundle("c1", "true", |spec| {
            spec["hooks"]["createRuntime"] =
                json!([{ "path": "/bin/sh", "args": ["sh", "-c", "echo not today >&2; exit 4"] }]);
        });
        let failed = b2.create_from("c1", bundle, StdioSpec::default()).await;
        refused(failed, "not today");
        b2.end().await;
        b.end().await;
    });
}
