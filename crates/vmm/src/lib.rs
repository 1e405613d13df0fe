//! What a hypervisor driver is; the accelerator probe; the only spawner.
