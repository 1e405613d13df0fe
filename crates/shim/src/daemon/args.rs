//! What the daemon is told.

use std::ffi::OsString;
use std::path::PathBuf;

use kata_factory::handover::Name;
use kata_sandbox::Owner;

/// The daemon's arguments, as `kata_sandbox::launch` writes them.
#[derive(Debug, Default)]
pub(super) struct Args {
    pub run_dir: PathBuf,
    pub id: String,
    pub bundle: PathBuf,
    pub namespace: Option<String>,
    pub root: Option<PathBuf>,
    pub config: Option<PathBuf>,
    pub log: Option<PathBuf>,
    pub events: Option<String>,
    pub debug: bool,
    /// Wait in the pool until somebody gives the rest.
    pub pool: bool,
}

impl Args {
    pub(super) fn parse(args: Vec<OsString>) -> Result<Args, String> {
        let mut out = Args::default();
        let mut args = args.into_iter();
        while let Some(flag) = args.next() {
            if flag == "--debug" {
                out.debug = true;
                continue;
            }
            if flag == "--pool" {
                out.pool = true;
                continue;
            }
            let value = args.next().ok_or_else(|| format!("{} needs a value", flag.to_string_lossy()))?;
            let text = || value.to_string_lossy().into_owned();
            match flag.to_str() {
                Some("--run-dir") => out.run_dir = value.clone().into(),
                Some("--id") => out.id = text(),
                Some("--bundle") => out.bundle = value.clone().into(),
                Some("--namespace") => out.namespace = Some(text()),
                Some("--root") => out.root = Some(value.clone().into()),
                Some("--config") => out.config = Some(value.clone().into()),
                Some("--log") => out.log = Some(value.clone().into()),
                Some("--events") => out.events = Some(text()),
                _ => return Err(format!("unknown argument {}", flag.to_string_lossy())),
            }
        }
        Ok(out)
    }

    /// Whose sandbox it is.
    pub(super) fn owner(&self) -> Result<Owner, String> {
        match (&self.namespace, &self.root) {
            (Some(namespace), _) => Ok(Owner::Containerd(namespace.clone())),
            (None, Some(root)) => Ok(Owner::Oci(root.clone())),
            (None, None) => Err("--namespace or --root is needed".into()),
        }
    }

    /// What a waiting sandbox is told; the configuration is the one that it has.
    pub(super) fn named(self, name: Name) -> Args {
        Args {
            run_dir: name.run_dir,
            id: name.id,
            bundle: name.bundle,
            namespace: name.namespace,
            root: name.root,
            log: name.log,
            events: name.events,
            debug: name.debug,
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments() {
        let args = |a: &[&str]| Args::parse(a.iter().map(OsString::from).collect());
        let a = args(&["--run-dir", "/r", "--id", "x", "--bundle", "/b", "--root", "/o", "--debug"]).unwrap();
        assert!(a.debug && a.root == Some("/o".into()) && a.id == "x");
        assert!(args(&["--pool"]).unwrap().pool);
        assert!(args(&["--frob", "1"]).is_err() && args(&["--id"]).is_err());
    }
}
