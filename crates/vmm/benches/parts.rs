//! What each start does besides waiting: a template's memory is copied, and what shapes a VM is identified.

use std::fs;
use std::hint::black_box;
use std::os::unix::fs::FileExt;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kata_types::Mib;
use kata_vmm::content_digest_in;
use kata_vmm::snapshot::{copy_sparse, memory};

/// A guest's memory as it is saved: so much of it touched, in runs of pages with holes between them.
const GUEST: Mib = Mib(1024);
const TOUCHED: u64 = 36 << 20;
const RUN: u64 = 256 << 10;
/// A guest's kernel.
const KERNEL: usize = 20 << 20;

fn copy(c: &mut Criterion) {
    let from = memory(GUEST).expect("a memfd");
    let run = vec![0x5a; RUN as usize];
    let runs = TOUCHED / RUN;
    for n in 0..runs {
        from.write_all_at(&run, n * (GUEST.bytes() / runs)).expect("memory");
    }
    let mut group = c.benchmark_group("memory");
    group.throughput(Throughput::Bytes(TOUCHED));
    group.bench_function("copy_sparse of a template", |b| {
        // Memory that is given back is part of what a start costs the host, but not of what it waits for.
        b.iter_with_large_drop(|| {
            let to = memory(GUEST).expect("a memfd");
            copy_sparse(&from, &to).expect("a copy");
            to
        });
    });
    group.finish();
}

fn identify(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory");
    let kernel = dir.path().join("kernel");
    fs::write(&kernel, vec![0x5a; KERNEL]).expect("a file");
    let remembered = dir.path().join("digests");
    content_digest_in(&kernel, &remembered).expect("a digest");
    c.bench_function("content_digest, remembered", |b| {
        b.iter(|| content_digest_in(black_box(&kernel), &remembered).expect("a digest"));
    });
    // Below a file nothing can be kept.
    let nowhere = kernel.join("digests");
    let mut group = c.benchmark_group("content_digest, computed");
    group.sample_size(10).throughput(Throughput::Bytes(KERNEL as u64));
    group.bench_function("20 MiB", |b| b.iter(|| content_digest_in(black_box(&kernel), &nowhere).expect("a digest")));
    group.finish();
}

criterion_group!(benches, copy, identify);
criterion_main!(benches);
