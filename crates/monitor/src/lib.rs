//! `kata-monitor`: one HTTP endpoint a host, at which Prometheus finds the metrics of all its sandboxes. It needs no CRI
//! socket: it finds the sandboxes by their directories, and the names of pods in what their containers were made with.

mod args;
mod labels;
mod own;
mod scrape;
mod service;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use kata_http::Bounds;
use tokio::net::TcpListener;

use args::Args;
use service::Monitor;

/// Runs until it is killed. `args`: without the program's name.
pub fn main(args: Vec<OsString>) -> ExitCode {
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("kata-monitor: {text}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Vec<OsString>) -> Result<(), String> {
    let args = Args::parse(args)?;
    if args.help {
        print!("{}", args::USAGE);
        return Ok(());
    }
    if args.version {
        println!("kata-monitor {}", env!("CARGO_PKG_VERSION"));
        return Ok(());
    }
    tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).with_max_level(args.level).init();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("no event loop: {e}"))?;
    runtime.block_on(async {
        let listener = TcpListener::bind(&args.listen)
            .await
            .map_err(|e| format!("cannot listen at {}: {e}; give another --listen-address", args.listen))?;
        let address = listener.local_addr().map_err(|e| format!("{}: {e}", args.listen))?;
        tracing::info!("listening at http://{address}");
        let monitor = Monitor::new(Path::new(kata_types::HOST_RUN_DIR));
        kata_http::serve_tcp(listener, Arc::new(monitor), Bounds { body: 0, ..Bounds::default() }).await;
        Ok(())
    })
}
