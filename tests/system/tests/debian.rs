//! A real distribution: Debian's minimal system, made by debootstrap.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use kata_testkit::bundle::Bundle;
use kata_testkit::engine::Containerd;
use kata_testkit::leaks::Guard;
use kata_testkit::runtime::Runtime;
use kata_testkit::{rootfs, skip};
use serde_json::json;

/// dpkg and perl take their time without hardware virtualisation.
const SLOW: Duration = Duration::from_secs(300);

#[test]
fn its_programs_work_and_files_keep_owners_modes_and_links() {
    let debian = match rootfs::debian() {
        Ok(debian) => debian,
        Err(why) => skip!("debootstrap could not make a Debian: {why}"),
    };
    let _leaks = Guard::new();
    let rt = Runtime::new();
    let script = r#"
        set -e
        . /etc/os-release && echo "id $ID"
        dpkg --verify base-files libc-bin && echo "verified"
        perl -e 'print "perl ", 6 * 7, "\n"'
        cd /var/tmp
        useradd --create-home --uid 1234 somebody && su somebody -c 'id -u; touch ~/mine; stat -c %U ~/mine'
        install -m 4750 -o 1234 -g 42 /bin/true suid && ln suid hard && ln -s suid soft && mkfifo fifo
        mkdir -m 1777 sticky
        echo kept > before && mv before after && cat after
        for i in $(seq 200); do echo $i > many-$i; done; ls many-* | wc -l; rm many-*
        mknod null c 1 3 && echo nothing > /dev/null
        flock lock echo locked
        find / -xdev -name 'libc.so.6' | head -n 1
    "#;
    let caps = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_MKNOD", "CAP_SETUID", "CAP_SETGID"];
    let bundle = Bundle::over(&rt, &debian).writable().args(["bash", "-c", script]).with(|spec| {
        spec["process"]["env"] = json!(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]);
        for set in ["bounding", "effective", "permitted"] {
            spec["process"]["capabilities"][set] = json!(caps);
        }
        spec["process"]["noNewPrivileges"] = json!(false);
    });
    let out = rt.run(&bundle, "debian-os").deadline(SLOW).run().expect(0);
    let text = out.out();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..8], ["id debian", "verified", "perl 42", "1234", "somebody", "kept", "200", "locked"], "{text}");
    assert!(lines[8].ends_with("libc.so.6"), "{text}");

    // What the guest made is so on the host.
    let made = bundle.path().join("upper/var/tmp");
    let of = |name: &str| std::fs::symlink_metadata(made.join(name)).unwrap();
    assert_eq!((of("suid").mode() & 0o7777, of("suid").uid(), of("suid").gid()), (0o4750, 1234, 42));
    assert_eq!(of("suid").nlink(), 2);
    assert_eq!(std::fs::read_link(made.join("soft")).unwrap(), std::path::Path::new("suid"));
    assert_eq!(of("sticky").mode() & 0o7777, 0o1777);
    assert_eq!(of("null").rdev(), 1 << 8 | 3);
    assert_eq!(std::fs::read_to_string(made.join("after")).unwrap(), "kept\n");
}

#[test]
fn containerd_runs_it_from_a_directory() {
    let debian = match rootfs::debian() {
        Ok(debian) => debian,
        Err(why) => skip!("debootstrap could not make a Debian: {why}"),
    };
    let _leaks = Guard::new();
    let containerd = Containerd::start();
    let run = containerd.run(["--rm", "--read-only", "--rootfs"]).arg(&debian).args(["debian", "/bin/sh", "-c"]);
    let out = run.arg("cat /etc/debian_version; touch /x 2>&1; exit 3").deadline(SLOW).run().expect(3);
    assert!(out.out().contains("Read-only file system"), "{}", out.report());
    containerd.holds_nothing();
}
