//! The daemon's log: to containerd's `log` FIFO, or to a file.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use nix::fcntl::OFlag;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::prelude::*;
use tracing_subscriber::reload;

/// Where lines go now; none: stderr.
#[derive(Clone, Default)]
struct Place(Arc<Mutex<Option<Arc<File>>>>);

impl Place {
    fn set(&self, path: &Path) {
        // Where it cannot be opened, the log goes on where it was.
        if let Some(file) = open(path) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(file));
        }
    }
}

/// A writer that never blocks and never fails the program: a full FIFO that nobody reads loses lines.
struct Lossy(Option<Arc<File>>);

impl std::io::Write for Lossy {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        match &self.0 {
            Some(file) => drop((&**file).write_all(buf)),
            None => drop(std::io::stderr().write_all(buf)),
        }
        Ok(buf.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Place {
    type Writer = Lossy;

    fn make_writer(&'a self) -> Lossy {
        Lossy(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

type ChangeLevel = Box<dyn Fn(LevelFilter) + Send + Sync>;

/// What [`redirect`] changes.
static CURRENT: OnceLock<(Place, ChangeLevel)> = OnceLock::new();

fn level(debug: bool) -> LevelFilter {
    if debug { LevelFilter::DEBUG } else { LevelFilter::INFO }
}

fn open(path: &Path) -> Option<File> {
    // Read and write: a FIFO opened so needs no reader, and its writer gets no SIGPIPE when the reader goes.
    let mut options = File::options();
    options.read(true).append(true).create(true).mode(0o600).custom_flags(OFlag::O_NONBLOCK.bits());
    options.open(path).ok()
}

/// Logs to `path` (a FIFO or a file), or to stderr where it cannot be opened.
pub fn start(path: Option<&Path>, debug: bool) {
    let place = Place::default();
    if let Some(path) = path {
        place.set(path);
    }
    let (filter, handle) = reload::Layer::new(level(debug));
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).compact().with_writer(place.clone());
    // Only a second call fails, and then the first one's log is as good.
    if tracing_subscriber::registry().with(filter).with(lines).try_init().is_ok() {
        let change = move |level| drop(handle.reload(level));
        let _ = CURRENT.set((place, Box::new(change)));
    }
}

/// From now on logs elsewhere, and more or less.
pub fn redirect(path: &Path, debug: bool) {
    if let Some((place, change_level)) = CURRENT.get() {
        place.set(path);
        change_level(level(debug));
    }
}
