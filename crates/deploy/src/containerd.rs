//! containerd's configuration: the runtime `kata` of its CRI plugin.
//!
//! Facts (containerd's docs/cri/config.md and man/containerd-config.toml.5; measured with 1.6.20 and 2.1.9):
//! - Version 2 (1.3 to 2.x) names the plugin `io.containerd.grpc.v1.cri`; version 3 (2.0 on)
//!   `io.containerd.cri.v1.runtime`. 2.x takes both.
//! - A file that `imports` names replaces, in 1.x, a plugin's whole section. So no drop-in of ours would be safe, and the
//!   file to edit is the last one that has the section.
//! - `runtime_path` is what 1.7 and later look at; 1.6 takes the key, and then looks into its PATH (its issue 8207). What all
//!   know, since 1.6, is an absolute path as `runtime_type`.
//! - 1.x forgets its built-in runtime `runc` as soon as the file names any runtime; 2.x does not.

use std::path::{Path, PathBuf};

use toml_edit::{Array, DocumentMut, Item, Table, value};

use crate::error::DeployError;
use crate::files;
use crate::host::Host;
use crate::toml_table::{self, get};

/// Where it is looked for.
pub const DEFAULT: &str = "/etc/containerd/config.toml";
/// What a drop-in of CRI-O and a table of containerd call our runtime.
pub const HANDLER: &str = "kata";
/// What containerd calls our runtime; the last parts are its program's name.
const RUNTIME_TYPE: &str = "io.containerd.kata.v2";
/// All names of the CRI plugin under which it can be turned off.
const CRI: [&str; 3] = ["cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"];

/// The plugin's name in a configuration of this version.
fn plugin(version: i64) -> Option<&'static str> {
    match version {
        2 => Some("io.containerd.grpc.v1.cri"),
        3 => Some("io.containerd.cri.v1.runtime"),
        _ => None,
    }
}

/// What is to become of a file.
#[derive(Debug)]
pub struct Edited {
    /// The new content.
    pub text: String,
    /// The keys that lead to our table.
    pub table: Vec<String>,
    /// The keys that lead to the table of runc, if it had to be made explicit.
    pub made_explicit: Option<Vec<String>>,
    /// Somebody else's table that was in the place of ours.
    pub replaced: Option<String>,
}

/// The file that holds, and therefore decides, the CRI plugin's runtimes: `main`, or the last that it imports and that
/// has the plugin's section. As the node calls it.
///
/// # Errors
/// A file that cannot be read or is no TOML.
pub fn deciding_file(host: &Host, main: &Path) -> Result<PathBuf, DeployError> {
    let mut deciding = main.to_owned();
    let Some(text) = files::read(&host.at(main)?)? else { return Ok(deciding) };
    let doc = toml_table::parse(main, &text)?;
    for pattern in doc.get("imports").and_then(Item::as_array).into_iter().flatten().filter_map(|v| v.as_str()) {
        // Relative ones are beside the file that names them.
        let pattern = main.parent().unwrap_or(Path::new("/")).join(pattern);
        for path in matching(host, &pattern)? {
            let Some(text) = files::read(&host.at(&path)?)? else { continue };
            let doc = toml_table::parse(&path, &text)?;
            if [2, 3].into_iter().filter_map(plugin).any(|name| get(&doc, &["plugins", name]).is_some()) {
                deciding = path;
            }
        }
    }
    Ok(deciding)
}

/// Go's filepath.Glob, where only the last part has stars, as in every `imports` that is in use; sorted.
fn matching(host: &Host, pattern: &Path) -> Result<Vec<PathBuf>, DeployError> {
    let name = pattern.file_name().unwrap_or_default().to_string_lossy();
    let Some((start, end)) = name.split_once('*') else { return Ok(vec![pattern.to_owned()]) };
    let dir = pattern.parent().unwrap_or(Path::new("/"));
    let entries = std::fs::read_dir(host.at(dir)?).into_iter().flatten().flatten();
    let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
    let mut found: Vec<PathBuf> = names
        .filter(|n| n.len() >= start.len() + end.len() && n.starts_with(start) && n.ends_with(end))
        .map(|n| dir.join(n))
        .collect();
    found.sort();
    Ok(found)
}

/// The configuration with our runtime in it. `text`: what is there; `path` names it in errors; `shim`: its program, as
/// the node calls it. A table `kata` that is there is taken out and returned.
///
/// # Errors
/// A configuration that cannot take it.
pub fn edit(path: &Path, text: Option<&str>, shim: &Path) -> Result<Edited, DeployError> {
    let mut doc = toml_table::parse(path, text.unwrap_or_default())?;
    if let Some(plugin) = disabled(&doc) {
        return Err(DeployError::CriDisabled { path: path.to_owned(), plugin });
    }
    let version = match doc.get("version").map(|v| v.as_integer().unwrap_or_default()) {
        Some(version) => version,
        // What says nothing is of version 1, but for what says nothing at all.
        None if !doc.iter().any(|_| true) => {
            doc.insert("version", value(2));
            2
        }
        None => 1,
    };
    let Some(plugin) = plugin(version) else {
        return Err(DeployError::Version { path: path.to_owned(), version });
    };
    let runtimes = ["plugins", plugin, "containerd", "runtimes"];
    let below = |name: &'static str| -> Vec<&str> { runtimes.into_iter().chain([name]).collect() };
    let owned = |keys: Vec<&str>| keys.into_iter().map(str::to_owned).collect::<Vec<_>>();
    let mut made_explicit = None;
    let others = get(&doc, &runtimes).and_then(Item::as_table_like).is_some_and(|t| !t.is_empty());
    if version == 2 && !others {
        let mut runc = Table::new();
        runc.insert("runtime_type", value("io.containerd.runc.v2"));
        toml_table::put(&mut doc, path, &below("runc"), runc)?;
        made_explicit = Some(owned(below("runc")));
    }
    let replaced = toml_table::take(&mut doc, &below(HANDLER)).map(|item| toml_table::to_text(&item));
    toml_table::put(&mut doc, path, &below(HANDLER), table(version, shim))?;
    Ok(Edited { text: doc.to_string(), table: owned(below(HANDLER)), made_explicit, replaced })
}

fn disabled(doc: &DocumentMut) -> Option<String> {
    let list = doc.get("disabled_plugins")?.as_array()?;
    list.iter().filter_map(|v| v.as_str()).find(|name| CRI.contains(name)).map(str::to_owned)
}

fn table(version: i64, shim: &Path) -> Table {
    let mut table = Table::new();
    let shim = shim.to_string_lossy().into_owned();
    if version == 2 {
        table.insert("runtime_type", value(shim));
    } else {
        table.insert("runtime_type", value(RUNTIME_TYPE));
        table.insert("runtime_path", value(shim));
    }
    // A privileged container gets the guest's devices, not the host's.
    table.insert("privileged_without_host_devices", value(true));
    table.insert("pod_annotations", value(Array::from_iter(["io.katacontainers.*"])));
    table
}
