//! The daemon's log: to containerd's `log` FIFO, or to a file.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::OFlag;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

/// A writer that never blocks and never fails the program: a full FIFO that nobody reads loses lines.
#[derive(Clone)]
struct Lossy(Arc<File>);

impl std::io::Write for Lossy {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        drop((&*self.0).write_all(buf));
        Ok(buf.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lossy {
    type Writer = Lossy;

    fn make_writer(&'a self) -> Lossy {
        self.clone()
    }
}

/// Logs to `path` (a FIFO or a file), or to stderr where it cannot be opened.
pub fn start(path: Option<&Path>, debug: bool) {
    let level = if debug { LevelFilter::DEBUG } else { LevelFilter::INFO };
    let file = path.and_then(|path| {
        // Read and write: a FIFO opened so needs no reader, and its writer gets no SIGPIPE when the reader goes.
        File::options()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(path)
            .ok()
    });
    let builder = tracing_subscriber::fmt().with_max_level(level).with_ansi(false).compact();
    let done = match file {
        Some(file) => builder.with_writer(Lossy(Arc::new(file))).try_init(),
        None => builder.with_writer(std::io::stderr).try_init(),
    };
    // Only a second call fails, and then the first one's log is as good.
    drop(done);
}
