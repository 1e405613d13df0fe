//! The one place that waits for children. As PID 1 the agent inherits every orphan of the guest, so one loop takes
//! all exits and hands each to whoever watches that pid.
//!
//! A process may be gone before its starter has learned its pid. Whoever starts one therefore first takes a
//! [`Hold`]: while any hold exists, exits of unknown pids are remembered, and [`Hold::claim`] finds them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How a process ended, as a shell says it: its exit code, or 128 plus the signal that killed it.
pub type Exit = watch::Receiver<Option<i32>>;

/// Collects exits. Clones share one state.
#[derive(Clone, Default)]
pub struct Reaper(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    watched: HashMap<i32, watch::Sender<Option<i32>>>,
    unclaimed: HashMap<i32, i32>,
    holds: usize,
}

/// Keeps the exits of processes that are just being started.
pub struct Hold(Reaper);

impl Reaper {
    /// Starts the loop that waits for children. Call once, within the runtime.
    ///
    /// # Errors
    /// When the SIGCHLD handler cannot be set.
    pub fn start() -> std::io::Result<Self> {
        let reaper = Reaper::default();
        let mut sigchld = signal(SignalKind::child())?;
        let me = reaper.clone();
        tokio::spawn(async move {
            loop {
                me.collect();
                if sigchld.recv().await.is_none() {
                    return;
                }
            }
        });
        Ok(reaper)
    }

    /// Begins a time in which a process is started.
    pub fn hold(&self) -> Hold {
        self.state().holds += 1;
        Hold(self.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes every exit there is.
    fn collect(&self) {
        loop {
            match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => self.exited(pid.as_raw(), code),
                Ok(WaitStatus::Signaled(pid, sig, _)) => self.exited(pid.as_raw(), 128 + sig as i32),
                Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD) => return,
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(e) => {
                    log::error!("waiting for children failed: {e}");
                    return;
                }
            }
        }
    }

    fn exited(&self, pid: i32, status: i32) {
        let mut s = self.state();
        if let Some(watcher) = s.watched.remove(&pid) {
            watcher.send_replace(Some(status));
        } else if s.holds > 0 {
            s.unclaimed.insert(pid, status);
        }
    }
}

impl Hold {
    /// Watches `pid`, a child (or a descendant that will become one), from now on; finds its exit also if it is over.
    pub fn claim(&self, pid: i32) -> Exit {
        let mut s = self.0.state();
        match s.unclaimed.remove(&pid) {
            Some(status) => watch::channel(Some(status)).1,
            None => {
                let (tx, rx) = watch::channel(None);
                s.watched.insert(pid, tx);
                rx
            }
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut s = self.0.state();
        s.holds -= 1;
        if s.holds == 0 {
            s.unclaimed.clear();
        }
    }
}

/// Waits for the end; [`kata_types::EXIT_LOST`] if nobody can tell any more.
pub async fn ended(exit: &Exit) -> i32 {
    let mut exit = exit.clone();
    match exit.wait_for(Option::is_some).await {
        Ok(status) => status.unwrap_or(kata_types::EXIT_LOST),
        Err(_) => kata_types::EXIT_LOST,
    }
}

/// Tests that start a reaper wait for any child of their program, so only one of them may run at a time.
#[cfg(test)]
pub static ALONE: Mutex<()> = Mutex::new(());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_before_the_claim_is_found_and_one_after_it_is_told() {
        let r = Reaper::default();
        let hold = r.hold();
        r.exited(10, 3);
        assert_eq!(*hold.claim(10).borrow(), Some(3));
        let later = hold.claim(11);
        assert_eq!(*later.borrow(), None);
        r.exited(11, 137);
        assert_eq!(*later.borrow(), Some(137));
    }

    #[test]
    fn orphans_are_forgotten_when_nobody_starts_anything() {
        let r = Reaper::default();
        r.exited(5, 0);
        let (a, b) = (r.hold(), r.hold());
        r.exited(6, 0);
        drop(a);
        assert_eq!(r.state().unclaimed.len(), 1);
        drop(b);
        assert!(r.state().unclaimed.is_empty());
    }
}
