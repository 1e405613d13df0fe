//! Reading and checking `config.json` and `process.json`.

use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::{Process, Spec};

/// A file larger than this is no configuration.
const MAX_LEN: u64 = 16 << 20;

/// Why a bundle or process file cannot be used.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The bundle is not there.
    #[error("bundle {0} does not exist or is not a directory; give the directory that holds config.json with --bundle")]
    NoBundle(PathBuf),
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Not JSON, or not of the right shape.
    #[error("{path} is not valid: {reason}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what, as serde_json says it.
        reason: String,
    },
    /// A value that cannot work.
    #[error("{path}: {field} {problem}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The JSON field.
        field: &'static str,
        /// What is wrong and what to do.
        problem: String,
    },
}

/// Loads and checks `<bundle>/config.json`.
///
/// # Errors
/// [`LoadError`], each naming the file.
pub fn load_spec(bundle: &Path) -> Result<Spec, LoadError> {
    if !bundle.is_dir() {
        return Err(LoadError::NoBundle(bundle.to_owned()));
    }
    let path = bundle.join("config.json");
    let spec: Spec = parse(&path)?;
    let invalid = |field, problem: String| Err(LoadError::Invalid { path: path.clone(), field, problem });
    if !spec.oci_version.starts_with("1.") {
        return invalid("ociVersion", format!("is {:?}; versions 1.x are known", spec.oci_version));
    }
    let Some(process) = &spec.process else {
        return invalid("process", "is missing: what should run?".into());
    };
    check_process(&path, process)?;
    match &spec.root {
        None => return invalid("root", "is missing".into()),
        Some(root) if root.path.is_empty() => return invalid("root.path", "is empty".into()),
        Some(_) => {}
    }
    if spec.linux.is_none() {
        return invalid("linux", "is missing: only Linux containers can run".into());
    }
    for mount in &spec.mounts {
        if !mount.destination.starts_with('/') {
            return invalid("mounts", format!("has a destination that is not absolute: {:?}", mount.destination));
        }
    }
    Ok(spec)
}

/// Loads and checks a process file (`exec --process`).
///
/// # Errors
/// [`LoadError`], each naming the file.
pub fn load_process(path: &Path) -> Result<Process, LoadError> {
    let process = parse(path)?;
    check_process(path, &process)?;
    Ok(process)
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, LoadError> {
    let read = |source| LoadError::Read { path: path.to_owned(), source };
    let len = std::fs::metadata(path).map_err(read)?.len();
    if len > MAX_LEN {
        return Err(LoadError::Parse { path: path.to_owned(), reason: format!("{len} bytes are too many") });
    }
    let bytes = std::fs::read(path).map_err(read)?;
    serde_json::from_slice(&bytes).map_err(|e| LoadError::Parse { path: path.to_owned(), reason: e.to_string() })
}

fn check_process(path: &Path, process: &Process) -> Result<(), LoadError> {
    let invalid =
        |field, problem: &str| Err(LoadError::Invalid { path: path.to_owned(), field, problem: problem.to_owned() });
    if process.args.is_empty() || process.args[0].is_empty() {
        return invalid("process.args", "is empty: name a program");
    }
    if !process.cwd.starts_with('/') {
        return invalid("process.cwd", "must be an absolute path");
    }
    if process.args.iter().chain(&process.env).any(|s| s.contains('\0')) {
        return invalid("process.args or env", "contains a NUL character");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_file_and_the_field() {
        let dir = std::env::temp_dir().join(format!("kata-oci-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let text = |json: &str| {
            std::fs::write(dir.join("config.json"), json).unwrap();
            load_spec(&dir).unwrap_err().to_string()
        };
        for (json, part) in [
            ("{", "config.json is not valid"),
            (r#"{"ociVersion":"2.0"}"#, "ociVersion"),
            (r#"{"ociVersion":"1.0.0"}"#, "process is missing"),
            (r#"{"ociVersion":"1.0.0","process":{"args":[],"cwd":"/"}}"#, "process.args"),
            (r#"{"ociVersion":"1.0.0","process":{"args":["a"],"cwd":"x"}}"#, "process.cwd"),
            (r#"{"ociVersion":"1.0.0","process":{"args":["a"],"cwd":"/"}}"#, "root is missing"),
        ] {
            let got = text(json);
            assert!(got.contains(part), "{got}");
        }
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(load_spec(&dir).unwrap_err().to_string().contains("--bundle"));
    }
}
