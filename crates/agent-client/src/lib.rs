//! The host's end of the agent protocol.
