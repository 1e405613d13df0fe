//! Templates and the pool: what two clones must not have in common, that a sandbox is the same wherever it comes from, and
//! that nothing is lost or left when a part of the factory dies. Each test has a factory of its own, beside the one of
//! the run's mode.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kata_testkit::bundle::Bundle;
use kata_testkit::leaks::Guard;
use kata_testkit::runtime::{Runtime, json};
use kata_testkit::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A template is made within this, a pool filled.
const MADE_WITHIN: Duration = Duration::from_secs(60);
/// For what follows from a kill.
const SOON: Duration = Duration::from_secs(15);

/// A runtime whose configuration has a factory of its own, which goes with it.
struct Factory {
    rt: Runtime,
}

impl Factory {
    /// `lines` of `[factory]`; `more` configuration before it, which makes the pool one of its own.
    fn new(more: &str, lines: &str) -> Factory {
        let rt = Runtime::new();
        let templates = rt.file("templates");
        let text = format!("{more}\n[factory]\ntemplate_path = {:?}\n{lines}\n", templates.display().to_string());
        Factory { rt: rt.configured(&text) }
    }

    fn templates(&self) -> PathBuf {
        self.rt.file("templates")
    }

    fn call(&self, verb: &str) -> String {
        self.rt.cmd(["factory", verb]).ok().out()
    }

    fn status(&self) -> serde_json::Value {
        json(&self.rt.cmd(["factory", "status", "--json"]).ok())
    }

    /// Ends this one's pool and templates, and no other's.
    fn end(&self) {
        self.call("destroy");
        assert!(!self.templates().exists() && self.pool().is_none());
    }

    /// The pool of this configuration.
    fn pool(&self) -> Option<serde_json::Value> {
        let status = self.status();
        status["pools"].as_array()?.iter().find(|pool| pool["current"] == true).cloned()
    }

    fn keeper(&self) -> Option<i32> {
        self.pool()?["keeper"].as_i64().and_then(|pid| i32::try_from(pid).ok())
    }

    fn waiting(&self) -> u64 {
        self.pool().and_then(|pool| pool["waiting"].as_u64()).unwrap_or(0)
    }

    fn fills(&self, to: u64) {
        wait::until(&format!("a pool of {to}"), MADE_WITHIN, || (self.waiting() >= to).then_some(()));
    }

    /// What the daemon of this container's sandbox said of where its machine came from.
    fn came_from(&self, id: &str) -> String {
        let log = self.rt.sandbox(id).log();
        let line = log.lines().rev().find(|line| line.contains("the machine is up")).unwrap_or_else(|| panic!("{log}"));
        line.split("from=\"").nth(1).unwrap().split('"').next().unwrap().to_owned()
    }
}

/// What a guest says of itself, one thing a line: boot id, first random bytes, a uuid, the clock.
const WHO: &str = "cat /proc/sys/kernel/random/boot_id; head -c 32 /dev/urandom | md5sum; \
                   cat /proc/sys/kernel/random/uuid; date +%s; sleep 1000";

fn who(factory: &Factory, id: &str) -> Vec<String> {
    let bundle = Bundle::busybox(&factory.rt).sh(WHO).with(|spec| spec["hostname"] = format!("host-{id}").into());
    factory.rt.run_detached(&bundle, id);
    let said = wait::until("four lines", SOON, || {
        let said = factory.rt.said(id);
        (said.lines().count() >= 4).then_some(said)
    });
    let mut all: Vec<String> = said.lines().map(str::to_owned).collect();
    // What the guest's root has is not the container's to see; its agent tells.
    let log = wait::until("the guest's machine id", SOON, || {
        let log = factory.rt.sandbox(id).log();
        log.contains("machine id ").then_some(log)
    });
    all.push(log.split("machine id ").nth(1).unwrap().chars().take_while(char::is_ascii_hexdigit).collect());
    all
}

#[test]
fn clones_have_nothing_in_common_that_must_be_their_own() {
    let _leaks = Guard::new();
    let factory = Factory::new("", "enable_template = true");
    factory.call("init");
    assert!(factory.status()["next"] == "template", "{}", factory.status());
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    // The clock of what was saved stood still since then.
    std::thread::sleep(Duration::from_secs(2));
    let begun = now();
    let (one, two) = (who(&factory, "one"), who(&factory, "two"));
    for id in ["one", "two"] {
        assert_eq!(factory.came_from(id), "template");
    }
    for (what, (one, two)) in ["boot id", "random bytes", "uuid"].iter().zip(one.iter().zip(&two)) {
        assert_ne!(one, two, "both have the same {what}");
        assert!(one.len() >= 32, "{what}: {one}");
    }
    let machine_ids = (&one[4], &two[4]);
    assert!(machine_ids.0 != machine_ids.1 && machine_ids.0.len() == 32, "{machine_ids:?}");
    for clock in [&one[3], &two[3]] {
        let clock: u64 = clock.parse().unwrap();
        assert!((begun - 1..=now() + 1).contains(&clock), "the guest's clock says {clock}, the host's {begun}");
    }
    for id in ["one", "two"] {
        factory.rt.cmd(["delete", "--force", id]).ok();
    }
    factory.end();
}

#[test]
fn a_template_is_made_on_first_use_and_used_from_then_on() {
    let _leaks = Guard::new();
    let factory = Factory::new("", "enable_template = true");
    let bundle = Bundle::busybox(&factory.rt).args(["sleep", "1000"]);
    factory.rt.run_detached(&bundle, "first");
    assert_eq!(factory.came_from("first"), "boot");
    assert!(factory.rt.sandbox("first").log().contains("no template of its shape yet"));
    wait::until("the template", MADE_WITHIN, || (factory.status()["next"] == "template").then_some(()));
    let second = Bundle::busybox(&factory.rt).args(["sleep", "1000"]);
    factory.rt.run_detached(&second, "second");
    assert_eq!(factory.came_from("second"), "template");
    // What it was made from is part of what it is: with other parameters it is another one's.
    let other = Runtime::new().configured(&format!(
        "[hypervisor.qemu]\nkernel_params = \"x=y\"\n[factory]\ntemplate_path = {:?}\n",
        factory.templates().display().to_string()
    ));
    let status = json(&other.cmd(["factory", "status", "--json"]).ok());
    assert!(status["next"].as_str().unwrap().starts_with("boot"), "{status}");
    for id in ["first", "second"] {
        factory.rt.cmd(["delete", "--force", id]).ok();
    }
    factory.end();
}

#[test]
fn a_damaged_template_costs_time_and_nothing_else() {
    let _leaks = Guard::new();
    let factory = Factory::new("", "enable_template = true");
    factory.call("init");
    let template = std::fs::read_dir(factory.templates())
        .unwrap()
        .flatten()
        .find(|e| !e.file_name().to_string_lossy().starts_with('.'))
        .unwrap()
        .path();
    let state = std::fs::read(template.join("state")).unwrap();
    std::fs::write(template.join("state"), &state[..state.len() / 2]).unwrap();
    let bundle = Bundle::busybox(&factory.rt).args(["sleep", "1000"]);
    factory.rt.run_detached(&bundle, "anyway");
    assert_eq!(factory.came_from("anyway"), "boot");
    let log = factory.rt.sandbox("anyway").log();
    assert!(log.contains("the template cannot be used, and is removed"), "{log}");
    assert!(!template.exists());
    factory.rt.cmd(["delete", "--force", "anyway"]).ok();
    factory.end();
}

#[test]
fn a_builder_that_is_killed_leaves_nothing_that_is_used() {
    let _leaks = Guard::new();
    let factory = Factory::new("", "enable_template = true");
    for after in [100, 400, 900, 1300] {
        let mut builder = factory.rt.cmd(["factory", "init"]).start();
        std::thread::sleep(Duration::from_millis(after));
        builder.signal(Signal::SIGKILL);
        wait::until("its end", SOON, || builder.ended().then_some(()));
        drop(builder.wait());
    }
    // Two at once: one makes it, the other waits and finds it.
    let builders = [0, 1].map(|_| factory.rt.cmd(["factory", "init"]).start());
    for builder in builders {
        builder.wait().expect(0);
    }
    assert_eq!(factory.status()["templates"].as_array().unwrap().len(), 1);
    let hidden: Vec<_> = std::fs::read_dir(factory.templates()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert!(!hidden.iter().any(|name| name.to_string_lossy().starts_with(".making")), "{hidden:?}");
    factory.end();
}

#[test]
fn a_full_disk_is_told_and_leaves_no_template() {
    let _leaks = Guard::new();
    let factory = Factory::new("", "enable_template = true");
    std::fs::create_dir(factory.templates()).unwrap();
    let options = Some("size=8m,mode=0700");
    let none = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("small"), &factory.templates(), Some("tmpfs"), none, options).unwrap();
    let init = factory.rt.cmd(["factory", "init"]).run().expect(1);
    let full = init.err().contains("No space left");
    let left = factory.status()["templates"].as_array().unwrap().len();
    nix::mount::umount(&factory.templates()).unwrap();
    assert!(full && left == 0, "{}", init.report());
    factory.end();
}

/// A configuration that makes a pool of this test's own.
fn pool(size: u32) -> Factory {
    Factory::new("[runtime]\ndisable_guest_seccomp = true\n", &format!("vm_cache_number = {size}"))
}

#[test]
fn a_pool_gives_out_sandboxes_and_fills_again() {
    let _leaks = Guard::new();
    let factory = pool(2);
    assert_eq!(factory.call("init"), "vm factory initialized");
    assert_eq!(factory.status()["next"], "pool");
    for round in 0..6 {
        factory.fills(1);
        let id = format!("p{round}");
        let host = format!("name-{round}");
        let volume = factory.rt.file(&format!("volume-{round}"));
        std::fs::create_dir(&volume).unwrap();
        // What the host has mounted since the sandbox began to wait is seen in it.
        let none = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("late"), &volume, Some("tmpfs"), none, None::<&str>).unwrap();
        std::fs::write(volume.join("file"), "late").unwrap();
        let script = "hostname; cat /volume/file; echo out > /volume/back; sleep 1000";
        let bundle = Bundle::busybox(&factory.rt).sh(script).with(|spec| spec["hostname"] = host.clone().into()).mount(
            "/volume",
            "bind",
            &volume,
            &["rbind", "rw"],
        );
        factory.rt.run_detached(&bundle, &id);
        assert_eq!(factory.came_from(&id), "pool");
        wait::until("its words", SOON, || (factory.rt.said(&id) == format!("{host}\nlate")).then_some(()));
        wait::until("its file", SOON, || volume.join("back").exists().then_some(()));
        factory.rt.cmd(["delete", "--force", &id]).ok();
        nix::mount::umount(&volume).unwrap();
    }
    factory.end();
}

#[test]
fn an_empty_pool_is_no_error_and_the_log_says_where_the_machine_came_from() {
    let _leaks = Guard::new();
    let factory = pool(1);
    factory.call("init");
    let bundles: Vec<Bundle> = (0..4).map(|_| Bundle::busybox(&factory.rt).args(["sleep", "1000"])).collect();
    for (n, bundle) in bundles.iter().enumerate() {
        factory.rt.run_detached(bundle, &format!("e{n}"));
    }
    let from: Vec<String> = (0..4).map(|n| factory.came_from(&format!("e{n}"))).collect();
    assert_eq!(from[0], "pool");
    assert!(from.contains(&"template".to_owned()), "{from:?}");
    for n in 0..4 {
        factory.rt.cmd(["delete", "--force", &format!("e{n}")]).ok();
    }
    factory.end();
}

#[test]
fn the_keepers_death_costs_no_container_and_leaves_no_vm() {
    let _leaks = Guard::new();
    let factory = pool(2);
    factory.call("init");
    let bundle = Bundle::busybox(&factory.rt).args(["sleep", "1000"]);
    factory.rt.run_detached(&bundle, "lives");
    assert_eq!(factory.came_from("lives"), "pool");
    factory.fills(2);
    let keeper = factory.keeper().unwrap();
    kill(Pid::from_raw(keeper), Signal::SIGKILL).unwrap();
    wait::until("the end of those that wait", SOON, || (factory.waiting() == 0).then_some(()));
    factory.rt.exec("lives", "true").ok();
    // The next one is made without the pool, and starts a keeper again.
    let next = Bundle::busybox(&factory.rt).args(["sleep", "1000"]);
    factory.rt.run_detached(&next, "next");
    factory.fills(2);
    assert_ne!(factory.keeper(), Some(keeper));
    for id in ["lives", "next"] {
        factory.rt.cmd(["delete", "--force", id]).ok();
    }
    factory.end();
}

#[test]
fn a_sandbox_that_dies_while_it_waits_is_replaced_and_given_to_nobody() {
    let _leaks = Guard::new();
    let factory = pool(1);
    factory.call("init");
    for part in ["vm", "fs", "daemon"] {
        factory.fills(1);
        let key = factory.pool().unwrap()["key"].as_str().unwrap().to_owned();
        let dir = Path::new("/run/kata/pool").join(key);
        let member = wait::until("one that waits", SOON, || {
            std::fs::read_dir(&dir).ok()?.flatten().map(|e| e.path()).find(|path| {
                !path.file_name().unwrap().to_string_lossy().starts_with('.') && path.join("state.json").exists()
            })
        });
        let state: serde_json::Value =
            serde_json::from_slice(&std::fs::read(member.join("state.json")).unwrap()).unwrap();
        let pid = i32::try_from(state[part]["pid"].as_i64().unwrap()).unwrap();
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        // One taken in the very moment dies as one that was taken before.
        wait::until("its end", SOON, || (!member.exists()).then_some(()));
        let bundle = Bundle::busybox(&factory.rt).args(["echo", "fine"]);
        let out = factory.rt.run(&bundle, "after").ok();
        assert_eq!(out.out(), "fine", "after kill -9 of a waiting sandbox's {part}");
    }
    factory.end();
}

#[test]
fn a_pool_of_another_configuration_is_left_alone_and_ends_when_its_own_changes() {
    let _leaks = Guard::new();
    let factory = pool(1);
    factory.call("init");
    let pid = factory.keeper().unwrap();
    let file = factory.rt.file("configuration.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("[runtime]", "[agent.kata]\nenable_debug = true\n[runtime]")).unwrap();
    assert_eq!(factory.pool(), None, "the pool is not this configuration's");
    wait::until("the end of the keeper whose configuration has changed", SOON, || {
        (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    });
    let bundle = Bundle::busybox(&factory.rt).args(["sleep", "1000"]);
    factory.rt.run_detached(&bundle, "other");
    factory.fills(1);
    factory.rt.cmd(["delete", "--force", "other"]).ok();
    factory.end();
}

#[test]
fn destroy_ends_it_all_and_wrong_use_is_told() {
    let _leaks = Guard::new();
    let nothing = Runtime::new().configured("[factory]\nenable_template = false\n");
    nothing.cmd(["factory", "init"]).run().expect(1).complained("nothing to make");
    let unsafe_dir = Factory::new("", "enable_template = true");
    std::fs::create_dir(unsafe_dir.templates()).unwrap();
    std::fs::set_permissions(unsafe_dir.templates(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    unsafe_dir.rt.cmd(["factory", "init"]).run().expect(1).complained("others than root can write there");
}
