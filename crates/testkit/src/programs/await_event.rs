//! `await-event DIRECTORY NAME`: says "watching", waits until inotify(7) tells of something at NAME in DIRECTORY, and
//! ends. A program for containers: linked statically, without crates.

use std::ffi::{CString, c_char, c_int};
use std::io::{Read, Write};
use std::os::fd::FromRawFd;

unsafe extern "C" {
    fn inotify_init1(flags: c_int) -> c_int;
    fn inotify_add_watch(fd: c_int, path: *const c_char, mask: u32) -> c_int;
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let dir = CString::new(args[1].as_str()).expect("a directory");
    // IN_MODIFY, IN_CLOSE_WRITE, IN_MOVED_TO, IN_CREATE (linux/inotify.h)
    // SAFETY: plain system calls; the descriptor is nobody else's.
    let mut events = unsafe {
        let fd = inotify_init1(0);
        assert!(fd >= 0 && inotify_add_watch(fd, dir.as_ptr(), 0x2 | 0x8 | 0x80 | 0x100) >= 0, "no watch");
        std::fs::File::from_raw_fd(fd)
    };
    println!("watching");
    std::io::stdout().flush().expect("stdout");
    let mut buffer = [0; 4096];
    loop {
        let n = events.read(&mut buffer).expect("events");
        let mut rest = &buffer[..n];
        // struct inotify_event: wd, mask, cookie, len, name
        while rest.len() >= 16 {
            let len = u32::from_ne_bytes([rest[12], rest[13], rest[14], rest[15]]) as usize;
            let name = String::from_utf8_lossy(&rest[16..16 + len]);
            if name.trim_end_matches('\0') == args[2] {
                return;
            }
            rest = &rest[16 + len..];
        }
    }
}
