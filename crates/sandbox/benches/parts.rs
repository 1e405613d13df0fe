//! What is computed for every container, before anything is waited for.

use std::hint::black_box;
use std::path::Path;

use criterion::{Criterion, criterion_group, criterion_main};
use kata_sandbox::plan::{FileKind, Host, Limits, plan};
use kata_sandbox::{Owner, run_dir};

/// A host where everything is a directory: no system call is measured.
struct Directories;

impl Host for Directories {
    fn kind(&self, _: &Path) -> Result<FileKind, String> {
        Ok(FileKind::Directory)
    }

    fn size(&self, _: &Path) -> Option<u64> {
        Some(64 << 20)
    }
}

/// Volumes of a container that has many.
const VOLUMES: usize = 20;

fn planning(c: &mut Criterion) {
    let limits = Limits { max_vcpus: 4, drop_seccomp: true };
    let mut spec: kata_oci::Spec = serde_json::from_value(kata_oci::example_spec()).expect("a spec");
    c.bench_function("plan of the example", |b| {
        b.iter(|| plan(black_box(&spec), "c1", limits, &Directories).expect("a plan"));
    });
    for n in 0..VOLUMES {
        let text = format!(r#"{{"destination":"/v{n}","type":"bind","source":"/data/{n}","options":["rbind","ro"]}}"#);
        spec.mounts.push(serde_json::from_str(&text).expect("a mount"));
    }
    c.bench_function("plan with 20 volumes", |b| {
        b.iter(|| plan(black_box(&spec), "c1", limits, &Directories).expect("a plan"));
    });
}

fn keys(c: &mut Criterion) {
    let owner = Owner::Containerd("k8s.io".into());
    let id = "4f0c7c9b0e6e4fd5a3b7c1d2e3f405162738495a6b7c8d9e0f1a2b3c4d5e6f70";
    c.bench_function("key of a sandbox", |b| b.iter(|| run_dir(black_box(&owner), black_box(id))));
}

criterion_group!(benches, planning, keys);
criterion_main!(benches);
