//! `factory init`, `status`, `destroy`: upstream's words.

use std::path::Path;

use kata_factory::control;

use crate::args::Factory;
use crate::error::CliError;

/// `factory`.
pub async fn factory(file: Option<&Path>, verb: Factory) -> Result<u8, CliError> {
    match verb {
        Factory::Init => {
            control::init(file).await?;
            println!("vm factory initialized");
        }
        Factory::Status { json } => show(&control::status(file)?, json)?,
        Factory::Destroy => {
            control::destroy(file)?;
            println!("vm factory destroyed");
        }
    }
    Ok(0)
}

fn show(status: &control::Status, json: bool) -> Result<(), CliError> {
    if json {
        let text = serde_json::to_string_pretty(status).map_err(|e| CliError::Daemon(e.to_string()))?;
        println!("{text}");
        return Ok(());
    }
    println!("next sandbox: {}", status.next);
    let of_now = |current| if current { "of the present configuration" } else { "of another configuration" };
    for t in &status.templates {
        println!("template {}  {}  {}", &t.shape[..t.shape.len().min(16)], t.mib, of_now(t.current));
    }
    for p in &status.pools {
        let keeper = p.keeper.map_or("no keeper".to_owned(), |pid| format!("keeper {pid}"));
        println!("pool {}  {} waiting  {keeper}  {}", p.key, p.waiting, of_now(p.current));
    }
    Ok(())
}
