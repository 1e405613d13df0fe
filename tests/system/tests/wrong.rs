//! Wrong input: one line that names the thing and what to do, exit 1, and nothing left.

use kata_testkit::bundle::Bundle;
use kata_testkit::cmd::Output;
use kata_testkit::leaks::Guard;
use kata_testkit::runtime::{Runtime, stage};
use serde_json::json;

/// One line on stderr, with all of these in it, and exit 1.
fn refused(out: Output, words: &[&str]) {
    let out = out.expect(1);
    assert_eq!(out.err().lines().count(), 1, "{}", out.report());
    for word in words {
        assert!(out.err().contains(word), "{word:?} was expected: {}", out.report());
    }
    assert!(out.stdout.is_empty(), "{}", out.report());
}

fn create(rt: &Runtime, bundle: &Bundle, id: &str) -> Output {
    rt.cmd(["create", "--bundle"]).arg(bundle.write()).arg(id).run()
}

#[test]
fn bundles_that_are_none() {
    let _leaks = Guard::new();
    let rt = Runtime::new();
    refused(rt.cmd(["create", "--bundle", "/no/such/bundle", "a"]).run(), &["/no/such/bundle"]);
    let bundle = Bundle::busybox(&rt);
    let config = bundle.write().join("config.json");
    let path = config.to_str().unwrap();
    std::fs::remove_file(&config).unwrap();
    refused(rt.cmd(["run", "--bundle"]).arg(bundle.path()).arg("a").run(), &[path]);
    std::fs::write(&config, "{\"ociVersion\": \"1.0.2\",\n \"process\": [}").unwrap();
    refused(rt.cmd(["run", "--bundle"]).arg(bundle.path()).arg("a").run(), &[path, "line 2"]);
    let spec = std::fs::read_to_string(bundle.write().join("config.json")).unwrap();
    std::fs::write(&config, spec.replace("\"args\"", "\"arguments\"")).unwrap();
    refused(rt.cmd(["run", "--bundle"]).arg(bundle.path()).arg("a").run(), &["args"]);
    assert_eq!(rt.cmd(["list", "-q"]).ok().out(), "");
}

#[test]
fn specs_that_cannot_be() {
    let _leaks = Guard::new();
    let rt = Runtime::new();
    let bundle = || Bundle::busybox(&rt);
    let cases: Vec<(Bundle, Vec<&str>)> = vec![
        (bundle().with(|s| s["root"]["path"] = json!("nowhere")), vec!["root file system", "nowhere"]),
        (bundle().mount("/x", "bind", "/no/such/source", &["bind"]), vec!["/no/such/source", "/x"]),
        (bundle().mount("/x", "nosuchfs", "none", &[]), vec!["/x", "nosuchfs"]),
        (bundle().with(|s| s["linux"]["resources"]["memory"] = json!({ "limit": 4096 })), vec!["4096", "memory"]),
        (
            bundle().with(|s| s["linux"]["namespaces"][0] = json!({ "type": "ipc", "path": "/proc/1/ns/ipc" })),
            vec!["ipc", "/proc/1/ns/ipc"],
        ),
        (bundle().with(|s| s["process"]["cwd"] = json!("relative")), vec!["cwd"]),
        (bundle().with(|s| s["process"]["capabilities"]["bounding"] = json!(["CAP_NOSUCH"])), vec!["CAP_NOSUCH"]),
        (bundle().with(|s| s["process"]["args"] = json!(["no-such-program"])), vec!["no-such-program", "$PATH"]),
    ];
    for (bundle, words) in cases {
        refused(create(&rt, &bundle, "a"), &words);
    }
    assert_eq!(rt.cmd(["list", "-q"]).ok().out(), "");
}

#[test]
fn ids_that_are_taken_or_would_leave_the_root() {
    let _leaks = Guard::new();
    let rt = Runtime::new();
    let bundle = Bundle::busybox(&rt).args(["sleep", "1000"]);
    rt.create(&bundle, "taken");
    refused(create(&rt, &bundle, "taken"), &["taken", "exists"]);
    assert_eq!(rt.status("taken"), "created", "the first one is as it was");
    rt.delete("taken");
    for id in ["../x", "a/b", "..", "", " "] {
        refused(create(&rt, &bundle, id), &["id"]);
        refused(rt.cmd(["state", id]).run(), &["id"]);
        refused(rt.cmd(["delete", "--force", id]).run(), &["id"]);
    }
    let long = "x".repeat(2000);
    refused(create(&rt, &bundle, &long), &["id"]);
}

/// A configuration with these lines in `[hypervisor.qemu]`, over the stage's own.
fn with_qemu(lines: &str) -> Runtime {
    Runtime::new().configured(&format!("[hypervisor.qemu]\n{lines}\n"))
}

#[test]
fn configurations_that_cannot_be() {
    let _leaks = Guard::new();
    for (rt, words) in [
        (with_qemu("kernel = \"/no/such/vmlinux\""), vec!["/no/such/vmlinux", "kernel"]),
        (with_qemu("initrd = \"/no/such/initrd\""), vec!["/no/such/initrd", "initrd"]),
        (with_qemu("path = \"/no/such/qemu\""), vec!["/no/such/qemu", "path"]),
        (with_qemu("path = \"/etc/passwd\""), vec!["/etc/passwd"]),
        (with_qemu("kernel = \"/etc/passwd\""), vec!["/etc/passwd", "kernel"]),
        (with_qemu("default_memory = 8"), vec!["8", "default_memory"]),
        (with_qemu("default_memroy = 512"), vec!["default_memroy", "default_memory"]),
        (with_qemu("machine_type = \"isapc\""), vec!["isapc", "q35"]),
        (with_qemu("default_memory = \"much\""), vec!["default_memory"]),
        (Runtime::new().configured("[hypervisor.qemu\n"), vec!["configuration.toml", "line 1"]),
    ] {
        let bundle = Bundle::busybox(&Runtime::new()).args(["true"]);
        refused(rt.run(&bundle, "a").run(), &words);
        assert_eq!(rt.cmd(["list", "-q"]).run().out(), "");
    }
}

#[test]
fn a_guest_that_does_not_boot_shows_its_last_words() {
    let _leaks = Guard::new();
    let bundle = Bundle::busybox(&Runtime::new()).args(["true"]);
    // Without an init the kernel panics.
    let rt = with_qemu("kernel_params = \"rdinit=/no/such/init\"");
    let out = rt.run(&bundle, "a").run().expect(1);
    for words in ["while the guest booted", "console", "Kernel panic"] {
        assert!(out.err().contains(words), "{words:?} was expected: {}", out.report());
    }
    // A guest without the channel never answers: the deadline ends it, and tells the stage.
    let rt = with_qemu("kernel_params = \"initcall_blacklist=virtio_console_init\"\nboot_timeout = 6");
    let out = rt.run(&bundle, "a").run().expect(1);
    for words in ["did not boot as far as its agent", "console"] {
        assert!(out.err().contains(words), "{words:?} was expected: {}", out.report());
    }
}

#[test]
fn a_damaged_state_file_does_not_hold_up_a_deletion() {
    let _leaks = Guard::new();
    let rt = Runtime::new();
    let bundle = Bundle::busybox(&rt).args(["sleep", "1000"]);
    for content in ["", "{\"version\":1,", "{\"version\":99}", "\0\0\0\0"] {
        rt.create(&bundle, "damaged");
        let sandbox = rt.sandbox("damaged");
        // With its daemon alive the file is not needed; without it, what can be found is cleaned up all the same.
        std::fs::write(sandbox.dir.join("state.json"), content).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(sandbox.pid("daemon")), nix::sys::signal::Signal::SIGKILL)
            .unwrap();
        let said = rt.cmd(["state", "damaged"]).ok();
        assert!(said.out().contains("stopped"), "{}", said.report());
        let out = rt.cmd(["delete", "--force", "damaged"]).ok();
        assert!(out.err().contains("state.json") && out.err().contains("damaged"), "{}", out.report());
    }
}

#[test]
fn a_daemon_that_hangs_is_killed_by_force_also_without_its_state_file() {
    let _leaks = Guard::new();
    let rt = Runtime::new();
    let cgroup = format!("/kata-wrong-{}", std::process::id());
    let bundle = Bundle::busybox(&rt).args(["sleep", "1000"]).with(|s| s["linux"]["cgroupsPath"] = json!(cgroup));
    rt.create(&bundle, "hung");
    let sandbox = rt.sandbox("hung");
    let daemon = nix::unistd::Pid::from_raw(sandbox.pid("daemon"));
    nix::sys::signal::kill(daemon, nix::sys::signal::Signal::SIGSTOP).unwrap();
    std::fs::write(sandbox.dir.join("state.json"), "{").unwrap();
    let out = rt.cmd(["delete", "--force", "hung"]).ok();
    assert!(out.err().contains("does not answer") && out.err().contains("state.json"), "{}", out.report());
}

#[test]
fn flags_that_are_none_name_themselves() {
    let _leaks = Guard::new();
    let rt = Runtime::new();
    for (args, word) in [
        (vec!["run", "--frobnicate", "x"], "--frobnicate"),
        (vec!["--log-format", "xml", "list"], "xml"),
        (vec!["list", "--format", "yaml"], "yaml"),
        (vec!["kill", "nobody", "SIGNOSUCH"], "SIGNOSUCH"),
        (vec!["--kata-config", "/no/such/configuration.toml", "env"], "/no/such/configuration.toml"),
    ] {
        let out = rt.cmd(&args).run().fails();
        assert!(out.err().contains(word), "{}", out.report());
    }
    assert!(stage().join("bin/kata-runtime").exists());
}
