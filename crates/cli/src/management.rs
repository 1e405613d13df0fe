//! `metrics` and `iptables`: questions at a sandbox's management socket.

use std::io::Read;
use std::time::Duration;

use kata_http::{Request, Target, send};
use kata_sandbox::monitor_socket;

use crate::args::Iptables;
use crate::console::sandbox;
use crate::error::CliError;
use crate::store::Store;

const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// A page of metrics, or rules of a packet filter.
const MOST: usize = 4 << 20;

async fn ask(store: &Store, id: &str, request: Request) -> Result<String, CliError> {
    let target = Target::Unix(monitor_socket(&sandbox(store, id)?));
    let answer = send(&target, request, ANSWER_WITHIN, MOST).await.map_err(|e| CliError::Daemon(e.to_string()))?;
    if answer.status == 200 {
        return Ok(answer.body_text());
    }
    let told: Option<serde_json::Value> = serde_json::from_slice(&answer.body).ok();
    let error = told.as_ref().and_then(|v| v.get("error")?.as_str()).map_or_else(|| answer.body_text(), str::to_owned);
    Err(CliError::Daemon(error))
}

/// `metrics`.
pub async fn metrics(store: &Store, id: &str) -> Result<u8, CliError> {
    print!("{}", ask(store, id, Request::get("/metrics")).await?);
    Ok(0)
}

/// `iptables`.
pub async fn iptables(store: &Store, verb: Iptables) -> Result<u8, CliError> {
    let path = |v6: bool| if v6 { "/ip6tables" } else { "/iptables" };
    match verb {
        Iptables::Get { sandbox_id, v6 } => print!("{}", ask(store, &sandbox_id, Request::get(path(v6))).await?),
        Iptables::Set { sandbox_id, v6, file } => {
            let mut rules = Vec::new();
            let read = match &file {
                Some(file) if file.as_os_str() != "-" => std::fs::read(file).map(|bytes| rules = bytes),
                _ => std::io::stdin().read_to_end(&mut rules).map(drop),
            };
            let name = file.clone().unwrap_or_else(|| "-".into());
            read.map_err(crate::error::io("read", &name))?;
            print!("{}", ask(store, &sandbox_id, Request::with_body("PUT", path(v6), rules)).await?);
        }
    }
    Ok(0)
}
