//! Docker of a later release: it runs our shim as a containerd runtime, and attaches networks to a container that is
//! created already.

use kata_testkit::engine::{Docker, Release};
use kata_testkit::image::BUSYBOX;
use kata_testkit::leaks::Guard;
use kata_testkit::runtime::host_kernel;

#[test]
fn runs_the_shim_by_its_containerd_name() {
    let _leaks = Guard::new();
    let docker = Docker::of(Release::Newer);
    println!("{}", docker.docker(["version"]).ok().out());
    let out = docker.run(["--rm"]).args([BUSYBOX, "sh", "-c", "uname -r; exit 7"]).run().expect(7);
    assert!(!out.out().is_empty() && out.out() != host_kernel(), "{}", out.report());
    let id = docker.run(["--detach", "--memory", "256m"]).args([BUSYBOX, "sleep", "1000"]).ok().out();
    assert_eq!(docker.docker(["exec", &id, "sh", "-c", "echo $((6*7))"]).ok().out(), "42");
    let stats = docker.docker(["stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", &id]).ok();
    assert!(stats.out().contains("256MiB"), "{}", stats.report());
    docker.docker(["rm", "--force", &id]).ok();
    docker.holds_nothing();
}
