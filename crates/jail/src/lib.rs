//! Turns a process into a container.
