//! `spec`: a config.json to start from.

use std::path::Path;

use crate::error::{CliError, io};

/// `spec`.
pub fn spec(bundle: &Path, rootless: bool) -> Result<u8, CliError> {
    if rootless {
        return Err(CliError::Usage("spec --rootless: rootless use is not there yet".into()));
    }
    let path = bundle.join("config.json");
    if path.exists() {
        return Err(CliError::Usage(format!("{} exists; remove it first", path.display())));
    }
    let text = serde_json::to_string_pretty(&kata_oci::example_spec()).map_err(|e| io("encode", &path)(e.into()))?;
    std::fs::write(&path, text + "\n").map_err(io("write", &path))?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_template_is_a_spec_that_we_take() {
        let dir = std::env::temp_dir().join(format!("kata-spec-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        super::spec(&dir, false).unwrap();
        let spec = kata_oci::load_spec(&dir).unwrap();
        assert_eq!(spec.process.unwrap().args, ["sh"]);
        assert!(super::spec(&dir, false).is_err(), "it overwrites nothing");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
