//! Kernel modules that came with the initrd, for kernels that have not everything built in.

use std::fs;
use std::io;

/// One path a line, in the order in which they depend on each other.
const LIST: &str = "/etc/kata-modules";

/// Loads them all. One that fails is logged: some serve hardware that this machine has not, and what a container then
/// misses is named by the step that needs it.
pub fn load_all() {
    let list = match fs::read_to_string(LIST) {
        Ok(list) => list,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return,
        Err(e) => return log::error!("cannot read {LIST}: {e}"),
    };
    for path in paths(&list) {
        match load(path) {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
            Err(e) => log::error!("cannot load the kernel module {path}: {e}"),
        }
    }
}

fn paths(list: &str) -> impl Iterator<Item = &str> {
    list.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'))
}

fn load(path: &str) -> io::Result<()> {
    let file = fs::File::open(path)?;
    Ok(rustix::system::finit_module(&file, c"", 0)?)
}

#[cfg(test)]
mod tests {
    #[test]
    fn empty_lines_and_comments_are_no_modules() {
        let all: Vec<&str> = super::paths("/a.ko\n\n# no\n /b.ko \n").collect();
        assert_eq!(all, ["/a.ko", "/b.ko"]);
    }
}
