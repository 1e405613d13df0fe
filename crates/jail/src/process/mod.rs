//! From a helper inside a container's namespaces to the container's program.

pub(crate) mod caps;
pub(crate) mod lookup;
pub(crate) mod passwd;
pub(crate) mod rlimits;
pub(crate) mod terminal;
pub(crate) mod user;

use std::ffi::CString;
use std::os::fd::OwnedFd;

use kata_proto::oci;
use nix::errno::Errno;
use rustix::fs::{FileType, Gid, Mode, Uid, fchown, fstat, makedev};

use crate::error::{JailError, Step, SysError};
use crate::report::Report;

/// A program ready to run, in a process that has become what the spec says.
#[derive(Debug)]
pub(crate) struct Program {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Program {
    /// Runs it; returns only if that failed.
    pub(crate) fn execve(&self) -> JailError {
        // On success there is no return.
        let Err(source) = nix::unistd::execve(&self.path, &self.args, &self.env);
        JailError::Execve { path: self.path.to_string_lossy().into_owned(), source }
    }
}

/// Makes `io` the process's stdin, stdout and stderr, its owner the container's user: a program may open
/// `/dev/stdout` again.
pub(crate) fn take_stdio(io: &[OwnedFd; 3], uid: u32) -> Result<(), JailError> {
    let what = || "setting up stdin, stdout and stderr".to_owned();
    for fd in io {
        let st = fstat(fd).step(what)?;
        let kind = FileType::from_raw_mode(st.st_mode);
        let null = kind == FileType::CharacterDevice && st.st_rdev == makedev(1, 3);
        let ours = matches!(kind, FileType::Fifo | FileType::CharacterDevice) && !null;
        if ours && st.st_uid != uid {
            match fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(st.st_gid))) {
                // In a user namespace in which the owner is nobody, and on what cannot change.
                Ok(()) | Err(rustix::io::Errno::PERM | rustix::io::Errno::INVAL | rustix::io::Errno::ROFS) => {}
                Err(e) => return Err(e).step(what),
            }
        }
    }
    let [stdin, stdout, stderr] = io;
    nix::unistd::dup2_stdin(stdin).step(what)?;
    nix::unistd::dup2_stdout(stdout).step(what)?;
    nix::unistd::dup2_stderr(stderr).step(what)
}

/// Checks what can be checked before anything is made.
pub(crate) fn check(process: &oci::Process) -> Result<(), JailError> {
    if process.Args.first().is_none_or(String::is_empty) {
        return Err(JailError::invalid("process.args is empty"));
    }
    if !process.Cwd.starts_with('/') {
        return Err(JailError::invalid(format!("process.cwd {:?} is not an absolute path", process.Cwd)));
    }
    if !process.ApparmorProfile.is_empty() {
        return Err(JailError::unsupported(format!("AppArmor profile {:?}", process.ApparmorProfile)));
    }
    if !process.SelinuxLabel.is_empty() {
        return Err(JailError::unsupported(format!("SELinux label {:?}", process.SelinuxLabel)));
    }
    rlimits::parse(&process.Rlimits)?;
    caps::Wanted::parse(process.Capabilities.as_ref(), &mut Vec::new())?;
    strings(&process.Args, "process.args")?;
    Env::parse(&process.Env)?;
    Ok(())
}

/// Becomes what the spec says of the process: limits, working directory, user, capabilities; and finds its program.
/// The namespaces, the root and stdio are those of the container already.
pub(crate) fn become_process(process: &oci::Process, report: &Report) -> Result<Program, JailError> {
    let user = process.User.get_or_default();
    let mut env = Env::parse(&process.Env)?;
    if env.get("HOME").is_none_or(str::is_empty) {
        env.set("HOME", passwd::home(user.UID).as_deref().unwrap_or("/"));
    }
    let mut warnings = Vec::new();
    let caps = caps::Wanted::parse(process.Capabilities.as_ref(), &mut warnings)?;
    for w in warnings {
        report.warn(&w);
    }
    new_keyring(report);
    let entered = enter_cwd(&process.Cwd)?;
    rlimits::apply(&rlimits::parse(&process.Rlimits)?)?;
    caps.drop_bounding()?;
    user::switch(user)?;
    caps.apply()?;
    if !entered {
        enter_cwd_as_user(&process.Cwd)?;
    }
    check_cwd(&process.Cwd)?;
    if process.NoNewPrivileges {
        capctl::prctl::set_no_new_privs().step(|| "setting no_new_privs".to_owned())?;
    }
    // What a login gives; the spec's own umask is not in the protocol.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let path = lookup::find(&process.Args[0], env.get("PATH").unwrap_or_default())?;
    let path = CString::new(path).map_err(|_| JailError::invalid("a program's path with a NUL"))?;
    Ok(Program { path, args: strings(&process.Args, "process.args")?, env: env.into_strings()? })
}

/// A session keyring of its own, so that the container neither reads nor fills the agent's.
fn new_keyring(report: &Report) {
    match kata_sys::jail::new_session_keyring() {
        Ok(()) => {}
        // A kernel without keyrings has none to share.
        Err(e) if e.errno() == Errno::ENOSYS => {}
        Err(e) => report.warn(&format!("no session keyring for the process: {e}")),
    }
}

/// False if the user may be the one who can: on some filesystems root may not.
fn enter_cwd(cwd: &str) -> Result<bool, JailError> {
    match rustix::process::chdir(cwd) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => Ok(false),
        Err(e) => Err(JailError::Cwd { cwd: cwd.to_owned(), source: e.errno() }),
    }
}

fn enter_cwd_as_user(cwd: &str) -> Result<(), JailError> {
    rustix::process::chdir(cwd).map_err(|e| JailError::Cwd { cwd: cwd.to_owned(), source: e.errno() })
}

/// A working directory outside the root (through a link into /proc, say) would be a way out of the container.
fn check_cwd(cwd: &str) -> Result<(), JailError> {
    match rustix::process::getcwd(Vec::new()) {
        Ok(path) if path.as_bytes().starts_with(b"/") => Ok(()),
        Ok(_) | Err(rustix::io::Errno::NOENT) => Err(JailError::Cwd { cwd: cwd.to_owned(), source: Errno::EXDEV }),
        // The user may be barred from looking up the tree.
        Err(rustix::io::Errno::ACCESS) => Ok(()),
        Err(e) => Err(JailError::Cwd { cwd: cwd.to_owned(), source: e.errno() }),
    }
}

fn strings(list: &[String], what: &str) -> Result<Vec<CString>, JailError> {
    list.iter()
        .map(|s| CString::new(s.as_str()).map_err(|_| JailError::invalid(format!("{what} has a NUL in {s:?}"))))
        .collect()
}

/// The environment, each name once.
#[derive(Debug, Default)]
pub(crate) struct Env(Vec<(String, String)>);

impl Env {
    /// Reads `NAME=value` strings; of two with one name the later counts.
    pub(crate) fn parse(list: &[String]) -> Result<Self, JailError> {
        let mut env = Env::default();
        for entry in list {
            match entry.split_once('=') {
                Some((name, value)) if !name.is_empty() && !entry.contains('\0') => env.set(name, value),
                _ => return Err(JailError::invalid(format!("environment entry {entry:?}"))),
            }
        }
        Ok(env)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        match self.0.iter_mut().find(|(n, _)| n == name) {
            Some((_, v)) => *v = value.to_owned(),
            None => self.0.push((name.to_owned(), value.to_owned())),
        }
    }

    fn into_strings(self) -> Result<Vec<CString>, JailError> {
        let list: Vec<String> = self.0.into_iter().map(|(n, v)| format!("{n}={v}")).collect();
        strings(&list, "the environment")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[&str]) -> Vec<String> {
        entries.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn of_two_values_the_later_counts() {
        let env = Env::parse(&list(&["A=1", "B=x=y", "A=2", "C="])).unwrap();
        assert_eq!(env.get("A"), Some("2"));
        assert_eq!(env.get("B"), Some("x=y"));
        assert_eq!(env.get("C"), Some(""));
        assert_eq!(env.into_strings().unwrap(), [c"A=2".to_owned(), c"B=x=y".to_owned(), c"C=".to_owned()]);
        assert!(Env::parse(&list(&["novalue"])).is_err());
        assert!(Env::parse(&list(&["=x"])).is_err());
        assert!(Env::parse(&list(&["A=\0"])).is_err());
    }

    #[test]
    fn a_process_that_cannot_be_is_refused_at_once() {
        let good = oci::Process { Args: list(&["/x"]), Cwd: "/".into(), ..Default::default() };
        check(&good).unwrap();
        assert!(check(&oci::Process { Args: vec![], ..good.clone() }).is_err());
        assert!(check(&oci::Process { Cwd: "x".into(), ..good.clone() }).is_err());
        assert!(check(&oci::Process { Args: list(&["a\0"]), ..good.clone() }).is_err());
        let labelled = oci::Process { SelinuxLabel: "a:b".into(), ..good };
        assert!(matches!(check(&labelled), Err(JailError::Unsupported { .. })));
    }
}
