//! What is run on the host and in a container alike: one program of its own, static, of the standard library only, so that
//! both do the very same. Prints "name nanoseconds amount" for each step; amounts are bytes, reads or files.

use std::fs::{self, File};
use std::io::{Read, Result, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

/// Bytes of a file that is written and read.
const SIZE: u64 = 256 << 20;
/// Bytes at once, in sequence and at random.
const CHUNK: usize = 1 << 20;
const PAGE: usize = 4096;
/// Reads at random places.
const READS: u64 = 4096;

/// `probe BIG SMALL FILES`: `BIG/read` and `BIG/random` are there, of [`SIZE`] bytes; so many small files come to `SMALL`.
pub fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (dir, small, files) = (Path::new(&args[0]), Path::new(&args[1]), args[2].parse().unwrap_or(0));
    step("sequential-write", SIZE, || write(&dir.join("written")))?;
    step("sequential-read", SIZE, || read(&dir.join("read")))?;
    step("random-read", READS, || random(&dir.join("random")))?;
    fs::remove_file(dir.join("written"))?;
    let tree = small.join("small");
    step("small-create", files, || create(&tree, files))?;
    step("small-list", files, || list(&tree))?;
    step("small-read", files, || read_all(&tree, files))?;
    step("small-remove", files, || fs::remove_dir_all(&tree))
}

fn step(name: &str, amount: u64, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    work()?;
    println!("{name} {} {amount}", start.elapsed().as_nanos());
    Ok(())
}

fn write(path: &Path) -> Result<()> {
    let mut file = File::create(path)?;
    let chunk = vec![0x5a; CHUNK];
    for _ in 0..SIZE / CHUNK as u64 {
        file.write_all(&chunk)?;
    }
    file.sync_all()
}

fn read(path: &Path) -> Result<()> {
    let mut file = File::open(path)?;
    let mut chunk = vec![0; CHUNK];
    while file.read(&mut chunk)? > 0 {}
    Ok(())
}

fn random(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    let mut page = vec![0; PAGE];
    // Always the same places (xorshift64).
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..READS {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        file.read_exact_at(&mut page, state % (SIZE / PAGE as u64) * PAGE as u64)?;
    }
    Ok(())
}

fn create(tree: &Path, files: u64) -> Result<()> {
    fs::create_dir_all(tree)?;
    (0..files).try_for_each(|n| fs::write(tree.join(n.to_string()), b"a small file"))
}

fn list(tree: &Path) -> Result<()> {
    fs::read_dir(tree)?.try_for_each(|entry| entry?.metadata().map(drop))
}

fn read_all(tree: &Path, files: u64) -> Result<()> {
    (0..files).try_for_each(|n| fs::read(tree.join(n.to_string())).map(drop))
}
