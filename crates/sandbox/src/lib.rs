//! The engine: one sandbox, one task, one queue.
