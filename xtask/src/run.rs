//! Running commands, and telling what goes on.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::paths;

/// A command that runs in the repository's root.
pub fn cmd<S: AsRef<std::ffi::OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program);
    command.args(args).current_dir(paths::repo_root());
    command
}

/// The cargo that runs us, in the repository's root.
pub fn cargo<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let program = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let mut command = cmd(&program, args);
    // Set by the outer `cargo run` for this package; a build script of another package would see the wrong values.
    for (name, _) in std::env::vars() {
        if name.starts_with("CARGO_PKG_") || name == "CARGO_MANIFEST_DIR" || name == "CARGO_MANIFEST_PATH" {
            command.env_remove(name);
        }
    }
    command
}

/// Runs it with our own stdio.
///
/// # Errors
/// It could not be started, or did not exit with 0; names the command.
pub fn check(command: &mut Command) -> Result<()> {
    let shown = show(command);
    let status = command.status().with_context(|| format!("cannot start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed: {status}");
    }
    Ok(())
}

/// Runs it and returns its stdout; stderr is ours.
///
/// # Errors
/// As [`check`], or output that is not UTF-8.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let out = command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot start `{shown}`"))?;
    if !out.status.success() {
        bail!("`{shown}` failed: {}", out.status);
    }
    String::from_utf8(out.stdout).with_context(|| format!("`{shown}` printed something that is not UTF-8"))
}

/// Whether a command exists and exits with 0; prints nothing.
pub fn succeeds(program: &str, args: &[&str]) -> bool {
    let mut command = cmd(program, args);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// A command as one would type it.
pub fn show(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    text
}

/// What [`step`] has done so far, in the order of its ends.
static STEPS: Mutex<Vec<(String, Duration)>> = Mutex::new(Vec::new());

/// The steps done so far, and how long each took.
pub fn steps() -> Vec<(String, Duration)> {
    STEPS.lock().map(|steps| steps.clone()).unwrap_or_default()
}

/// Does one step, saying what it is and how long it took.
///
/// # Errors
/// The step's own, with its name before it.
pub fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("==> {name}");
    let start = Instant::now();
    let result = work();
    let outcome = if result.is_ok() { "done" } else { "FAILED" };
    let took = start.elapsed();
    eprintln!("    {outcome} in {}: {name}", seconds(took));
    if let Ok(mut steps) = STEPS.lock() {
        steps.push((name.to_owned(), took));
    }
    result.with_context(|| name.to_owned())
}

/// "12.3 s".
pub fn seconds(took: Duration) -> String {
    format!("{:.1} s", took.as_secs_f64())
}

/// Replaces `to` by a copy of `from` atomically, with this mode: whoever has the old file open or mapped keeps it.
///
/// # Errors
/// Names the file.
pub fn replace_file(from: &Path, to: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let dir = to.parent().context("a file without a directory")?;
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let name = to.file_name().context("a file without a name")?.to_string_lossy();
    let temp = dir.join(format!(".{name}.{}.new", std::process::id()));
    std::fs::copy(from, &temp).with_context(|| format!("cannot copy {} to {}", from.display(), temp.display()))?;
    std::fs::set_permissions(&temp, std::fs::Permissions::from_mode(mode))?;
    std::fs::rename(&temp, to).with_context(|| format!("cannot rename {} to {}", temp.display(), to.display()))
}
