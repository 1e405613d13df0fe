//! The keeper: makes the template, and keeps sandboxes waiting. One for each configuration that has a pool; without a pool
//! it ends when the template is there.

mod demand;
mod member;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kata_config::Config;
use kata_sandbox::build_template;
use kata_vmm_qemu::Qemu;
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::pool::{KeeperLock, Pool, PoolError, pool_key};
use crate::{config, driver};
use demand::Demand;
use member::{Member, News};

/// How often the configuration, the memory of the host and the directory are looked at.
const TICK: Duration = Duration::from_secs(2);
/// After one was taken, whoever took it goes first.
const AFTER_TAKEN: Duration = Duration::from_millis(150);
/// A taken sandbox is named at once; one whose taker died is not.
const NAMED_WITHIN: Duration = Duration::from_secs(10);
/// After this many that did not come up in a row, a pause.
const FAILURES: u32 = 3;
const FAILED_PAUSE: Duration = Duration::from_secs(30);
/// How long sandboxes may take to end when the pool is drained.
const DRAIN: Duration = Duration::from_secs(5);

/// Why a keeper ends early.
#[derive(Debug, Error)]
pub enum KeeperError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] kata_config::ConfigError),
    /// The driver.
    #[error(transparent)]
    Driver(#[from] kata_vmm_qemu::QemuError),
    /// The pool's directory.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// Signals.
    #[error("cannot wait for {what}: {source}")]
    Signal {
        /// Which.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

/// What to keep.
pub struct Keeper {
    file: Option<PathBuf>,
    config: Config,
    vmm: Qemu,
    /// The pool that is ours to keep, with its lock; none without one.
    pool: Option<(Pool, KeeperLock)>,
}

impl Keeper {
    /// For the configuration in `file`, or the usual one. `None`: the pool has a keeper already.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub fn new(file: Option<&Path>) -> Result<Option<Keeper>, KeeperError> {
        let config = config(file)?.config;
        let vmm = driver(&config)?;
        let pool = if config.factory.vm_cache_number > 0 {
            let pool = Pool::of(&pool_key(&config, &vmm)?);
            pool.make()?;
            match pool.lock()? {
                Some(lock) => Some((pool, lock)),
                None => return Ok(None),
            }
        } else {
            None
        };
        Ok(Some(Keeper { file: file.map(Path::to_owned), config, vmm, pool }))
    }

    /// Where it should log, if it has a place of its own.
    pub fn log(&self) -> Option<PathBuf> {
        self.pool.as_ref().map(|(pool, _)| pool.log())
    }

    /// Until there is nothing to keep any more, or SIGTERM.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub async fn run(self) -> Result<(), KeeperError> {
        if self.config.factory.enable_template
            && let Err(err) = build_template(&self.config, &self.vmm).await
        {
            // Machines boot without one. That is slower, and no reason to have none waiting.
            tracing::error!("there is no template: {err}");
        }
        match self.pool {
            Some((pool, _lock)) => {
                let mut kept = Kept::new(pool, self.file, self.config, self.vmm);
                let done = kept.keep().await;
                kept.drain().await;
                done
            }
            None => Ok(()),
        }
    }
}

/// The pool and what is in it.
struct Kept {
    pool: Pool,
    file: Option<PathBuf>,
    config: Config,
    vmm: Qemu,
    members: Vec<Member>,
    made: u64,
    failures: u32,
    demand: Demand,
    not_before: Instant,
    news: mpsc::UnboundedSender<(u64, News)>,
    received: mpsc::UnboundedReceiver<(u64, News)>,
}

impl Kept {
    fn new(pool: Pool, file: Option<PathBuf>, config: Config, vmm: Qemu) -> Kept {
        let (news, received) = mpsc::unbounded_channel();
        let demand = Demand::new(config.factory.vm_cache_number);
        let not_before = Instant::now();
        Kept { pool, file, config, vmm, members: Vec::new(), made: 0, failures: 0, demand, not_before, news, received }
    }

    async fn keep(&mut self) -> Result<(), KeeperError> {
        // What an earlier keeper had: those that wait end with it, unless they are just ending.
        for left in self.pool.members() {
            self.pool.discard(&left);
        }
        let mut terminate =
            signal(SignalKind::terminate()).map_err(|source| KeeperError::Signal { what: "SIGTERM", source })?;
        tracing::info!(size = self.config.factory.vm_cache_number, pool = %self.pool.dir().display(), "keeping");
        let mut tick = tokio::time::interval(TICK);
        loop {
            self.fill();
            let wait = self.next_fill();
            tokio::select! {
                Some((number, news)) = self.received.recv() => self.learn(number, news),
                () = tokio::time::sleep_until(wait.into()) => {}
                _ = tick.tick() => {
                    if self.changed() {
                        tracing::info!("the configuration has changed, or what it names: the pool ends");
                        return Ok(());
                    }
                    self.look();
                }
                _ = terminate.recv() => {
                    tracing::info!("SIGTERM: the pool ends");
                    return Ok(());
                }
            }
        }
    }

    fn waiting(&self) -> usize {
        self.members.iter().filter(|m| m.waits()).count()
    }

    /// One at a time: two at once would only make each other slow.
    fn wants_one(&self) -> bool {
        let making = self.members.iter().any(|m| !m.ready);
        !making && self.waiting() < self.demand.wanted()
    }

    fn next_fill(&self) -> Instant {
        let far = Instant::now() + TICK * 10;
        if self.wants_one() { self.not_before } else { far }
    }

    fn fill(&mut self) {
        if !self.wants_one() || Instant::now() < self.not_before {
            return;
        }
        self.made += 1;
        let number = self.made;
        match Member::start(&self.pool, number, self.file.as_deref(), self.news.clone()) {
            Ok(member) => self.members.push(member),
            Err(err) => {
                tracing::error!("a sandbox to wait cannot be started: {err}");
                self.failed();
            }
        }
    }

    fn failed(&mut self) {
        self.failures += 1;
        if self.failures >= FAILURES {
            self.not_before = Instant::now() + FAILED_PAUSE;
        }
    }

    fn learn(&mut self, number: u64, news: News) {
        let Some(at) = self.members.iter().position(|m| m.number == number) else { return };
        match news {
            News::Ready => {
                self.members[at].ready = true;
                self.failures = 0;
            }
            News::Taken => {
                tracing::info!(number, "a sandbox was taken");
                self.members.swap_remove(at);
                self.demand.taken(Instant::now());
                self.not_before = Instant::now() + AFTER_TAKEN;
            }
            News::Ended => {
                let member = self.members.swap_remove(at);
                tracing::warn!(number, "a waiting sandbox has ended");
                self.pool.discard(&member.dir);
                self.pool.discard(&member.ready_dir());
                if !member.ready {
                    self.failed();
                }
            }
        }
    }

    /// Whether what the pool's key is made of is other than it was.
    fn changed(&self) -> bool {
        match config(self.file.as_deref()) {
            Ok(loaded) => match pool_key(&loaded.config, &self.vmm) {
                Ok(key) => key != self.pool.key(),
                // In the middle of an upgrade: the next look will tell.
                Err(_) => false,
            },
            Err(_) => true,
        }
    }

    /// What nobody tells: memory that is short, and takers that died.
    fn look(&mut self) {
        self.demand.look(Instant::now());
        while self.waiting() > self.demand.wanted() {
            let Some(at) = self.members.iter().position(Member::waits) else { break };
            tracing::info!(number = self.members[at].number, "memory is short or demand is low: one less waits");
            // Dropping the pipe tells it to end; its own end is then news of nobody's.
            let member = self.members.swap_remove(at);
            self.pool.discard(&member.ready_dir());
        }
        for member in &mut self.members {
            if member.ready && !member.ready_dir().exists() {
                let since = *member.gone_since.get_or_insert_with(Instant::now);
                if since.elapsed() > NAMED_WITHIN {
                    tracing::warn!(number = member.number, "its taker is gone: it ends");
                    member.let_end();
                }
            }
        }
    }

    async fn drain(&mut self) {
        for member in &mut self.members {
            member.let_end();
        }
        let deadline = Instant::now() + DRAIN;
        while !self.members.is_empty() {
            match tokio::time::timeout_at(deadline.into(), self.received.recv()).await {
                Ok(Some((number, News::Taken | News::Ended))) => self.members.retain(|m| m.number != number),
                Ok(Some(_)) => {}
                _ => break,
            }
        }
        for left in self.pool.members() {
            self.pool.discard(&left);
        }
        if let Err(err) = self.pool.remove() {
            tracing::warn!("{err}");
        }
    }
}
