//! System calls that no library wraps safely. All `unsafe` of the project is here, one module per topic.

pub mod fds;
pub mod guest;
pub mod jail;
pub mod namespace;
pub mod process;
pub mod tsc;
pub mod tun;
