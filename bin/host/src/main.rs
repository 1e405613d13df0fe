//! The host program. One file, many names: which one it is, is decided here, before any thread or logger exists.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    let mut args: Vec<OsString> = args.collect();
    // The shim's argv is its container's, so it is known by its environment.
    if std::env::var_os(kata_cli::kata_shim::ENV).is_some() {
        return kata_cli::kata_shim::main(args);
    }
    let name = Path::new(&name).file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let word = args.first().map(|w| w.to_string_lossy().into_owned()).unwrap_or_default();
    // Helpers re-execute /proc/self/exe under names of their own: the word tells.
    match word.as_str() {
        "sandbox-daemon" => return kata_shim::daemon::main(args.split_off(1)),
        "factory-daemon" => return kata_shim::factory::main(args.split_off(1)),
        "virtiofsd" => return kata_storage::virtiofsd::main(args.split_off(1)),
        "spawn" => return kata_vmm::spawn::helper_main(args.split_off(1)),
        _ => {}
    }
    match name.as_str() {
        "kata-runtime" => kata_cli::main(args),
        "containerd-shim-kata-v2" => kata_shim::door::main(args),
        "kata-monitor" => kata_monitor::main(args),
        "kata-shim" => kata_cli::kata_shim::main(args),
        "kata-deploy" => kata_deploy::main(args),
        _ => match word.as_str() {
            "runtime" => kata_cli::main(args.split_off(1)),
            "monitor" => kata_monitor::main(args.split_off(1)),
            "containerd-shim" => kata_shim::door::main(args.split_off(1)),
            "deploy" => kata_deploy::main(args.split_off(1)),
            // Called by its own name, or a name of the user's choosing (a docker runtime may have any).
            _ => kata_cli::main(args),
        },
    }
}
