//! Small HTTP/1.1 services and requests: what the management socket, the monitor and the export of traces need, over
//! hyper. Every size and every wait has a bound, on both sides.

mod client;
mod message;
mod server;

pub use client::{ClientError, Target, send, send_over};
pub use message::{Request, Response};
pub use server::{Bounds, Handler, serve_tcp, serve_unix};
