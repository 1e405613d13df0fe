//! A container and its processes: the order of its life, and who may do what when.
//!
//! ```text
//! CreateContainer -> Created -- start --> Running -- init ends --> (stopped) -- remove --> gone
//! ```
//! `life` is held through create, start and remove, so these wait for each other; signals, waits and stdio do not take
//! it. The engine's calls block and run on threads of their own; `engine` is locked shared by all of them but start and
//! destroy, so that a frozen container can be thawed while an exec hangs in it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use kata_proto::agent::CgroupStats;
use kata_proto::oci;

use crate::attach::Attachments;
use crate::engine::{self, ProcessIo};
use crate::failure::Failure;
use crate::process::{Pipes, Process, Wanted, pipes};
use crate::reaper::Reaper;
use crate::scope;

/// How long the end of an exec may still be asked for after it was told once, should the answer have been lost.
const REMEMBER: Duration = Duration::from_secs(60);

/// What a container needs from the agent.
#[derive(Clone)]
pub struct Context {
    /// Who waits for its processes.
    pub reaper: Reaper,
    /// Where the host's streams arrive.
    pub attachments: Arc<Attachments>,
    /// `agent.container_pipe_size`.
    pub pipe_size: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Created,
    Running,
    Removed,
}

/// A container.
pub struct Container {
    id: String,
    context: Context,
    life: tokio::sync::Mutex<Life>,
    started: AtomicBool,
    paused: AtomicBool,
    removed: AtomicBool,
    engine: RwLock<Option<engine::Container>>,
    init: Arc<Process>,
    execs: Mutex<HashMap<String, Exec>>,
    /// The mount points whose storages it uses.
    pub storages: Vec<PathBuf>,
}

enum Exec {
    /// Being started: the name is taken.
    Starting,
    Running(Arc<Process>),
    /// Its end has been told.
    Told(Arc<Process>),
}

/// Runs what blocks on a thread of its own.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let scope = scope::current();
    match tokio::task::spawn_blocking(move || scope::carried_blocking(scope, work)).await {
        Ok(result) => result,
        Err(e) => Err(Failure::Internal(format!("the agent failed: {e}"))),
    }
}

/// How a process's terminal begins, or that it has none.
fn io_of(process: &oci::Process, wanted: Wanted, pipe_size: Option<usize>) -> Result<(ProcessIo, Pipes), Failure> {
    if !process.Terminal {
        return pipes(wanted, pipe_size);
    }
    let clamp = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    let (rows, cols) = process.ConsoleSize.as_ref().map_or((0, 0), |b| (clamp(b.Height), clamp(b.Width)));
    Ok((ProcessIo::Terminal { rows, cols }, Pipes::default()))
}

impl Container {
    /// Makes a container; its first process waits for [`Container::start`].
    pub async fn create(
        id: &str,
        spec: oci::Spec,
        wanted: Wanted,
        storages: Vec<PathBuf>,
        context: Context,
    ) -> Result<Container, Failure> {
        let Some(process) = spec.Process.as_ref() else {
            return Err(Failure::Invalid(format!("the spec of container {id} has no process")));
        };
        let rootfs = match spec.Root.as_ref() {
            Some(root) if root.Path.starts_with('/') => PathBuf::from(&root.Path),
            _ => return Err(Failure::Invalid(format!("the spec of container {id} has no absolute root path"))),
        };
        let (io, mine) = io_of(process, wanted, context.pipe_size)?;
        let ends = context.attachments.register(id, "", |which| wanted.stream(which));
        let hold = context.reaper.hold();
        let name = id.to_owned();
        let made = blocking(move || Ok(engine::Container::create(&name, &spec, &rootfs, io)?));
        let made = scope::phase("container.create", made).await;
        let taken = match made {
            Ok((engine, child)) => {
                let exit = hold.claim(child.pid);
                match Process::new(child, exit, wanted, mine, ends) {
                    Ok(init) => Ok((engine, init)),
                    Err(e) => {
                        undo(engine, id).await;
                        Err(e)
                    }
                }
            }
            Err(e) => Err(e),
        };
        let (engine, init) = match taken {
            Ok(both) => both,
            Err(e) => {
                context.attachments.forget(id, "");
                return Err(e);
            }
        };
        Ok(Container {
            id: id.to_owned(),
            context,
            life: tokio::sync::Mutex::new(Life::Created),
            started: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            removed: AtomicBool::new(false),
            engine: RwLock::new(Some(engine)),
            init: Arc::new(init),
            execs: Mutex::default(),
            storages,
        })
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<String, Exec>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls the engine on a thread of its own.
    async fn engine<T: Send + 'static>(
        self: &Arc<Self>,
        call: impl FnOnce(&engine::Container) -> Result<T, engine::EngineError> + Send + 'static,
    ) -> Result<T, Failure> {
        let me = self.clone();
        blocking(move || {
            let engine = me.engine.read().unwrap_or_else(PoisonError::into_inner);
            let engine = engine.as_ref().ok_or_else(|| Failure::no_container(&me.id))?;
            Ok(call(engine)?)
        })
        .await
    }

    /// Lets the first process go.
    pub async fn start(self: &Arc<Self>) -> Result<(), Failure> {
        let mut life = self.life.lock().await;
        match *life {
            Life::Created => {}
            Life::Running => return Err(Failure::State(format!("container {} has been started already", self.id))),
            Life::Removed => return Err(Failure::no_container(&self.id)),
        }
        if self.init.has_ended() {
            return Err(Failure::State(format!("container {} has ended before it was started", self.id)));
        }
        let me = self.clone();
        blocking(move || {
            let mut engine = me.engine.write().unwrap_or_else(PoisonError::into_inner);
            let engine = engine.as_mut().ok_or_else(|| Failure::no_container(&me.id))?;
            Ok(engine.start()?)
        })
        .await?;
        self.started.store(true, Ordering::Relaxed);
        *life = Life::Running;
        Ok(())
    }

    fn check_running(&self) -> Result<(), Failure> {
        if !self.started.load(Ordering::Relaxed) {
            return Err(Failure::State(format!("container {} has not been started", self.id)));
        }
        if self.init.has_ended() {
            return Err(Failure::State(format!("container {} is not running", self.id)));
        }
        Ok(())
    }

    /// Starts another process.
    pub async fn exec(self: &Arc<Self>, exec: &str, process: oci::Process, wanted: Wanted) -> Result<(), Failure> {
        self.check_running()?;
        if self.paused.load(Ordering::Relaxed) {
            return Err(Failure::State(format!("container {} is paused", self.id)));
        }
        {
            let mut execs = self.execs();
            if matches!(execs.get(exec), Some(Exec::Starting | Exec::Running(_))) {
                return Err(Failure::Exists(format!("process {exec} exists already in container {}", self.id)));
            }
            execs.insert(exec.to_owned(), Exec::Starting);
        }
        let started = self.exec_named(exec, process, wanted).await;
        let mut execs = self.execs();
        match started {
            Ok(process) => {
                execs.insert(exec.to_owned(), Exec::Running(Arc::new(process)));
                Ok(())
            }
            Err(e) => {
                execs.remove(exec);
                self.context.attachments.forget(&self.id, exec);
                Err(e)
            }
        }
    }

    async fn exec_named(
        self: &Arc<Self>,
        exec: &str,
        process: oci::Process,
        wanted: Wanted,
    ) -> Result<Process, Failure> {
        let (io, mine) = io_of(&process, wanted, self.context.pipe_size)?;
        let ends = self.context.attachments.register(&self.id, exec, |which| wanted.stream(which));
        let hold = self.context.reaper.hold();
        let child = self.engine(move |engine| engine.exec(&process, io)).await?;
        let exit = hold.claim(child.pid);
        Process::new(child, exit, wanted, mine, ends)
    }

    /// A process by its id; empty or the container's own id means the first.
    pub fn process(&self, exec: &str) -> Result<Arc<Process>, Failure> {
        if exec.is_empty() || exec == self.id {
            return Ok(self.init.clone());
        }
        match self.execs().get(exec) {
            Some(Exec::Running(p) | Exec::Told(p)) => Ok(p.clone()),
            Some(Exec::Starting) | None => Err(Failure::no_process(&self.id, exec)),
        }
    }

    /// Waits for a process's end and returns its status. An exec is forgotten some time after that.
    pub async fn wait(self: &Arc<Self>, exec: &str) -> Result<i32, Failure> {
        let process = self.process(exec)?;
        let status = process.ended().await;
        if Arc::ptr_eq(&process, &self.init) {
            return Ok(status);
        }
        let is_it = |e: &Exec| matches!(e, Exec::Running(p) if Arc::ptr_eq(p, &process));
        let mut execs = self.execs();
        if execs.get(exec).is_some_and(is_it) {
            execs.insert(exec.to_owned(), Exec::Told(process.clone()));
            let (me, exec) = (Arc::downgrade(self), exec.to_owned());
            tokio::spawn(async move {
                process.drained().await;
                tokio::time::sleep(REMEMBER).await;
                let Some(me) = me.upgrade() else { return };
                let mut execs = me.execs();
                // Unless another process has the name by now.
                if matches!(execs.get(&exec), Some(Exec::Told(p)) if Arc::ptr_eq(p, &process)) {
                    execs.remove(&exec);
                    me.context.attachments.forget(&me.id, &exec);
                }
            });
        }
        Ok(status)
    }

    /// Sends a signal to a process. A first process that was not started yet cannot act on one, so what would end it
    /// kills it.
    pub fn signal(&self, exec: &str, signal: u32) -> Result<(), Failure> {
        let process = self.process(exec)?;
        let mut number = i32::try_from(signal).map_err(|_| Failure::Invalid(format!("{signal} is not a signal")))?;
        let is_init = Arc::ptr_eq(&process, &self.init);
        let ends = [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGHUP];
        if is_init && !self.started.load(Ordering::Relaxed) && ends.contains(&number) {
            number = libc::SIGKILL;
        }
        process.signal(number).map_err(|e| match e.raw_os_error() {
            Some(libc::ESRCH) if is_init => Failure::NotFound(format!("container {} is not running", self.id)),
            Some(libc::ESRCH) => Failure::NotFound(format!("process {exec} of container {} has ended", self.id)),
            Some(libc::EINVAL) => Failure::Invalid(format!("{signal} is not a signal")),
            _ => Failure::io(format_args!("cannot signal container {}", self.id), &e),
        })
    }

    /// Freezes every process.
    pub async fn pause(self: &Arc<Self>) -> Result<(), Failure> {
        self.check_running()?;
        // First the flag: an exec that began to join a frozen cgroup would never answer.
        self.paused.store(true, Ordering::Relaxed);
        let done = self.engine(engine::Container::pause).await;
        if done.is_err() {
            self.paused.store(false, Ordering::Relaxed);
        }
        done
    }

    /// Thaws them.
    pub async fn resume(self: &Arc<Self>) -> Result<(), Failure> {
        self.check_running()?;
        self.engine(engine::Container::resume).await?;
        self.paused.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Changes limits.
    pub async fn update(self: &Arc<Self>, resources: oci::LinuxResources) -> Result<(), Failure> {
        self.engine(move |engine| engine.update(&resources)).await
    }

    /// Reads the cgroup's counters.
    pub async fn stats(self: &Arc<Self>) -> Result<CgroupStats, Failure> {
        self.engine(engine::Container::stats).await
    }

    /// Its processes' pids.
    pub async fn pids(self: &Arc<Self>) -> Result<Vec<i32>, Failure> {
        self.engine(engine::Container::pids).await
    }

    /// One of the namespaces of its first process, by its name in /proc.
    ///
    /// # Errors
    /// [`Failure::State`] when that has ended.
    pub fn namespace(&self, name: &str) -> Result<OwnedFd, Failure> {
        let path = format!("/proc/{}/ns/{name}", self.init.pid);
        let file = std::fs::File::open(&path);
        // Asked afterwards: if it had not ended when the file was open, the pid was still its own.
        if self.init.has_ended() {
            return Err(Failure::State(format!("container {} is not running: its namespaces are gone", self.id)));
        }
        file.map(OwnedFd::from)
            .map_err(|e| Failure::io(format_args!("cannot open {path} of container {}", self.id), &e))
    }

    /// Kills, when its first process has ended, what that has left behind: the kernel does so only where the container
    /// has a pid namespace of its own.
    pub fn follow_init(self: &Arc<Self>) {
        let (me, init) = (Arc::downgrade(self), self.init.clone());
        tokio::spawn(async move {
            init.ended().await;
            let Some(me) = me.upgrade() else { return };
            match me.engine(engine::Container::kill_all).await {
                // Removed meanwhile, and so killed.
                Ok(()) | Err(Failure::NotFound(_)) => {}
                Err(e) => log::error!("what container {} has left behind cannot be killed: {e}", me.id),
            }
        });
    }

    /// The first process's pid, for what /proc tells.
    pub fn init_pid(&self) -> i32 {
        self.init.pid
    }

    /// Whether [`Container::remove`] got so far that it cannot be called again.
    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Relaxed)
    }

    /// The file that tells of out-of-memory kills.
    pub fn memory_events(&self) -> Option<PathBuf> {
        let engine = self.engine.read().unwrap_or_else(PoisonError::into_inner);
        engine.as_ref().map(engine::Container::memory_events_path)
    }

    /// Kills what runs and removes the container from the engine; waits for its first process's end.
    pub async fn remove(self: &Arc<Self>) -> Result<(), Failure> {
        let mut life = self.life.lock().await;
        if *life == Life::Removed {
            return Err(Failure::no_container(&self.id));
        }
        // All at once and also when it is frozen; and the first process by name, which is not yet in the cgroup's
        // hands while it is being made.
        self.engine(engine::Container::kill_all).await?;
        match self.init.signal(libc::SIGKILL) {
            Err(e) if e.raw_os_error() != Some(libc::ESRCH) => {
                return Err(Failure::io(format_args!("cannot kill container {}", self.id), &e));
            }
            _ => {}
        }
        self.init.ended().await;
        let me = self.clone();
        let done = blocking(move || {
            let engine = me.engine.write().unwrap_or_else(PoisonError::into_inner).take();
            match engine {
                Some(engine) => Ok(engine.destroy()?),
                None => Ok(()),
            }
        })
        .await;
        // Nothing runs any more; what the engine could not remove cannot be tried again.
        *life = Life::Removed;
        self.removed.store(true, Ordering::Relaxed);
        let execs: Vec<String> = self.execs().drain().map(|(exec, _)| exec).collect();
        for exec in execs {
            self.context.attachments.forget(&self.id, &exec);
        }
        self.context.attachments.forget(&self.id, "");
        done
    }
}

/// Takes back a container whose process cannot be watched.
async fn undo(engine: engine::Container, id: &str) {
    if let Err(e) = blocking(move || Ok(engine.destroy()?)).await {
        log::error!("container {id} was not created, and what exists of it cannot be removed: {e}");
    }
}
