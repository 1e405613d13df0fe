//! What a file is, by its content, without reading it each time.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sha2::{Digest, Sha256};

/// Length of a digest in hex.
const HEX: usize = 64;

/// The sha256 of a file's content, in hex, remembered for all of us on this host ([`content_digest_in`]).
///
/// # Errors
/// The file's.
pub fn content_digest(path: &Path) -> io::Result<String> {
    content_digest_in(path, &Path::new(kata_types::HOST_RUN_DIR).join("digests"))
}

/// The sha256 of a file's content, in hex. It is remembered in `cache` (a directory, made if need be, that only root may
/// write) under what changes with every change of the content: device, inode, size, and the times of the last change of
/// content and inode, of which the second cannot be set by anyone. Where it cannot be remembered it is computed each time.
///
/// # Errors
/// The file's.
pub fn content_digest_in(path: &Path, cache: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    let key = cache.join(identity(&file.metadata()?));
    match fs::read_to_string(&key) {
        Ok(digest) if digest.len() == HEX => return Ok(digest),
        _ => {}
    }
    let digest = compute(file)?;
    if let Err(e) = remember(&key, &digest) {
        tracing::debug!("cannot remember the digest of {}: {e}", path.display());
    }
    Ok(digest)
}

fn identity(meta: &fs::Metadata) -> String {
    let mut hash = Sha256::new();
    for number in [meta.dev(), meta.ino(), meta.size()] {
        hash.update(number.to_le_bytes());
    }
    for number in [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()] {
        hash.update(number.to_le_bytes());
    }
    hex::encode(&hash.finalize()[..16])
}

fn compute(mut file: File) -> io::Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut file, &mut hash)?;
    Ok(hex::encode(hash.finalize()))
}

/// Under another name first: who reads finds a whole digest or none.
fn remember(key: &Path, digest: &str) -> io::Result<()> {
    if let Some(dir) = key.parent() {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    let temp = key.with_extension(format!("{}", std::process::id()));
    fs::write(&temp, digest)?;
    fs::rename(&temp, key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_follows_the_content_and_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let (file, cache) = (dir.path().join("f"), dir.path().join("cache"));
        fs::write(&file, "abc").unwrap();
        let abc = content_digest_in(&file, &cache).unwrap();
        assert_eq!(abc, hex::encode(Sha256::digest("abc")));
        // What is remembered is what is used.
        let key = fs::read_dir(&cache).unwrap().next().unwrap().unwrap().path();
        fs::write(&key, "f".repeat(HEX)).unwrap();
        assert_eq!(content_digest_in(&file, &cache).unwrap(), "f".repeat(HEX));
        fs::write(&key, "damaged").unwrap();
        assert_eq!(content_digest_in(&file, &cache).unwrap(), abc);
        // The same size, and the times set back: still another content.
        let before = fs::metadata(&file).unwrap().modified().unwrap();
        fs::write(&file, "abd").unwrap();
        File::options().write(true).open(&file).unwrap().set_modified(before).unwrap();
        assert_ne!(content_digest_in(&file, &cache).unwrap(), abc);
        assert!(content_digest_in(&dir.path().join("none"), &cache).is_err());
        // A cache that cannot be written costs time only.
        assert!(content_digest_in(&file, Path::new("/proc/none")).is_ok());
    }
}
