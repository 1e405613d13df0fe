//! Terminals.

use kata_jail::{Container, ProcessIo};
use kata_proto::oci;
use protobuf::MessageField;

use crate::support::*;

pub const TESTS: &[Test] =
    &[("terminal", terminal), ("terminal_without_devpts", terminal_without_devpts), ("exec_terminal", exec_terminal)];

fn terminal() -> Result<(), Skip> {
    let r = Rootfs::new();
    let text = "tty; stty size; ls -l /dev/pts | grep -c pts; stat -c %t:%T /dev/console; echo hi > /dev/console; echo $(cut -d' ' -f5-8 /proc/self/stat); read x; echo got $x; ls /proc/self/fd | wc -l; id -u; echo end";
    let mut s = spec(&["sh", "-c", text]);
    s.Process.as_mut().unwrap().Terminal = true;
    s.Process.as_mut().unwrap().User.as_mut().unwrap().UID = 1000;
    let (mut container, child) =
        Container::create(&id(), &s, &r.0, ProcessIo::Terminal { rows: 33, cols: 77 }).unwrap();
    container.start().unwrap();
    let master = child.terminal.as_ref().unwrap();
    let before = read_terminal(master, "hi\r\n");
    assert!(before.starts_with("/dev/pts/0\r\n33 77\r\n"), "{before}");
    assert!(before.contains("88:0"), "{before}");
    rustix::io::write(master, b"word\n").unwrap();
    let after = read_terminal(master, "end");
    assert!(after.contains("got word\r\n4\r\n1000\r\n"), "{after}");
    assert_eq!(wait(&child), 0);
    container.destroy().unwrap();

    // The spec's size, if the caller has none.
    let mut s = spec(&["stty", "size"]);
    s.Process.as_mut().unwrap().ConsoleSize =
        MessageField::some(oci::Box { Height: 5, Width: 6, ..Default::default() });
    let (mut container, child) = Container::create(&id(), &s, &r.0, ProcessIo::Terminal { rows: 0, cols: 0 }).unwrap();
    container.start().unwrap();
    assert_eq!(read_terminal(child.terminal.as_ref().unwrap(), "\n"), "5 6\r\n");
    assert_eq!(wait(&child), 0);
    container.destroy().unwrap();
    Ok(())
}

fn terminal_without_devpts() -> Result<(), Skip> {
    let mut s = spec(&["sh", "-c", "test -t 0 && echo yes"]);
    s.Mounts.retain(|m| m.destination != "/dev/pts");
    let (mut container, child) =
        Container::create(&id(), &s, &Rootfs::new().0, ProcessIo::Terminal { rows: 24, cols: 80 }).unwrap();
    container.start().unwrap();
    assert_eq!(read_terminal(child.terminal.as_ref().unwrap(), "\n"), "yes\r\n");
    assert_eq!(wait(&child), 0);
    container.destroy().unwrap();
    Ok(())
}

fn exec_terminal() -> Result<(), Skip> {
    let r = Rootfs::new();
    let (container, child, pipes) = waiting_container(&r);
    let mut p = process(&["sh", "-c", "tty; stty size; sleep 1000"]);
    p.Terminal = true;
    let shell = container.exec(&p, ProcessIo::Terminal { rows: 10, cols: 20 }).unwrap();
    let master = shell.terminal.as_ref().unwrap();
    let text = read_terminal(master, "10 20\r\n");
    assert!(text.starts_with("/dev/pts/0\r\n"), "{text}");
    // Ctrl-C reaches the foreground group of the terminal's session.
    rustix::io::write(master, b"\x03").unwrap();
    assert_eq!(wait(&shell), 130);
    // A hang-up ends the session.
    let mut shell = container.exec(&p, ProcessIo::Terminal { rows: 10, cols: 20 }).unwrap();
    read_terminal(shell.terminal.as_ref().unwrap(), "10 20\r\n");
    drop(shell.terminal.take());
    assert_eq!(wait(&shell), 129);
    assert_eq!(pipes.finish(&child).status, 0);
    container.destroy().unwrap();
    Ok(())
}
