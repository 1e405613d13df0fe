//! Kubernetes' volumes, in directories that look like the kubelet's.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use kata_sandbox::{Endpoint, SandboxError, StdioSpec};
use kata_testkit::harness::block_on;
use kata_testkit::kubelet::{publish, volume};
use kata_testkit::programs::await_event;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use crate::support::Fixture;

fn bind(source: &Path, at: &str, options: &[&str]) -> Value {
    json!({ "destination": at, "type": "bind", "source": source, "options": options })
}

async fn create(b: &Fixture, id: &str, script: &str, mounts: Vec<Value>) -> Result<i32, SandboxError> {
    let bundle = b.bundle(id, script, |spec| spec["mounts"].as_array_mut().unwrap().extend(mounts));
    let stdout = Some(Endpoint::File(b.file(&format!("{id}.out"))));
    b.create_from(id, bundle, StdioSpec { stdout, ..StdioSpec::default() }).await
}

pub fn updates_of_a_volume_wake_who_watches_it() {
    block_on(async {
        let b = Fixture::start();
        let config = volume(&b.file(""), "configmap", "settings");
        publish(&config, "v1", &[("key", "one"), ("gone", "x")], 0);
        let sub = config.join("..v1/key");
        let program = b.file("await-event");
        await_event(&program);
        let script = "cat /config/key; echo; stat -Lc %a-%u /config/..data/key; \
                      touch /config/x 2>/dev/null || echo read-only; /bin/await-event /config ..data; \
                      cat /config/key; echo; while [ -e /config/gone ]; do sleep 0.05; done; \
                      ls /config/; cat /sub; echo; echo end; sleep 1000";
        let mounts = vec![
            bind(&config, "/config", &["rbind", "ro"]),
            // A subPath is a bind of one file as it was.
            bind(&sub, "/sub", &["bind", "ro"]),
            bind(&program, "/bin/await-event", &["bind", "ro"]),
        ];
        create(&b, "c1", script, mounts).await.unwrap();
        b.sandbox.start_process("c1", "").await.unwrap();
        b.says("c1", "one\n440-0\nread-only\nwatching\n").await;
        publish(&config, "v2", &[("key", "two")], 0);
        fs::remove_file(config.join("gone")).unwrap();
        b.says("c1", "two\nkey\none\nend\n").await;

        // Another container of the sandbox follows the same volume; the first one's end does not end that.
        let script = "cat /config/key; echo; while [ $(cat /config/key) = two ]; do sleep 0.05; done; cat /config/key";
        create(&b, "c2", script, vec![bind(&config, "/config", &["rbind", "ro"])]).await.unwrap();
        b.sandbox.start_process("c2", "").await.unwrap();
        b.says("c2", "two\n").await;
        b.sandbox.kill("c1", "", 9, false).await.unwrap();
        b.wait("c1", "").await;
        b.sandbox.delete("c1", "").await.unwrap();
        publish(&config, "v3", &[("key", "three")], 0);
        assert_eq!(b.wait("c2", "").await, (0, None));
        b.says("c2", "two\nthree").await;
        b.sandbox.delete("c2", "").await.unwrap();
        b.end().await;
    });
}

pub fn memory_is_shared_and_outlives_containers() {
    block_on(async {
        let b = Fixture::start();
        let cache = volume(&b.file(""), "empty-dir", "cache");
        let data = Some("size=1m,mode=2770,gid=1234");
        mount(Some("tmpfs"), &cache, Some("tmpfs"), MsFlags::empty(), data).unwrap();
        let disk = volume(&b.file(""), "empty-dir", "disk");
        let mounts = || vec![bind(&cache, "/cache", &["rbind"]), bind(&disk, "/disk", &["rbind"])];
        create(&b, "keeps", "sleep 1000", vec![]).await.unwrap();
        let script = "stat -c %a-%g /cache; df -k /cache | tail -1 | tr -s ' ' | cut -d' ' -f2; echo kept > /cache/f; \
                      echo kept > /disk/f; head -c 2000000 /dev/zero > /cache/big 2>/dev/null || echo full; \
                      rm /cache/big";
        for (id, script, said) in
            [("c1", script, "2770-1234\n1024\nfull\n"), ("c2", "cat /cache/f /disk/f", "kept\nkept\n")]
        {
            create(&b, id, script, mounts()).await.unwrap();
            b.sandbox.start_process(id, "").await.unwrap();
            b.wait(id, "").await;
            b.sandbox.delete(id, "").await.unwrap();
            assert_eq!(b.said(id), said);
        }
        assert!(!cache.join("f").exists() && disk.join("f").exists(), "memory is the guest's, the disk the host's");
        assert_eq!(fs::metadata(disk.join("f")).unwrap().size(), 5);
        umount2(&cache, MntFlags::MNT_DETACH).unwrap();
        b.end().await;
    });
}

pub fn block_devices_need_a_vmm_that_plugs_them() {
    block_on(async {
        let b = Fixture::start();
        b.create("other", "true").await.unwrap();
        let bundle = b.bundle("c1", "true", |spec| {
            spec["linux"]["devices"] = json!([{ "path": "/dev/x", "type": "b", "major": 7, "minor": 0 }]);
            spec["linux"]["resources"] = json!({ "devices": [{ "allow": true, "access": "rwm" }] });
        });
        let err = b.create_from("c1", bundle, StdioSpec::default()).await.unwrap_err();
        assert_eq!(err.to_string(), "fake cannot plug a block device");
        assert!(!b.calls.all().iter().any(|c| c.contains("block")));
        b.end().await;
    });
}
