//! CRI-O's configuration: a drop-in file with the runtime `kata`.
//!
//! CRI-O reads /etc/crio/crio.conf, then every file of /etc/crio/crio.conf.d in the order of their names; a later table
//! takes an earlier one's place (crio.conf.d(5)).

use std::path::{Path, PathBuf};

use toml_edit::{DocumentMut, Table, value};

use crate::args::CrioType;
use crate::containerd::HANDLER;
use crate::error::DeployError;
use crate::files;
use crate::host::Host;
use crate::toml_table::{self, get};

/// Its main file.
const MAIN: &str = "/etc/crio/crio.conf";
/// Its drop-ins.
const DROP_INS: &str = "/etc/crio/crio.conf.d";
/// Ours: after upstream's `99-kata-deploy`, so that it wins.
const NAME: &str = "99-kata.conf";
/// The keys that lead to our table.
pub const TABLE: [&str; 4] = ["crio", "runtime", "runtimes", HANDLER];

/// Our drop-in, as the node calls it.
pub fn drop_in() -> PathBuf {
    Path::new(DROP_INS).join(NAME)
}

/// The program that CRI-O is to run.
pub fn program(kind: CrioType) -> &'static str {
    match kind {
        CrioType::Vm => "containerd-shim-kata-v2",
        CrioType::Oci => "kata-runtime",
    }
}

/// Its content. `bin`: where our programs are, as the node calls it.
///
/// # Errors
/// None that could happen: the document is ours.
pub fn content(bin: &Path, kind: CrioType) -> Result<String, DeployError> {
    let mut table = Table::new();
    let (root, name) = match kind {
        // Here CRI-O keeps fifos there; not in the command line's root, where each directory is a container.
        CrioType::Vm => ("/run/vc", "vm"),
        CrioType::Oci => ("/run/kata-containers", "oci"),
    };
    table.insert("runtime_path", value(bin.join(program(kind)).to_string_lossy().into_owned()));
    table.insert("runtime_type", value(name));
    table.insert("runtime_root", value(root));
    // A privileged container gets the guest's devices, not the host's.
    table.insert("privileged_without_host_devices", value(true));
    let mut doc = DocumentMut::new();
    toml_table::put(&mut doc, &drop_in(), &TABLE, table)?;
    Ok(doc.to_string())
}

/// The file of somebody else that decides what CRI-O's runtime `kata` is, if one does.
///
/// # Errors
/// A file that cannot be read or is no TOML.
pub fn taken_by(host: &Host) -> Result<Option<PathBuf>, DeployError> {
    let mut found = None;
    let entries = std::fs::read_dir(host.at(Path::new(DROP_INS))?).into_iter().flatten().flatten();
    let mut drop_ins: Vec<PathBuf> = entries.map(|e| Path::new(DROP_INS).join(e.file_name())).collect();
    drop_ins.sort();
    for path in [PathBuf::from(MAIN)].into_iter().chain(drop_ins).filter(|p| *p != drop_in()) {
        let Some(text) = files::read(&host.at(&path)?)? else { continue };
        if get(&toml_table::parse(&path, &text)?, &TABLE).is_some() {
            found = Some(path);
        }
    }
    Ok(found)
}
