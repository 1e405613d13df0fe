//! The installer on nodes that are directories.

mod containerd;
mod crio;
mod documents;
mod node;
mod versions;
