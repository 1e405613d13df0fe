//! cgroup v2: every controller that the kernel has is handed to the groups below the root, where containers are.

use std::fs;

const ROOT: &str = "/sys/fs/cgroup";

/// Enables them, one by one, so that one which cannot be enabled keeps no other back.
pub fn enable_controllers() {
    let controllers = match fs::read_to_string(format!("{ROOT}/cgroup.controllers")) {
        Ok(text) => text,
        Err(e) => return log::error!("containers will have no limits, {ROOT}/cgroup.controllers: {e}"),
    };
    // One write for all is the fast path.
    let all: Vec<String> = controllers.split_whitespace().map(|c| format!("+{c}")).collect();
    if all.is_empty() {
        return log::error!("containers will have no limits: the kernel has no cgroup v2 controller");
    }
    if enable(&all.join(" ")).is_ok() {
        return;
    }
    for one in &all {
        if let Err(e) = enable(one) {
            log::error!("the cgroup controller {one} cannot be enabled: {e}");
        }
    }
}

fn enable(what: &str) -> std::io::Result<()> {
    fs::write(format!("{ROOT}/cgroup.subtree_control"), what)
}
