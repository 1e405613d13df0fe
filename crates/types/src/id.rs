//! Names of things, checked once. Swapping two kinds of id does not compile.

use std::fmt;

use thiserror::Error;

/// Longest id in bytes; with it, every path we derive stays below the limits of file names.
const MAX_LEN: usize = 128;

/// Why a string is no id.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum IdError {
    /// Nothing was given.
    #[error("the {kind} id is empty; give one of letters, digits, '_', '.', '+' and '-'")]
    Empty {
        /// What the id names.
        kind: &'static str,
    },
    /// Too long.
    #[error("the {kind} id has {len} bytes; {MAX_LEN} are the most")]
    TooLong {
        /// What the id names.
        kind: &'static str,
        /// Its length.
        len: usize,
    },
    /// A character that is not allowed, or a name that means a directory.
    #[error(
        "the {kind} id {id:?} is not valid; it may hold letters, digits, '_', '.', '+' and '-', and must not be '.' or '..'"
    )]
    Invalid {
        /// What the id names.
        kind: &'static str,
        /// What was given.
        id: String,
    },
}

fn check(kind: &'static str, id: &str) -> Result<(), IdError> {
    if id.is_empty() {
        return Err(IdError::Empty { kind });
    }
    if id.len() > MAX_LEN {
        return Err(IdError::TooLong { kind, len: id.len() });
    }
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '+' | '-');
    if id == "." || id == ".." || !id.chars().all(good) {
        return Err(IdError::Invalid { kind, id: id.to_owned() });
    }
    Ok(())
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks and takes an id.
            ///
            /// # Errors
            /// [`IdError`] names what is wrong and what is allowed.
            pub fn new(id: impl Into<String>) -> Result<Self, IdError> {
                let id = id.into();
                check($kind, &id)?;
                Ok(Self(id))
            }

            /// The id's text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(id: String) -> Result<Self, IdError> {
                Self::new(id)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<std::path::Path> for $name {
            fn as_ref(&self) -> &std::path::Path {
                self.0.as_ref()
            }
        }
    };
}

id!(
    /// A sandbox: one VM and what runs in it.
    SandboxId, "sandbox");
id!(
    /// A container within a sandbox.
    ContainerId, "container");
id!(
    /// A further process within a container.
    ExecId, "exec");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_would_leave_a_directory_are_refused() {
        for bad in ["", ".", "..", "../x", "a/b", "a b", "a\0", "ä"] {
            assert!(ContainerId::new(bad).is_err(), "{bad:?}");
        }
        assert!(ContainerId::new("a".repeat(129)).is_err());
        for good in ["a", "a.b", "A_1-2+3", "..x"] {
            assert_eq!(ContainerId::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn the_error_names_the_id_and_what_is_allowed() {
        let e = ContainerId::new("../etc").unwrap_err().to_string();
        assert!(e.contains("../etc") && e.contains("container") && e.contains("letters"), "{e}");
    }
}
