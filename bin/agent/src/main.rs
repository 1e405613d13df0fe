//! The guest program, `/init` of the guest: the agent, and in its second mode the helper that becomes a container.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1).peekable();
    if args.peek().is_some_and(|word| word == "jail-init") {
        kata_jail::helper_main();
    }
    kata_guest::main(args)
}
