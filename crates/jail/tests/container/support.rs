//! What the tests stand on: a place of their own, a busybox root filesystem, and specs as engines write them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use kata_jail::{Child, Container, JailError, ProcessIo};
use kata_proto::oci;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use protobuf::MessageField;

/// A test and its name.
pub type Test = (&'static str, fn() -> Result<(), Skip>);

/// Why a test had nothing to test.
#[derive(Debug)]
pub struct Skip(pub String);

/// How a test went.
pub enum Outcome {
    Passed,
    Skipped(String),
    Failed(String),
}

/// Longest any one test may take; a container that hangs is killed then.
const DEADLINE: Duration = Duration::from_secs(60);
const BUSYBOX: &str = "/bin/busybox";

static CGROUP_ROOT: OnceLock<PathBuf> = OnceLock::new();
static BASE: OnceLock<PathBuf> = OnceLock::new();
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Gets ready, or says what is missing.
pub fn prepare() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("not root".into());
    }
    if !Path::new(BUSYBOX).exists() {
        return Err(format!("no {BUSYBOX} (package busybox-static)"));
    }
    let mounts = fs::read_to_string("/proc/mounts").map_err(|e| e.to_string())?;
    let cgroup2 = mounts.lines().find_map(|l| {
        let mut words = l.split(' ').skip(1);
        let dir = words.next()?;
        (words.next()? == "cgroup2").then(|| PathBuf::from(dir))
    });
    let root = cgroup2.ok_or("cgroup2 is not mounted")?.join(format!("jail-test-{}", std::process::id()));
    fs::create_dir(&root).map_err(|e| format!("{}: {e}", root.display()))?;
    kata_jail::set_cgroup_root(root.clone());
    let _ = CGROUP_ROOT.set(root);

    unshare(CloneFlags::CLONE_NEWNS).map_err(|e| format!("unshare: {e}"))?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(|e| format!("private /: {e}"))?;
    let base = std::env::temp_dir().join(format!("jail-test-{}", std::process::id()));
    fs::create_dir_all(&base).map_err(|e| e.to_string())?;
    mount(Some("tmpfs"), &base, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
        .map_err(|e| format!("tmpfs: {e}"))?;
    // As in a guest: the agent's mounts are shared.
    mount(none, &base, none, MsFlags::MS_SHARED, none).map_err(|e| format!("shared: {e}"))?;
    let _ = BASE.set(base);
    Ok(())
}

/// Takes everything away again; false if there was something that should not have been.
pub fn finish() -> bool {
    let mut clean = true;
    reap();
    if let Some(root) = CGROUP_ROOT.get() {
        // What a container left is an error, but not one to leave behind.
        let _ = fs::remove_dir(root.join("kata"));
        let left: Vec<_> = fs::read_dir(root).unwrap().flatten().filter(|e| e.path().is_dir()).collect();
        let _ = fs::write(root.join("cgroup.kill"), "1");
        std::thread::sleep(Duration::from_millis(100 * left.len() as u64));
        remove_cgroups(root);
        clean = left.is_empty();
        if !clean {
            println!("test no_cgroup_is_left ... FAILED: {left:?}");
        }
    }
    if let Some(base) = BASE.get() {
        let _ = nix::mount::umount2(base, nix::mount::MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(base);
    }
    clean
}

/// Runs one test under a deadline.
pub fn run_test(name: &'static str, test: fn() -> Result<(), Skip>) -> Outcome {
    let (done, over) = mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if over.recv_timeout(DEADLINE) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("{name}: killed after {} s", DEADLINE.as_secs());
            if let Some(root) = CGROUP_ROOT.get() {
                let _ = fs::write(root.join("cgroup.kill"), "1");
            }
            std::process::exit(1);
        }
    });
    let result = catch_unwind(AssertUnwindSafe(test));
    let _ = done.send(());
    let _ = watchdog.join();
    reap();
    match result {
        Ok(Ok(())) => Outcome::Passed,
        Ok(Err(Skip(why))) => Outcome::Skipped(why),
        Err(panic) => {
            if let Some(root) = CGROUP_ROOT.get() {
                let _ = fs::write(root.join("cgroup.kill"), "1");
            }
            let text = panic.downcast_ref::<String>().cloned();
            Outcome::Failed(text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).into())).unwrap_or_default())
        }
    }
}

/// The helpers' first halves end by themselves; an agent waits for all its children.
fn reap() {
    EXITS.lock().unwrap().clear();
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            break;
        }
    }
}

/// A directory with busybox in it.
pub struct Rootfs(pub PathBuf);

impl Rootfs {
    pub fn new() -> Self {
        let dir = BASE.get().unwrap().join(format!("rootfs{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        for d in ["bin", "etc", "proc", "sys", "dev", "tmp", "root", "home/user"] {
            fs::create_dir_all(dir.join(d)).unwrap();
        }
        fs::copy(BUSYBOX, dir.join("bin/busybox")).unwrap();
        let list = Command::new(BUSYBOX).arg("--list").output().unwrap().stdout;
        for applet in String::from_utf8(list).unwrap().lines().filter(|a| *a != "busybox") {
            symlink("busybox", dir.join("bin").join(applet)).unwrap();
        }
        fs::write(dir.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n").unwrap();
        Rootfs(dir)
    }

    /// A file in it.
    pub fn file(&self, path: &str, content: &str, mode: u32) {
        let path = self.0.join(path);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
}

/// A directory outside of any root filesystem.
pub fn outside(name: &str) -> PathBuf {
    let dir = BASE.get().unwrap().join(format!("{name}{}", NEXT.fetch_add(1, Ordering::Relaxed)));
    fs::create_dir_all(&dir).unwrap();
    dir
}

pub fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| (*s).to_owned()).collect()
}

pub fn mount_entry(destination: &str, kind: &str, source: &str, options: &str) -> oci::Mount {
    oci::Mount {
        destination: destination.into(),
        type_: kind.into(),
        source: source.into(),
        options: options.split(',').filter(|o| !o.is_empty()).map(str::to_owned).collect(),
        ..Default::default()
    }
}

pub const DEFAULT_CAPS: [&str; 4] = ["CAP_CHOWN", "CAP_KILL", "CAP_SETGID", "CAP_SETUID"];

pub fn process(args: &[&str]) -> oci::Process {
    let caps = strings(&DEFAULT_CAPS);
    oci::Process {
        Args: strings(args),
        Env: strings(&["PATH=/usr/local/bin:/usr/bin:/bin"]),
        Cwd: "/".into(),
        User: MessageField::some(oci::User::new()),
        Capabilities: MessageField::some(oci::LinuxCapabilities {
            Bounding: caps.clone(),
            Effective: caps.clone(),
            Permitted: caps,
            ..Default::default()
        }),
        OOMScoreAdj: fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap(),
        ..Default::default()
    }
}

/// As docker writes it.
pub fn spec(args: &[&str]) -> oci::Spec {
    let namespaces = ["mount", "uts", "ipc", "pid", "network", "cgroup"];
    let linux = oci::Linux {
        Namespaces: namespaces
            .iter()
            .map(|t| oci::LinuxNamespace { Type: (*t).into(), ..Default::default() })
            .collect(),
        MaskedPaths: strings(&["/proc/kcore", "/proc/keys", "/sys/firmware", "/proc/no/such"]),
        ReadonlyPaths: strings(&["/proc/sys", "/proc/bus", "/proc/no/such"]),
        ..Default::default()
    };
    oci::Spec {
        Version: "1.0.2".into(),
        Process: MessageField::some(process(args)),
        Root: MessageField::some(oci::Root { Path: "rootfs".into(), ..Default::default() }),
        Hostname: "jailed".into(),
        Mounts: vec![
            mount_entry("/proc", "proc", "proc", "nosuid,noexec,nodev"),
            mount_entry("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
            mount_entry("/dev/pts", "devpts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
            mount_entry("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
            mount_entry("/sys/fs/cgroup", "cgroup", "cgroup", "ro,nosuid,noexec,nodev"),
            mount_entry("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
            mount_entry("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777,size=1m"),
        ],
        Linux: MessageField::some(linux),
        ..Default::default()
    }
}

pub fn id() -> String {
    format!("c{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// What a finished process left.
#[derive(Debug)]
pub struct Output {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Pipes to a process.
pub struct Pipes {
    pub stdin: Option<File>,
    stdout: File,
    stderr: File,
}

pub fn pipes() -> (ProcessIo, Pipes) {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let ((in_r, in_w), (out_r, out_w), (err_r, err_w)) = (pipe(), pipe(), pipe());
    let io = ProcessIo::Fds { stdin: in_r, stdout: out_w, stderr: err_w };
    (io, Pipes { stdin: Some(in_w.into()), stdout: out_r.into(), stderr: err_r.into() })
}

impl Pipes {
    /// Closes stdin, reads all, waits.
    pub fn finish(mut self, child: &Child) -> Output {
        drop(self.stdin.take());
        let mut stderr = self.stderr;
        let errors = std::thread::spawn(move || {
            let mut text = String::new();
            stderr.read_to_string(&mut text).map(|_| text)
        });
        let mut stdout = String::new();
        self.stdout.read_to_string(&mut stdout).unwrap();
        Output { status: wait(child), stdout, stderr: errors.join().unwrap().unwrap() }
    }

    /// As `finish`, with the container killed if it does not end by itself.
    pub fn finish_after(self, child: &Child, container: &Container) -> Output {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_secs(3));
                let _ = container.signal_all(9);
            });
            self.finish(child)
        })
    }

    /// Reads a line, so that something is known to have happened.
    pub fn line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        while self.stdout.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    pub fn write(&mut self, text: &str) {
        self.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }
}

static EXITS: Mutex<BTreeMap<i32, i32>> = Mutex::new(BTreeMap::new());

/// The exit status as a shell has it. Takes all other exits on the way, as an agent does: a pid namespace does not end
/// before all its processes have been waited for, those of an exec that failed too.
pub fn wait(child: &Child) -> i32 {
    loop {
        if let Some(status) = EXITS.lock().unwrap().remove(&child.pid) {
            return status;
        }
        let (pid, status) = match waitpid(None, None).unwrap() {
            WaitStatus::Exited(pid, code) => (pid, code),
            WaitStatus::Signaled(pid, signal, _) => (pid, 128 + signal as i32),
            other => panic!("{other:?}"),
        };
        EXITS.lock().unwrap().insert(pid.as_raw(), status);
    }
}

pub fn start(spec: &oci::Spec, rootfs: &Rootfs) -> Result<(Container, Child, Pipes), JailError> {
    let (io, pipes) = pipes();
    let (mut container, child) = Container::create(&id(), spec, &rootfs.0, io)?;
    match container.start() {
        Ok(()) => Ok((container, child, pipes)),
        Err(e) => {
            assert_ne!(wait(&child), 0);
            container.destroy()?;
            Err(e)
        }
    }
}

pub fn try_run(spec: &oci::Spec, rootfs: &Rootfs) -> Result<Output, JailError> {
    let (container, child, pipes) = start(spec, rootfs)?;
    let output = pipes.finish(&child);
    container.destroy()?;
    Ok(output)
}

/// Runs a container to its end.
pub fn run(spec: &oci::Spec, rootfs: &Rootfs) -> Output {
    try_run(spec, rootfs).unwrap_or_else(|e| panic!("{e}"))
}

/// Runs a shell script in a container with the usual spec, after a change to it.
pub fn script(text: &str, change: impl FnOnce(&mut oci::Spec)) -> Output {
    let mut s = spec(&["sh", "-c", text]);
    change(&mut s);
    run(&s, &Rootfs::new())
}

/// A container that waits for its stdin to close.
pub fn waiting_container(rootfs: &Rootfs) -> (Container, Child, Pipes) {
    let (container, child, mut pipes) = start(&spec(&["sh", "-c", "echo up; exec cat"]), rootfs).unwrap();
    assert_eq!(pipes.line(), "up");
    (container, child, pipes)
}

pub fn exec(container: &Container, process: &oci::Process) -> Result<Output, JailError> {
    let (io, pipes) = pipes();
    let child = container.exec(process, io)?;
    Ok(pipes.finish(&child))
}

/// Reads from a terminal until what came contains `end`.
pub fn read_terminal(master: &OwnedFd, end: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut text = Vec::new();
    let mut buf = [0; 4096];
    while !String::from_utf8_lossy(&text).contains(end) {
        assert!(Instant::now() < deadline, "no {end:?} in {:?}", String::from_utf8_lossy(&text));
        match rustix::io::read(master.as_fd(), &mut buf) {
            Ok(0) | Err(rustix::io::Errno::IO) => break,
            Ok(n) => text.extend(&buf[..n]),
            Err(e) => panic!("{e}"),
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Waits until something is so.
pub fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn cgroup_root() -> &'static Path {
    CGROUP_ROOT.get().unwrap()
}

/// Removes a directory of cgroups, deepest first.
pub fn remove_cgroups(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        if entry.path().is_dir() {
            remove_cgroups(&entry.path());
        }
    }
    fs::remove_dir(dir).unwrap();
}

impl Pipes {
    /// Reads until nobody can write any more.
    pub fn drain(mut self) {
        let mut all = Vec::new();
        self.stdout.read_to_end(&mut all).unwrap();
        self.stderr.read_to_end(&mut all).unwrap();
    }
}
