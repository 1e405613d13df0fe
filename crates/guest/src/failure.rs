//! What a call of the service answers when it cannot do what was asked: each variant is one ttrpc (gRPC) code.

use thiserror::Error;
use ttrpc::Code;

use crate::engine::EngineError;

/// Why a call failed. The texts reach the host's user as they are.
#[derive(Debug, Error)]
pub enum Failure {
    /// No such container, process or stream.
    #[error("{0}")]
    NotFound(String),
    /// The id is in use.
    #[error("{0}")]
    Exists(String),
    /// The request itself is wrong.
    #[error("{0}")]
    Invalid(String),
    /// It is right, but not now: the container has ended, is paused, ...
    #[error("{0}")]
    State(String),
    /// This agent does not do it.
    #[error("not supported by this agent: {0}")]
    Unsupported(String),
    /// The end of an output stream was reached.
    #[error("end of file")]
    Eof,
    /// The guest could not do it.
    #[error("{0}")]
    Internal(String),
}

impl Failure {
    /// No such container.
    pub fn no_container(id: &str) -> Self {
        Failure::NotFound(format!("container {id} does not exist"))
    }

    /// No such process in a container.
    pub fn no_process(container: &str, exec: &str) -> Self {
        Failure::NotFound(format!("process {exec} does not exist in container {container}"))
    }

    /// An error with all its causes.
    pub fn internal(error: &dyn std::error::Error) -> Self {
        Failure::Internal(chain(error))
    }

    /// An error of the system while doing `what`.
    pub fn io(what: impl std::fmt::Display, error: &std::io::Error) -> Self {
        Failure::Internal(format!("{what}: {error}"))
    }

    /// Which code the host sees.
    fn code(&self) -> Code {
        match self {
            Failure::NotFound(_) => Code::NOT_FOUND,
            Failure::Exists(_) => Code::ALREADY_EXISTS,
            Failure::Invalid(_) => Code::INVALID_ARGUMENT,
            Failure::State(_) => Code::FAILED_PRECONDITION,
            Failure::Unsupported(_) => Code::UNIMPLEMENTED,
            Failure::Eof => Code::OUT_OF_RANGE,
            Failure::Internal(_) => Code::INTERNAL,
        }
    }
}

/// An error and its causes, joined by `": "`; a cause that its error repeats is left out.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        let text = error.to_string();
        match error {
            // The host tells these by their text, as engines do with runc's.
            EngineError::NotInPath { .. } | EngineError::Stat { .. } | EngineError::NotExecutable { .. } => {
                Failure::Invalid(text)
            }
            EngineError::InvalidSpec { .. } | EngineError::Cwd { .. } => Failure::Invalid(text),
            EngineError::Unsupported { .. } => Failure::Unsupported(text),
            EngineError::State { .. } => Failure::State(text),
            EngineError::Execve { .. } | EngineError::Step { .. } | EngineError::Helper { .. } => {
                Failure::Internal(text)
            }
        }
    }
}

impl From<Failure> for ttrpc::Error {
    fn from(failure: Failure) -> Self {
        ttrpc::Error::RpcStatus(ttrpc::get_status(failure.code(), failure.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_sees_a_code_and_the_id() {
        let ttrpc::Error::RpcStatus(status) = Failure::no_container("c7").into() else { panic!("no status") };
        assert_eq!(status.code(), Code::NOT_FOUND);
        assert!(status.message().contains("c7"), "{}", status.message());
    }

    #[test]
    fn engine_errors_keep_their_words() {
        let failure = Failure::from(EngineError::NotInPath { name: "foo".into() });
        assert_eq!(failure.to_string(), "exec: \"foo\": executable file not found in $PATH");
    }
}
