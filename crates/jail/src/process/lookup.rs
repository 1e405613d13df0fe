//! Which file a program's name means. In the container's root and as its user; the errors are those that engines turn
//! into the exit statuses 126 and 127.

use rustix::fs::{Access, AtFlags, CWD, FileType, accessat, stat};

use crate::error::{JailError, SysError};

/// Finds `name`: as it is if it has a slash, else in the directories of `path`.
pub(crate) fn find(name: &str, path: &str) -> Result<String, JailError> {
    if name.contains('/') {
        return match check(name) {
            Ok(()) => Ok(name.to_owned()),
            Err(Unfit::Stat(source)) => Err(JailError::Stat { name: name.to_owned(), source }),
            Err(Unfit::NotExecutable) => Err(JailError::NotExecutable { name: name.to_owned() }),
        };
    }
    // An empty PATH has no directories; an empty part of a longer one is the working directory.
    path.split(':')
        .filter(|_| !path.is_empty())
        .map(|dir| if dir.is_empty() { format!("./{name}") } else { format!("{dir}/{name}") })
        .find(|candidate| check(candidate).is_ok())
        .ok_or_else(|| JailError::NotInPath { name: name.to_owned() })
}

enum Unfit {
    Stat(nix::errno::Errno),
    NotExecutable,
}

fn check(path: &str) -> Result<(), Unfit> {
    let st = stat(path).map_err(|e| Unfit::Stat(e.errno()))?;
    if FileType::from_raw_mode(st.st_mode) == FileType::Directory {
        return Err(Unfit::NotExecutable);
    }
    accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS).map_err(|_| Unfit::NotExecutable)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn names_with_and_without_a_slash() {
        let dir = std::env::temp_dir().join(format!("jail-lookup-{}", std::process::id()));
        for (d, mode) in [("a", 0o644), ("b", 0o755)] {
            fs::create_dir_all(dir.join(d)).unwrap();
            fs::write(dir.join(d).join("prog"), "").unwrap();
            fs::set_permissions(dir.join(d).join("prog"), fs::Permissions::from_mode(mode)).unwrap();
        }
        let d = dir.to_str().unwrap();
        // What may not be executed is passed over, as every shell does.
        assert_eq!(find("prog", &format!("{d}/a:{d}/b")).unwrap(), format!("{d}/b/prog"));
        assert_eq!(find("prog", &format!("{d}/a")).unwrap_err(), JailError::NotInPath { name: "prog".into() });
        assert_eq!(find("prog", "").unwrap_err(), JailError::NotInPath { name: "prog".into() });
        assert!(matches!(find(&format!("{d}/a/prog"), ""), Err(JailError::NotExecutable { .. })));
        assert!(matches!(find(d, ""), Err(JailError::NotExecutable { .. })));
        assert!(matches!(find(&format!("{d}/c"), ""), Err(JailError::Stat { .. })));
        fs::remove_dir_all(dir).unwrap();
    }
}
