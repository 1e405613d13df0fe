//! Why a network call failed, in words that name the interface, route or neighbour.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use super::netlink::NetlinkError;
use crate::failure::Failure;

/// Why the guest's network is not as it was asked for.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// The request makes no sense.
    #[error("{what}: {why}")]
    Invalid {
        /// Which part of it.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// This agent cannot.
    #[error("{0}")]
    Unsupported(String),
    /// The card that the host says it has plugged.
    #[error("no interface {wanted} appeared within {} s", waited.as_secs())]
    NoCard {
        /// What was looked for.
        wanted: String,
        /// How long.
        waited: Duration,
    },
    /// A route's or a neighbour's interface.
    #[error("{what}: there is no interface {device:?}")]
    NoDevice {
        /// Which route or neighbour.
        what: String,
        /// The name.
        device: String,
    },
    /// A change of an interface.
    #[error("cannot {what} the interface {name}")]
    Interface {
        /// Which change.
        what: String,
        /// The interface's name before it.
        name: String,
        /// Why.
        source: NetlinkError,
    },
    /// A kernel parameter of an interface.
    #[error("cannot write {value} to {path}")]
    Parameter {
        /// What.
        value: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A change of the routes.
    #[error("cannot {what} the route {route}")]
    Route {
        /// "add", "remove" or "put back".
        what: &'static str,
        /// The route in ip-route(8)'s words.
        route: String,
        /// Why.
        source: NetlinkError,
    },
    /// A neighbour.
    #[error("cannot set the neighbour {neighbour}")]
    Neighbour {
        /// Its address and interface.
        neighbour: String,
        /// Why.
        source: NetlinkError,
    },
    /// Looking.
    #[error("cannot list the guest's {what}")]
    List {
        /// Interfaces, addresses or routes.
        what: &'static str,
        /// Why.
        source: NetlinkError,
    },
    /// No connection to the kernel.
    #[error("the guest's network cannot be changed")]
    Socket(#[from] NetlinkError),
}

impl NetworkError {
    /// A request that makes no sense.
    pub fn invalid(what: impl Into<String>, why: impl Into<String>) -> Self {
        NetworkError::Invalid { what: what.into(), why: why.into() }
    }

    /// For `map_err` of a list.
    pub fn list(what: &'static str) -> impl Fn(NetlinkError) -> Self {
        move |source| NetworkError::List { what, source }
    }
}

impl From<NetworkError> for Failure {
    fn from(error: NetworkError) -> Self {
        let text = crate::failure::chain(&error);
        match error {
            NetworkError::Invalid { .. } => Failure::Invalid(text),
            NetworkError::Unsupported(_) => Failure::Unsupported(text),
            NetworkError::NoCard { .. } | NetworkError::NoDevice { .. } => Failure::NotFound(text),
            _ => Failure::Internal(text),
        }
    }
}
