//! A guest for tests: a kernel from the cache, an initrd of busybox whose init executes the lines that come over the
//! agent's port, and the host's end of that port.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cpio::NewcBuilder;
use kata_types::{Mib, SandboxId};
use kata_vmm::{AgentAddr, Begin, Boot, Vm, VmSpec};

const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for m in $(cat /modules.txt); do insmod /modules/$m || echo "no module $m" >/dev/console; done
echo online > /sys/devices/system/memory/auto_online_blocks
grep -q test.panic /proc/cmdline && { echo "going to panic" >/dev/console; exit 1; }
printf 'hello from \033[1minit\033[0m\n' >/dev/console
while :; do
  for p in /sys/class/virtio-ports/*; do
    if [ "$(cat $p/name)" = agent.channel.0 ]; then
      exec 3<>/dev/${p##*/}
      stty raw -echo <&3 2>/dev/null
      while read -r line <&3; do eval "$line" >&3 2>&1; echo "=$?" >&3; done
      exec 3<&-
    fi
  done
  usleep 20000
done
"#;

/// How long the shell may take to answer before it is asked again.
const ATTEMPT: Duration = Duration::from_secs(10);

/// What boots.
pub struct Guest {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    _dir: tempfile::TempDir,
}

impl Guest {
    /// A guest, or none with the reason printed.
    pub fn find() -> Option<Guest> {
        let missing = |what: &str| {
            println!("SKIP: there is no {what}");
            None
        };
        if !qemu().exists() {
            return missing(&qemu().display().to_string());
        }
        if !rustix::process::geteuid().is_root() {
            return missing("root");
        }
        let Some(busybox) = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|p| Path::new(p).exists()) else {
            return missing("busybox");
        };
        let Some(kernel) = kernel() else {
            return missing("guest kernel; build one with `cargo xtask kernel`");
        };
        let dir = tempfile::tempdir().unwrap();
        let initrd = dir.path().join("initrd");
        std::fs::write(&initrd, make_initrd(&kernel, Path::new(busybox))).unwrap();
        std::fs::set_permissions(&initrd, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        Some(Guest { kernel, initrd, _dir: dir })
    }

    /// A small VM with it.
    pub fn spec(&self, run_dir: &Path) -> VmSpec {
        VmSpec {
            sandbox: SandboxId::new("test").unwrap(),
            run_dir: run_dir.to_owned(),
            binary: qemu(),
            boot: Boot { kernel: self.kernel.clone(), initrd: self.initrd.clone(), params: vec![] },
            // Debian's kernel as a bzImage does not unpack with 128 MiB.
            memory: Mib(192),
            max_memory: Mib(1024),
            vcpus: 1,
            max_vcpus: 2,
            debug: false,
            cgroups: vec![],
            free_page_reporting: true,
            begin: Begin::Boot,
        }
    }
}

/// `$KATA_TEST_QEMU`, else the distribution's QEMU.
pub fn qemu() -> PathBuf {
    if let Some(path) = std::env::var_os("KATA_TEST_QEMU") {
        return PathBuf::from(path);
    }
    PathBuf::from(format!("/usr/bin/qemu-system-{}", std::env::consts::ARCH))
}

/// `$KATA_TEST_KERNEL`, else one of those that xtask keeps, rather one with all built in than one with modules.
fn kernel() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).map(PathBuf::from);
    if let Some(kernel) = var("KATA_TEST_KERNEL") {
        return Some(kernel);
    }
    let cache = var("KATA_CACHE_DIR")
        .or_else(|| var("XDG_CACHE_HOME").map(|d| d.join("kata-rs")))
        .or_else(|| var("HOME").map(|d| d.join(".cache/kata-rs")))?;
    let mut found: Vec<PathBuf> = std::fs::read_dir(cache.join("kernel"))
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path().join("vmlinux")))
        .filter(|path| path.exists() && !path.ends_with("work/vmlinux"))
        .collect();
    found.sort_by_key(|path| path.with_file_name("modules.txt").exists());
    found.into_iter().next()
}

fn make_initrd(kernel: &Path, busybox: &Path) -> Vec<u8> {
    let mut archive = Vec::new();
    let mut add = |name: &str, mode: u32, content: &[u8]| {
        let mut writer = NewcBuilder::new(name).mode(mode).write(&mut archive, content.len() as u32);
        writer.write_all(content).unwrap();
        writer.finish().unwrap();
    };
    for dir in ["bin", "dev", "proc", "sys", "modules", "mnt"] {
        add(dir, 0o040_755, b"");
    }
    add("bin/busybox", 0o100_755, &std::fs::read(busybox).unwrap());
    add("init", 0o100_755, INIT.as_bytes());
    let list = std::fs::read_to_string(kernel.with_file_name("modules.txt")).unwrap_or_default();
    let mut names = Vec::new();
    for name in list.split_whitespace() {
        let file = if name.ends_with(".ko") { name.to_owned() } else { format!("{name}.ko") };
        add(
            &format!("modules/{file}"),
            0o100_644,
            &std::fs::read(kernel.with_file_name("modules").join(&file)).unwrap(),
        );
        names.push(file);
    }
    add("modules.txt", 0o100_644, names.join("\n").as_bytes());
    cpio::newc::trailer(&mut archive).unwrap();
    archive
}

/// The host's end of the guest's shell. Blocking: the runtime's tasks do not run meanwhile, which nothing needs.
pub struct Shell {
    stream: BufReader<UnixStream>,
}

impl Shell {
    /// Connects, and waits until the guest answers; if it does not, fails with what the guest's console says.
    pub async fn connect(vm: &dyn Vm, at_most: Duration) -> Shell {
        let AgentAddr::Serial { path } = vm.agent_addr().clone() else { panic!("no serial port") };
        let deadline = Instant::now() + at_most;
        // Blocking elsewhere, so that the console is read meanwhile. Again and again: this guest's shell closes its port
        // when a host leaves, and what is said to it just then is lost. (The agent keeps its port open.)
        let connected = tokio::task::spawn_blocking(move || {
            loop {
                let stream = UnixStream::connect(&path).unwrap();
                stream.set_read_timeout(Some(ATTEMPT)).unwrap();
                let mut shell = Shell { stream: BufReader::new(stream) };
                match shell.try_run("echo ready") {
                    Ok((said, _)) => {
                        shell.stream.get_ref().set_read_timeout(Some(at_most)).unwrap();
                        return Ok((shell, said));
                    }
                    Err(e) if Instant::now() >= deadline => return Err(e),
                    Err(_) => {}
                }
            }
        });
        match connected.await.unwrap() {
            Ok((shell, said)) => {
                assert_eq!(said, "ready\n");
                shell
            }
            Err(e) => panic!("{e}; {:?}; {:#?}", *vm.exited().borrow(), vm.console().tail()),
        }
    }

    /// Executes a line in the guest; what it printed and its status.
    pub fn run(&mut self, line: &str) -> (String, i32) {
        self.try_run(line).unwrap_or_else(|e| panic!("{e}"))
    }

    fn try_run(&mut self, line: &str) -> Result<(String, i32), String> {
        self.stream.get_mut().write_all(format!("{line}\n").as_bytes()).map_err(|e| e.to_string())?;
        let mut said = String::new();
        loop {
            let mut got = String::new();
            match self.stream.read_line(&mut got) {
                Ok(0) => return Err(format!("the guest's port closed after {line:?}: {said}")),
                Ok(_) => {}
                Err(e) => return Err(format!("the guest did not end {line:?}: {e}; it said {said}")),
            }
            if let Some(status) = got.strip_prefix('=') {
                return Ok((said, status.trim().parse().map_err(|_| got.clone())?));
            }
            said.push_str(&got);
        }
    }

    /// Executes a line that must succeed.
    pub fn ok(&mut self, line: &str) -> String {
        let (said, status) = self.run(line);
        assert_eq!(status, 0, "{line}: {said}");
        said
    }

    /// Executes a line until it succeeds.
    #[allow(dead_code, reason = "not every test executable waits")]
    pub fn until_ok(&mut self, line: &str, at_most: Duration) -> String {
        let deadline = Instant::now() + at_most;
        loop {
            let (said, status) = self.run(line);
            if status == 0 {
                return said;
            }
            assert!(Instant::now() < deadline, "{line}: {status}: {said}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
