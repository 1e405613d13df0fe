//! Moves bytes between a process's descriptors and the host's streams. Each end has a task of its own, and a stream that
//! its host does not read holds up that one end only: the process then blocks in write(2), as it would on any full pipe.
//!
//! A host may go and come back. Output waits for the next stream; what had been read and was not written yet is kept.
//! A stdin that ends because its connection ended stays open; one that the host ended is closed.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, watch};

use crate::attach::{Arrivals, Attached};
use crate::fdio::FdIo;

/// How much is moved at once: a frame, which is half of a pipe.
const CHUNK: usize = crate::transport::mux::FRAME_BYTES;

/// Carries `from` to the host. `drained` becomes true when all of it has been handed over. Runs until no more streams
/// can arrive.
pub async fn output(from: Arc<FdIo>, mut arrivals: Arrivals, drained: watch::Sender<bool>) {
    let mut from = Some(from);
    let mut held = Vec::new();
    let mut at = 0;
    let Some(mut to) = arrivals.recv().await else { return };
    loop {
        if at < held.len() {
            tokio::select! {
                next = arrivals.recv() => match next {
                    Some(next) => to = next,
                    None => return,
                },
                written = to.io.write(&held[at..]) => match written {
                    Ok(n) if n > 0 => at += n,
                    // This host does not take any more.
                    _ => match arrivals.recv().await {
                        Some(next) => to = next,
                        None => return,
                    },
                },
            }
            continue;
        }
        at = 0;
        let Some(source) = &from else {
            // The end was reached: whoever attaches from now on is told at once. One that is already gone needs no
            // telling.
            let _ = to.io.shutdown().await;
            drained.send_replace(true);
            // A connection of its own is closed whole: not every vsock device passes a half on.
            let kept = (!to.session.is_endless()).then_some(to);
            match arrivals.recv().await {
                Some(next) => to = next,
                None => return,
            }
            drop(kept);
            continue;
        };
        // An idle process costs no buffer.
        held = Vec::new();
        tokio::select! {
            next = arrivals.recv() => match next {
                Some(next) => to = next,
                None => return,
            },
            ready = source.readable() => {
                held.resize(CHUNK, 0);
                let n = match ready {
                    Ok(()) => source.read(&mut held).await.unwrap_or(0),
                    Err(_) => 0,
                };
                held.truncate(n);
                if n == 0 {
                    from = None;
                }
            }
        }
    }
}

/// Carries the host's stream to `to` and closes it at the stream's end, or when `close` tells, after what has arrived
/// until then. Runs until no more streams can arrive.
pub async fn input(to: Arc<FdIo>, mut arrivals: Arrivals, close: Arc<Notify>) {
    let mut from: Option<Attached> = None;
    'open: loop {
        let Some(stream) = &mut from else {
            tokio::select! {
                // A stream that is here already comes first: what it holds was sent before the call to close.
                biased;
                next = arrivals.recv() => match next {
                    Some(next) => from = Some(next),
                    None => return,
                },
                () = close.notified() => break,
            }
            continue;
        };
        // Allocated when there is something to move; see `fill`.
        let mut data = Vec::new();
        tokio::select! {
            biased;
            result = fill(stream, &mut data) => match result {
                Ok(0) if !stream.session.is_over() => break 'open,
                Ok(0) | Err(_) => from = None,
                // The process has closed its stdin, or is gone: the host learns it from the end of its stream.
                Ok(_) => if to.write_all(&data).await.is_err() {
                    break 'open;
                },
            },
            next = arrivals.recv() => match next {
                Some(next) => from = Some(next),
                None => return,
            },
            () = close.notified() => break 'open,
        }
    }
    drop((to, from));
    // Streams that come now find a closed end: each is dropped, which its host sees.
    while arrivals.recv().await.is_some() {}
}

/// Reads once; the buffer is taken only when the first byte is there.
async fn fill(from: &mut Attached, data: &mut Vec<u8>) -> std::io::Result<usize> {
    let mut first = [0u8; 64];
    let n = from.io.read(&mut first).await?;
    data.extend_from_slice(&first[..n]);
    if n == first.len() {
        data.resize(CHUNK, 0);
        // What else is there already; waiting for more would hold back what came.
        let more = futures::FutureExt::now_or_never(from.io.read(&mut data[n..]));
        let m = match more {
            Some(result) => result?,
            None => 0,
        };
        data.truncate(n + m);
    }
    Ok(data.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::Attachments;
    use crate::fdio::Kind;
    use crate::transport::Session;
    use kata_proto::channel::Stdio;
    use rustix::pipe::{PipeFlags, pipe_with};
    use std::time::Duration;

    fn run(test: impl Future<Output = ()>) {
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        rt.block_on(async { tokio::time::timeout(Duration::from_secs(10), test).await.expect("in time") });
    }

    #[test]
    fn output_waits_for_its_host_survives_it_and_ends() {
        run(async {
            let (r, w) = pipe_with(PipeFlags::CLOEXEC).unwrap();
            let all = Attachments::default();
            let ends = all.register("c", "", |s| s == Stdio::Out);
            let (drained, mut is_drained) = watch::channel(false);
            let from = Arc::new(FdIo::new(r, Kind::Plain).unwrap());
            tokio::spawn(output(from, ends.stdout.unwrap(), drained));
            rustix::io::write(&w, b"early").unwrap();
            let (here, there) = tokio::io::duplex(1024);
            let (end, session) = Session::new();
            all.attach("c", "", Stdio::Out, Box::new(there), session);
            let mut here = here;
            let mut b = [0; 5];
            here.read_exact(&mut b).await.unwrap();
            assert_eq!(&b, b"early");
            end.send_replace(true);
            drop(here);
            rustix::io::write(&w, b"between").unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            let (mut here, there) = tokio::io::duplex(1024);
            all.attach("c", "", Stdio::Out, Box::new(there), Session::endless());
            drop(w);
            let mut rest = Vec::new();
            here.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"between");
            is_drained.wait_for(|d| *d).await.unwrap();
        });
    }

    #[test]
    fn a_lost_stdin_stays_open_and_an_ended_one_is_closed() {
        run(async {
            let (r, w) = pipe_with(PipeFlags::CLOEXEC).unwrap();
            let reader = FdIo::new(r, Kind::Plain).unwrap();
            let all = Attachments::default();
            let ends = all.register("c", "", |s| s == Stdio::In);
            let to = Arc::new(FdIo::new(w, Kind::Plain).unwrap());
            tokio::spawn(input(to, ends.stdin.unwrap(), Arc::new(Notify::new())));
            let (mut here, there) = tokio::io::duplex(1024);
            let (end, session) = Session::new();
            all.attach("c", "", Stdio::In, Box::new(there), session);
            here.write_all(b"one").await.unwrap();
            let mut b = [0; 16];
            assert_eq!(reader.read(&mut b).await.unwrap(), 3);
            end.send_replace(true);
            drop(here);
            tokio::time::sleep(Duration::from_millis(20)).await;
            let (mut here, there) = tokio::io::duplex(1024);
            all.attach("c", "", Stdio::In, Box::new(there), Session::endless());
            here.write_all(&[7; 200]).await.unwrap();
            let mut got = 0;
            while got < 200 {
                got += reader.read(&mut b).await.unwrap();
            }
            here.shutdown().await.unwrap();
            assert_eq!(reader.read(&mut b).await.unwrap(), 0);
        });
    }

    #[test]
    fn closing_by_call_lets_what_arrived_through() {
        run(async {
            let (r, w) = pipe_with(PipeFlags::CLOEXEC).unwrap();
            let reader = FdIo::new(r, Kind::Plain).unwrap();
            let all = Attachments::default();
            let ends = all.register("c", "", |s| s == Stdio::In);
            let (mut here, there) = tokio::io::duplex(1024);
            all.attach("c", "", Stdio::In, Box::new(there), Session::endless());
            here.write_all(&[1; 500]).await.unwrap();
            let close = Arc::new(Notify::new());
            close.notify_one();
            tokio::spawn(input(Arc::new(FdIo::new(w, Kind::Plain).unwrap()), ends.stdin.unwrap(), close));
            let mut all_of_it = Vec::new();
            let mut b = [0; 128];
            loop {
                match reader.read(&mut b).await.unwrap() {
                    0 => break,
                    n => all_of_it.extend_from_slice(&b[..n]),
                }
            }
            assert_eq!(all_of_it.len(), 500);
        });
    }
}
