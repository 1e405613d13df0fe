//! Commands that read.

use std::fmt::Write;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::container::blocking;
use crate::failure::Failure;
use crate::procfs;

/// What a command may print.
const MOST: u64 = 1 << 20;

/// Work that answers with text, or with a sentence about why not. It may block: what it looks at may hang.
pub type Work = Box<dyn FnOnce() -> Result<Vec<u8>, String> + Send>;

/// The work of a command; `None`: it is none of these.
pub fn command(name: &str, args: &[&str]) -> Option<Work> {
    let path = args.first().map_or(PathBuf::from("/"), PathBuf::from);
    Some(match name {
        "ps" => Box::new(processes),
        "ls" => Box::new(move || list(&path)),
        "cat" => Box::new(move || file(&path)),
        "mounts" => Box::new(|| file(Path::new("/proc/self/mounts"))),
        "dmesg" => Box::new(messages),
        "net" => Box::new(network),
        _ => return None,
    })
}

/// Does it on a thread of its own.
pub async fn done(work: Work) -> Vec<u8> {
    match blocking(move || Ok(work())).await {
        Ok(Ok(text)) => text,
        Ok(Err(why)) => format!("{why}\n").into_bytes(),
        Err(failure) => format!("{failure}\n").into_bytes(),
    }
}

fn said(path: &Path) -> impl Fn(std::io::Error) -> String {
    let path = path.display().to_string();
    move |e| format!("{path}: {e}")
}

fn processes() -> Result<Vec<u8>, String> {
    let proc = Path::new("/proc");
    let entries = fs::read_dir(proc).map_err(said(proc))?;
    let mut pids: Vec<i32> = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    procfs::list(&pids, "table", &[]).map_err(|e: Failure| e.to_string())
}

fn list(path: &Path) -> Result<Vec<u8>, String> {
    let mut names: Vec<_> = match fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|e| e.path()).collect(),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => vec![path.to_owned()],
        Err(e) => return Err(said(path)(e)),
    };
    names.sort_unstable();
    let mut out = String::new();
    for name in names {
        // One that vanishes meanwhile is not there.
        let Ok(meta) = name.symlink_metadata() else { continue };
        let kind = match meta.file_type() {
            t if t.is_dir() => 'd',
            t if t.is_symlink() => 'l',
            t if t.is_char_device() => 'c',
            t if t.is_block_device() => 'b',
            t if t.is_fifo() => 'p',
            t if t.is_socket() => 's',
            _ => '-',
        };
        let shown = name.file_name().map_or_else(|| name.to_string_lossy(), |n| n.to_string_lossy());
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            "{kind}{:04o} {:>5} {:>5} {:>10} {}",
            meta.mode() & 0o7777,
            meta.uid(),
            meta.gid(),
            meta.len(),
            shown.escape_debug()
        );
        match fs::read_link(&name) {
            Ok(target) if kind == 'l' => out.push_str(&format!(" -> {}\n", target.display())),
            _ => out.push('\n'),
        }
        if out.len() as u64 > MOST {
            out.push_str("... and more\n");
            break;
        }
    }
    Ok(out.into_bytes())
}

fn file(path: &Path) -> Result<Vec<u8>, String> {
    // A FIFO that nobody writes to must not be waited for.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(said(path))?;
    let mut out = Vec::new();
    let read = file.take(MOST).read_to_end(&mut out);
    if let Err(e) = read
        && out.is_empty()
    {
        return Err(said(path)(e));
    }
    if out.last().is_some_and(|b| *b != b'\n') {
        out.push(b'\n');
    }
    Ok(out)
}

/// /dev/kmsg gives one record a read: `priority,sequence,microseconds,flags;text` (Documentation/ABI/testing/dev-kmsg).
fn messages() -> Result<Vec<u8>, String> {
    let path = Path::new("/dev/kmsg");
    let mut kmsg = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(said(path))?;
    let mut out = String::new();
    let mut record = [0; 8192];
    loop {
        match kmsg.read(&mut record) {
            Ok(0) => break,
            Ok(n) => push_message(&mut out, &String::from_utf8_lossy(&record[..n])),
            // Overwritten while we read: the next read goes on with the oldest there is.
            Err(e) if e.raw_os_error() == Some(libc::EPIPE) => continue,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break,
            Err(e) => return Err(said(path)(e)),
        }
        if out.len() as u64 > MOST {
            break;
        }
    }
    Ok(out.into_bytes())
}

fn push_message(out: &mut String, record: &str) {
    let Some((head, text)) = record.split_once(';') else { return };
    let micros: u64 = head.split(',').nth(2).and_then(|n| n.parse().ok()).unwrap_or(0);
    let text = text.lines().next().unwrap_or_default();
    // Writing to a String cannot fail.
    let _ = writeln!(out, "[{:>5}.{:06}] {text}", micros / 1_000_000, micros % 1_000_000);
}

fn network() -> Result<Vec<u8>, String> {
    let mut out = String::new();
    let addresses = nix::ifaddrs::getifaddrs().map_err(|e| format!("addresses: {e}"))?;
    for a in addresses {
        let up = if a.flags.contains(nix::net::if_::InterfaceFlags::IFF_UP) { "up" } else { "down" };
        let address = a.address.map(|address| address.to_string()).unwrap_or_default();
        let mask = a.netmask.map(|mask| format!(" mask {mask}")).unwrap_or_default();
        let _ = writeln!(out, "{:<12} {up:<4} {address}{mask}", a.interface_name);
    }
    for (what, path) in [("IPv4 routes", "/proc/net/route"), ("IPv6 routes", "/proc/net/ipv6_route")] {
        // A kernel without IPv6 has no such file.
        if let Ok(text) = fs::read_to_string(path) {
            let _ = write!(out, "{what} ({path}):\n{text}");
        }
    }
    Ok(out.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_messages_have_their_time() {
        let mut out = String::new();
        push_message(&mut out, "6,339,5140900,-;NET: Registered protocol family 10\n SUBSYSTEM=x\n");
        push_message(&mut out, "rubbish");
        assert_eq!(out, "[    5.140900] NET: Registered protocol family 10\n");
    }

    #[test]
    fn a_fifo_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(file(&path).unwrap(), b"");
    }
}
