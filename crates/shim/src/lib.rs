//! containerd's Task service over the engine.
