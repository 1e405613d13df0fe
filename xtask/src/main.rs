//! Every chore of the project: one command each. `cargo xtask help` lists them.

mod arrows;
mod bench;
mod build;
mod bzimage;
mod demo;
mod deps;
mod distro_kernel;
mod guest;
mod image;
mod install;
mod iptables;
mod kconfig;
mod kernel;
mod layout;
mod mode;
mod modules;
mod newer;
mod oci_image;
mod paths;
mod prepush;
mod qemu;
mod run;
mod summary;
mod test;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Every chore of the project: one command each")]
struct Args {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Runs a first container in a virtual machine, from nothing: packages, build, bundle, `kata-runtime run`.
    Demo,
    /// Runs every test: units, integration, and the whole system on real engines. As root.
    Test(test::Options),
    /// Builds everything (release) and installs it.
    Install {
        /// Where to: gets bin/ and share/.
        #[arg(long, default_value = "/usr/local")]
        prefix: PathBuf,
    },
    /// Removes exactly what `install` put there.
    Uninstall {
        /// The prefix given to `install`.
        #[arg(long, default_value = "/usr/local")]
        prefix: PathBuf,
    },
    /// Builds the tuned guest kernel (cached) and prints its path.
    Kernel {
        /// Get Debian's kernel instead, which the demo boots where the tuned one has not been built.
        #[arg(long)]
        debian: bool,
    },
    /// Builds the minimal QEMU (cached), checks it and prints its path; `install` takes it along.
    Qemu(qemu::Options),
    /// Builds the guest's initrd and prints its path.
    Image {
        /// Pack the agent built with the dev profile instead of the release one.
        #[arg(long)]
        dev: bool,
    },
    /// Measures ourselves beside others, or two builds beside each other, in turns. As root, on a quiet machine.
    Bench(bench::Options),
    /// What must hold before a change is sent: format, lints, unit tests, licences, arrows, docs.
    Prepush,
}

fn main() -> ExitCode {
    let done = match Args::parse().chore {
        Chore::Demo => demo::run(),
        Chore::Test(options) => return test::run(&options),
        Chore::Install { prefix } => install::run(&prefix),
        Chore::Uninstall { prefix } => install::uninstall(&prefix),
        Chore::Kernel { debian } => guest::print_kernel(debian),
        Chore::Qemu(options) => qemu::run(&options),
        Chore::Image { dev } => guest::image_only(dev),
        Chore::Bench(options) => bench::run(&options),
        Chore::Prepush => prepush::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("xtask: {err:#}");
            ExitCode::FAILURE
        }
    }
}
