//! Between the engine's words and containerd's.

use std::time::{SystemTime, UNIX_EPOCH};

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{Message, MessageField};
use kata_sandbox::SandboxError;
use ttrpc::{Code, Error};

/// A time on the wire.
pub fn timestamp(at: SystemTime) -> MessageField<Timestamp> {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut t = Timestamp::new();
    t.seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    t.nanos = since.subsec_nanos().cast_signed();
    MessageField::some(t)
}

/// An error with the code that containerd understands (errdefs).
pub fn error(err: &SandboxError) -> Error {
    let code = match err {
        SandboxError::NotFound(_) | SandboxError::Finished => Code::NOT_FOUND,
        SandboxError::Exists(_) => Code::ALREADY_EXISTS,
        SandboxError::State { .. } | SandboxError::Elsewhere { .. } => Code::FAILED_PRECONDITION,
        SandboxError::Id(_) | SandboxError::Spec(_) | SandboxError::Role(_) | SandboxError::Shared(_) => {
            Code::INVALID_ARGUMENT
        }
        SandboxError::Stands { .. } => Code::UNIMPLEMENTED,
        SandboxError::Plan(kata_sandbox::PlanError::Unsupported(_)) => Code::UNIMPLEMENTED,
        SandboxError::Plan(_) => Code::INVALID_ARGUMENT,
        SandboxError::Dead(_) => Code::UNAVAILABLE,
        _ => Code::UNKNOWN,
    };
    status(code, err.to_string())
}

/// An error by hand.
pub fn status(code: Code, text: impl Into<String>) -> Error {
    Error::RpcStatus(ttrpc::get_status(code, text.into()))
}

/// A message in an `Any`, named as containerd's typeurl names it.
pub fn any<M: Message>(name: &str, message: &M) -> Result<Any, Error> {
    let mut any = Any::new();
    name.clone_into(&mut any.type_url);
    any.value = message.write_to_bytes().map_err(|e| status(Code::INTERNAL, e.to_string()))?;
    Ok(any)
}
