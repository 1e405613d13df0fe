//! What runs in the helper process.
//!
//! Stage 0 is the helper as the agent started it: it enters and makes the namespaces that only children get to live in,
//! forks the container's process as a child of the agent, tells its pid, and is gone. Stage 1 is that process: it makes
//! the container around itself, waits for the start, and becomes the program.
//!
//! The helper ends when the agent does: the kernel kills it while it works, and while it waits it sees the channel close.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::OwnedFd;

use kata_proto::oci;
use kata_sys::jail::{Forked, cloexec_from, fork_sibling, reset_signals};
use nix::sched::{CloneFlags, setns, unshare};
use protobuf::Message as _;
use rustix::process::{DumpableBehavior, Signal, set_dumpable_behavior, set_parent_process_death_signal};

use crate::channel::{Channel, Message};
use crate::error::{JailError, Step, SysError};
use crate::hold;
use crate::job::{Job, Kind};
use crate::namespaces::{self, Namespaces};
use crate::process::{self, Program, terminal};
use crate::report::Report;
use crate::rootfs::{Rootfs, Surroundings, devices};
use crate::sysctl;

/// The whole life of a helper: runs in a process started as `program jail-init` by this crate, before anything else and
/// with one thread.
pub fn helper_main() -> ! {
    std::process::exit(match run() {
        Ok(()) => 0,
        // The agent has been told, or is gone.
        Err(()) => 1,
    })
}

/// The job's descriptors, in their places.
struct Fds {
    cgroup_procs: Vec<OwnedFd>,
    init: Option<OwnedFd>,
    stdio: Option<[OwnedFd; 3]>,
}

fn run() -> Result<(), ()> {
    let channel = take_channel().map_err(|e| eprintln!("jail-init: {e}"))?;
    let (job, fds) = match channel.recv(None) {
        Ok(Some(Message::Job(files))) => read_job(files).map_err(|e| fail(&channel, e))?,
        _ => return Err(()),
    };
    let report = Report(channel);
    let spec = oci::Spec::parse_from_bytes(&job.spec).map_err(|_| {
        fail(&report.0, JailError::helper("got a spec that it cannot read"));
    })?;
    let forked = match job.kind {
        Kind::Create => enter_new(&spec, &report),
        Kind::Exec => enter_existing(&job, &fds),
        Kind::Hold => hold::enter(),
    };
    match forked.and_then(|()| fork_sibling().step(|| "forking the container's process".to_owned())) {
        Ok(Forked::Parent { pid, pidfd }) => {
            report.0.send(&Message::Process(pid, pidfd)).map_err(|_| ())?;
            Ok(())
        }
        Ok(Forked::Child) if job.kind == Kind::Hold => hold::hold(&report.0).map_err(|e| fail(&report.0, e)),
        Ok(Forked::Child) => {
            let program = stage1(&job, &spec, fds, &report).map_err(|e| fail(&report.0, e))?;
            let e = wait_and_run(program, &report.0)?;
            fail(&report.0, e);
            Err(())
        }
        Err(e) => {
            fail(&report.0, e);
            Err(())
        }
    }
}

fn fail(channel: &Channel, e: JailError) {
    // Without an agent there is nobody to tell.
    let _ = channel.send(&Message::Failed(e));
}

/// The channel is stdin at first; /dev/null takes its place.
fn take_channel() -> Result<Channel, JailError> {
    let what = || "taking the channel to the agent".to_owned();
    die_with_the_agent()?;
    cloexec_from(3).step(what)?;
    let channel = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3).step(what)?;
    nix::unistd::dup2_stdin(File::open("/dev/null").step(what)?).step(what)?;
    // A process of the container that finds this one must not look into it.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).step(what)?;
    Ok(Channel::from_fd(channel))
}

fn die_with_the_agent() -> Result<(), JailError> {
    set_parent_process_death_signal(Some(Signal::KILL)).step(|| "tying the helper to the agent".to_owned())
}

fn read_job(files: Vec<OwnedFd>) -> Result<(Job, Fds), JailError> {
    let missing = || JailError::helper("got too few descriptors");
    let mut files = files.into_iter();
    let mut text = Vec::new();
    let mut file = File::from(files.next().ok_or_else(missing)?);
    file.rewind().and_then(|()| file.read_to_end(&mut text)).step(|| "reading the job".to_owned())?;
    let job = Job::decode(&text)?;
    let cgroup_procs: Vec<OwnedFd> = files.by_ref().take(job.cgroup_files as usize).collect();
    let init = match job.kind {
        Kind::Create | Kind::Hold => None,
        Kind::Exec => Some(files.next().ok_or_else(missing)?),
    };
    let needs_stdio = !job.terminal && job.kind != Kind::Hold;
    let stdio = match (needs_stdio, files.next(), files.next(), files.next()) {
        (false, ..) => None,
        (true, Some(a), Some(b), Some(c)) => Some([a, b, c]),
        (true, ..) => return Err(missing()),
    };
    Ok((job, Fds { cgroup_procs, init, stdio }))
}

/// Stage 0 of a new container: all namespaces but the cgroup's.
fn enter_new(spec: &oci::Spec, report: &Report) -> Result<(), JailError> {
    let linux = spec.Linux.get_or_default();
    let namespaces = Namespaces::parse(&linux.Namespaces)?;
    set_oom_score_adj(spec.Process.get_or_default())?;
    let join = namespaces.open()?;
    if namespaces.is_new(namespaces::Kind::User) {
        unshare(CloneFlags::CLONE_NEWUSER).step(|| "making a user namespace".to_owned())?;
        let lost = || JailError::helper("lost the agent");
        report.0.send(&Message::MapIds).map_err(|_| lost())?;
        match report.0.recv(None) {
            Ok(Some(Message::Mapped)) => become_root_of_namespace()?,
            _ => return Err(lost()),
        }
    }
    namespaces.enter(&join)?;
    if namespaces.has(namespaces::Kind::User) && !namespaces.is_new(namespaces::Kind::User) {
        become_root_of_namespace()?;
    }
    Ok(())
}

/// So that what is made from here on belongs to the namespace's root and not to an unmapped nobody.
fn become_root_of_namespace() -> Result<(), JailError> {
    let what = || "becoming the user namespace's root (is its id 0 mapped?)".to_owned();
    nix::unistd::setresgid(0.into(), 0.into(), 0.into()).step(what)?;
    nix::unistd::setresuid(0.into(), 0.into(), 0.into()).step(what)?;
    // The change of user clears it.
    die_with_the_agent()
}

/// Stage 0 of an exec: the namespaces of the container's init.
fn enter_existing(job: &Job, fds: &Fds) -> Result<(), JailError> {
    let spec =
        oci::Spec::parse_from_bytes(&job.spec).map_err(|_| JailError::helper("got a spec that it cannot read"))?;
    set_oom_score_adj(spec.Process.get_or_default())?;
    let init = fds.init.as_ref().ok_or_else(|| JailError::helper("got no init"))?;
    let flags = CloneFlags::from_bits_retain(job.namespaces as i32);
    setns(init, flags).step(|| format!("joining the namespaces of container {}", job.id))?;
    if flags.contains(CloneFlags::CLONE_NEWUSER) {
        become_root_of_namespace()?;
    }
    Ok(())
}

/// Written while the process is the agent's equal: lowering wants CAP_SYS_RESOURCE outside of any user namespace.
fn set_oom_score_adj(process: &oci::Process) -> Result<(), JailError> {
    let value = process.OOMScoreAdj;
    let path = "/proc/self/oom_score_adj";
    // What need not change is not written: the right to lower it may be missing.
    if std::fs::read_to_string(path).is_ok_and(|now| now.trim() == value.to_string()) {
        return Ok(());
    }
    std::fs::write(path, value.to_string()).step(|| format!("setting oom_score_adj to {value}"))
}

fn stage1(job: &Job, spec: &oci::Spec, fds: Fds, report: &Report) -> Result<Program, JailError> {
    die_with_the_agent()?;
    rustix::process::setsid().step(|| "beginning a session".to_owned())?;
    rustix::process::umask(rustix::fs::Mode::empty());
    join_cgroup(&fds.cgroup_procs)?;
    let process = spec.Process.get_or_default();
    let size = match (job.rows, job.cols) {
        (0, 0) => {
            let spec = process.ConsoleSize.get_or_default();
            (spec.Height.try_into().unwrap_or(0), spec.Width.try_into().unwrap_or(0))
        }
        size => size,
    };
    let slave = match job.kind {
        Kind::Create => make_container(job, spec, size, report)?,
        Kind::Exec if job.terminal => {
            let root = rustix::fs::open(
                "/",
                rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
                rustix::fs::Mode::empty(),
            )
            .step(|| "opening the container's root".to_owned())?;
            Some(give_terminal(&root, size, report)?)
        }
        Kind::Exec | Kind::Hold => None,
    };
    take_stdio(slave, fds.stdio, process.User.UID)?;
    process::become_process(process, report)
}

/// The first cgroup.procs file that takes the process: a container may have turned its cgroup into one that only holds
/// others.
fn join_cgroup(files: &[OwnedFd]) -> Result<(), JailError> {
    let mut last = Ok(());
    for file in files {
        match rustix::io::write(file, b"0") {
            Ok(_) => return Ok(()),
            Err(e) => last = Err(e),
        }
    }
    last.step(|| "joining the container's cgroup".to_owned())
}

/// Everything about a new container that is not about its process; returns its terminal's slave side, if it has one.
fn make_container(
    job: &Job,
    spec: &oci::Spec,
    (rows, cols): (u16, u16),
    report: &Report,
) -> Result<Option<OwnedFd>, JailError> {
    let linux = spec.Linux.get_or_default();
    let namespaces = Namespaces::parse(&linux.Namespaces)?;
    if namespaces.is_new(namespaces::Kind::Cgroup) {
        unshare(CloneFlags::CLONE_NEWCGROUP).step(|| "making a cgroup namespace".to_owned())?;
    }
    if namespaces.is_new(namespaces::Kind::Net) {
        kata_sys::guest::link_up("lo").step(|| "bringing up the loopback interface".to_owned())?;
    }
    if !spec.Hostname.is_empty() {
        if !namespaces.has(namespaces::Kind::Uts) {
            return Err(JailError::invalid("a hostname without a uts namespace"));
        }
        nix::unistd::sethostname(&spec.Hostname).step(|| format!("setting the hostname {:?}", spec.Hostname))?;
    }
    sysctl::apply(&linux.Sysctl)?;

    let mut rootfs = Rootfs::open(&job.rootfs, &linux.RootfsPropagation)?;
    let around =
        Surroundings { cgroup: &job.cgroup, cgroup_namespace: namespaces.has(namespaces::Kind::Cgroup), report };
    rootfs.mount_all(&spec.Mounts, &around)?;
    let own_dev = !spec.Mounts.iter().any(|m| {
        m.destination.trim_end_matches('/') == "/dev"
            && (m.type_ == "bind" || m.options.iter().any(|o| o.ends_with("bind")))
    });
    if own_dev {
        devices::make(rootfs.fd(), &linux.Devices)?;
    }
    let slave = if job.terminal {
        let slave = give_terminal(rootfs.fd(), (rows, cols), report)?;
        if own_dev {
            rootfs.bind_over(&slave, "/dev/console")?;
        }
        Some(slave)
    } else {
        None
    };
    rootfs.make_read_only(&linux.ReadonlyPaths)?;
    rootfs.mask(&linux.MaskedPaths)?;
    rootfs.make_cwd(&spec.Process.get_or_default().Cwd);
    rootfs.pivot(spec.Root.get_or_default().Readonly)?;
    Ok(slave)
}

fn give_terminal(root: &OwnedFd, (rows, cols): (u16, u16), report: &Report) -> Result<OwnedFd, JailError> {
    let terminal::Terminal { master, slave } = terminal::open(root, rows, cols)?;
    report.0.send(&Message::Terminal(master)).step(|| "handing over the terminal".to_owned())?;
    Ok(slave)
}

fn take_stdio(slave: Option<OwnedFd>, stdio: Option<[OwnedFd; 3]>, uid: u32) -> Result<(), JailError> {
    let io = match (slave, stdio) {
        (Some(slave), _) => {
            terminal::take(&slave)?;
            let copy = || rustix::io::fcntl_dupfd_cloexec(&slave, 3).step(|| "copying the terminal".to_owned());
            [copy()?, copy()?, copy()?]
        }
        (None, Some(stdio)) => stdio,
        (None, None) => return Err(JailError::helper("got neither a terminal nor files for stdin, stdout and stderr")),
    };
    process::take_stdio(&io, uid)
}

/// Waits for the agent's word and becomes the program. Returns the error if that fails; `Err` when there is nobody left to tell.
fn wait_and_run(program: Program, channel: &Channel) -> Result<JailError, ()> {
    let ready = || -> Result<(), JailError> {
        reset_signals().step(|| "resetting signals".to_owned())?;
        // Whatever the C library or a mistake left open stays behind.
        cloexec_from(3).step(|| "marking descriptors close-on-exec".to_owned())?;
        // The tie is to the agent's thread that started the helper; that one may end at any time from here on. The
        // channel tells of the agent's end.
        set_parent_process_death_signal(None).step(|| "untying from the agent's thread".to_owned())
    };
    if let Err(e) = ready() {
        return Ok(e);
    }
    channel.send(&Message::Ready).map_err(|_| ())?;
    match channel.recv(None) {
        Ok(Some(Message::Start)) => Ok(program.execve()),
        Ok(_) => Err(()),
        Err(e) => Ok(JailError::Step { step: "waiting for the start".into(), source: e.errno() }),
    }
}
