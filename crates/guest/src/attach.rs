//! Brings the host's stdio streams and the processes together. Either may come first: a stream for a process that does
//! not exist yet waits here, and a process's output waits in its pipe. A later stream for the same end takes the
//! earlier one's place, which is how a host that comes back attaches anew.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kata_proto::channel::Stdio;
use tokio::sync::mpsc;

use crate::transport::{HostStream, Session};

/// Streams that may wait for their process.
const MAX_EARLY: usize = 1024;

/// A stream of the host for one end of a process.
pub struct Attached {
    /// The stream.
    pub io: HostStream,
    /// The connection that it came with.
    pub session: Session,
}

/// The streams that arrive for one end of a process, the latest last.
pub type Arrivals = mpsc::UnboundedReceiver<Attached>;

type Sender = mpsc::UnboundedSender<Attached>;
type Name = (String, String);

/// All processes' streams.
#[derive(Default)]
pub struct Attachments(Mutex<State>);

#[derive(Default)]
struct State {
    processes: HashMap<Name, [Option<Sender>; 3]>,
    early: Vec<(Name, Stdio, Attached)>,
}

/// The three ends of a process; `None` for one that is not attached.
#[derive(Default)]
pub struct Ends {
    /// Host to process.
    pub stdin: Option<Arrivals>,
    /// Process to host.
    pub stdout: Option<Arrivals>,
    /// Process to host.
    pub stderr: Option<Arrivals>,
}

/// The init of a container has an empty exec id; upstream's runtimes repeat the container's id.
fn name(container: &str, exec: &str) -> Name {
    let exec = if exec == container { "" } else { exec };
    (container.to_owned(), exec.to_owned())
}

impl Attachments {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change below is one step; a panic elsewhere leaves the maps whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream arrived.
    pub fn attach(&self, container: &str, exec: &str, which: Stdio, io: HostStream, session: Session) {
        let name = name(container, exec);
        let attached = Attached { io, session };
        let mut state = self.state();
        match state.processes.get(&name) {
            Some(ends) => {
                // A pump that has ended, or an end that is /dev/null, drops the stream, which the host sees.
                if let Some(tx) = &ends[which as usize] {
                    drop(tx.send(attached));
                }
            }
            None => {
                state.early.retain(|(_, _, old)| !old.session.is_over());
                if state.early.len() >= MAX_EARLY {
                    log::warn!("too many streams wait for processes that do not exist; one for {name:?} is refused");
                    return;
                }
                state.early.push((name, which, attached));
            }
        }
    }

    /// A process is about to exist, with the ends that `wants` names; streams that wait for it are handed over.
    pub fn register(&self, container: &str, exec: &str, wants: impl Fn(Stdio) -> bool) -> Ends {
        let name = name(container, exec);
        let mut senders = [None, None, None];
        let mut arrivals = [None, None, None];
        for which in [Stdio::In, Stdio::Out, Stdio::Err] {
            if wants(which) {
                let (tx, rx) = mpsc::unbounded_channel();
                senders[which as usize] = Some(tx);
                arrivals[which as usize] = Some(rx);
            }
        }
        let mut state = self.state();
        for (_, which, attached) in state.early.extract_if(.., |(n, _, _)| *n == name) {
            if let Some(tx) = &senders[which as usize] {
                drop(tx.send(attached));
            }
        }
        state.processes.insert(name, senders);
        let [stdin, stdout, stderr] = arrivals;
        Ends { stdin, stdout, stderr }
    }

    /// A process is gone, or could not be made; its pumps end, and no stream waits for it.
    pub fn forget(&self, container: &str, exec: &str) {
        let name = name(container, exec);
        let mut state = self.state();
        state.processes.remove(&name);
        state.early.retain(|(n, _, _)| *n != name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> HostStream {
        Box::new(tokio::io::duplex(16).0)
    }

    #[test]
    fn a_stream_finds_its_process_whichever_comes_first() {
        let all = Attachments::default();
        all.attach("c", "", Stdio::Out, stream(), Session::endless());
        all.attach("c", "", Stdio::Err, stream(), Session::endless());
        let mut ends = all.register("c", "", |which| which != Stdio::Err);
        assert!(ends.stderr.is_none());
        assert!(ends.stdout.as_mut().unwrap().try_recv().is_ok());
        assert!(ends.stdin.as_mut().unwrap().try_recv().is_err());
        all.attach("c", "c", Stdio::In, stream(), Session::endless());
        assert!(ends.stdin.as_mut().unwrap().try_recv().is_ok());
        assert!(all.state().early.is_empty());
        all.forget("c", "");
        assert!(ends.stdin.as_mut().unwrap().try_recv().is_err());
    }

    #[test]
    fn streams_that_wait_are_bounded_and_end_with_their_connection() {
        let all = Attachments::default();
        let (end, session) = Session::new();
        for n in 0..MAX_EARLY + 10 {
            all.attach("later", &n.to_string(), Stdio::Out, stream(), session.clone());
        }
        assert_eq!(all.state().early.len(), MAX_EARLY);
        end.send_replace(true);
        all.attach("later", "x", Stdio::Out, stream(), Session::endless());
        assert_eq!(all.state().early.len(), 1);
    }
}
