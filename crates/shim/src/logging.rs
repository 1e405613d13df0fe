//! The daemon's log: to containerd's `log` FIFO, or to a file.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use nix::fcntl::OFlag;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::prelude::*;
use tracing_subscriber::registry::LookupSpan;
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

/// Whose the lines are: a daemon has one sandbox, and each of its lines says which.
#[derive(Clone, Default)]
struct Whose(Arc<Mutex<String>>);

impl Whose {
    fn set(&self, sandbox: &str) {
        let mut suffix = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *suffix = format!(" sandbox={sandbox}");
    }
}

/// Lines of another form, and whose they are.
struct Named<F> {
    form: F,
    whose: Whose,
}

impl<S, N, F> FormatEvent<S, N> for Named<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = String::new();
        self.form.format_event(ctx, Writer::new(&mut line), event)?;
        let whose = self.whose.0.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(writer, "{}{whose}", line.trim_end_matches('\n'))
    }
}

type ChangeLevel = Box<dyn Fn(LevelFilter) + Send + Sync>;

/// What [`redirect`] and [`sandbox`] change.
static CURRENT: OnceLock<(Place, Whose, ChangeLevel)> = OnceLock::new();

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
    let whose = Whose::default();
    let form = Named { form: tracing_subscriber::fmt::format().with_ansi(false).compact(), whose: whose.clone() };
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).event_format(form).with_writer(place.clone());
    // Only a second call fails, and then the first one's log is as good.
    if tracing_subscriber::registry().with(filter).with(lines).try_init().is_ok() {
        let change = move |level| drop(handle.reload(level));
        let _ = CURRENT.set((place, whose, Box::new(change)));
    }
}

/// From now on logs elsewhere, and more or less.
pub fn redirect(path: &Path, debug: bool) {
    if let Some((place, _, change_level)) = CURRENT.get() {
        place.set(path);
        change_level(level(debug));
    }
}

/// From now on each line ends with the sandbox's id.
pub fn sandbox(id: &str) {
    if let Some((_, whose, _)) = CURRENT.get() {
        whose.set(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_says_whose_it_is() {
        let dir = std::env::temp_dir().join(format!("kata-log-{}", std::process::id()));
        let (place, whose) = (Place::default(), Whose::default());
        place.set(&dir);
        let form = Named { form: tracing_subscriber::fmt::format().with_ansi(false).compact(), whose: whose.clone() };
        let lines = tracing_subscriber::fmt::layer().with_ansi(false).event_format(form).with_writer(place);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), || {
            tracing::info!("early");
            whose.set("s1");
            let _task = tracing::info_span!("task", container = "c1").entered();
            tracing::warn!(exec = "e1", "late");
        });
        let text = std::fs::read_to_string(&dir).unwrap();
        std::fs::remove_file(&dir).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].ends_with("early"), "{text}");
        assert!(lines[1].ends_with(" sandbox=s1"), "{text}");
        assert!(lines[1].contains("container=\"c1\"") && lines[1].contains("exec=\"e1\""), "{text}");
    }
}
