//! Does this kernel have what containers need? On request (`agent.check_kernel`): unpacking its configuration costs time.

use std::fs;

use thiserror::Error;

/// One option a line; `#` begins a comment.
const REQUIRED: &str = include_str!("../../../../guest/kernel/required.txt");
const CONFIG: &str = "/proc/config.gz";
/// Longest configuration that is looked at; ordinary ones have 300 KB.
const MAX_CONFIG: usize = 4 << 20;

#[derive(Debug, Error)]
enum ConfigError {
    #[error("cannot read {CONFIG} (is CONFIG_IKCONFIG_PROC set?)")]
    Read(#[from] std::io::Error),
    #[error("{CONFIG} is not gzip")]
    Gzip,
    #[error("{CONFIG} cannot be unpacked: {0}")]
    Inflate(String),
}

/// Logs an error that names every missing option.
pub fn check() {
    match read_config() {
        Ok(config) => match missing(&config, REQUIRED).as_slice() {
            [] => log::info!("the kernel has every option that containers need"),
            names => log::error!("the kernel lacks {}", names.join(" ")),
        },
        Err(e) => log::error!("the kernel cannot be checked: {}", crate::failure::chain(&e)),
    }
}

fn required(list: &str) -> impl Iterator<Item = &str> {
    list.lines().map(|l| l.split('#').next().unwrap_or_default().trim()).filter(|l| !l.is_empty())
}

/// Options of `list` that are neither built in nor modules.
fn missing<'a>(config: &str, list: &'a str) -> Vec<&'a str> {
    let have: std::collections::HashSet<&str> =
        config.lines().filter_map(|l| l.strip_suffix("=y").or_else(|| l.strip_suffix("=m"))).collect();
    required(list).filter(|name| !have.contains(name)).collect()
}

fn read_config() -> Result<String, ConfigError> {
    let packed = fs::read(CONFIG)?;
    let deflated = gzip_body(&packed).ok_or(ConfigError::Gzip)?;
    let bytes = miniz_oxide::inflate::decompress_to_vec_with_limit(deflated, MAX_CONFIG)
        .map_err(|e| ConfigError::Inflate(e.to_string()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What follows the header of a gzip member (RFC 1952, section 2.3).
fn gzip_body(bytes: &[u8]) -> Option<&[u8]> {
    let (head, mut rest) = bytes.split_first_chunk::<10>()?;
    let [0x1f, 0x8b, 8, flags, ..] = *head else { return None };
    if flags & 4 != 0 {
        let (len, after) = rest.split_first_chunk::<2>()?;
        rest = after.get(usize::from(u16::from_le_bytes(*len))..)?;
    }
    // The original name, then a comment, each ended by a zero.
    for flag in [8, 16] {
        if flags & flag != 0 {
            let end = rest.iter().position(|b| *b == 0)?;
            rest = &rest[end + 1..];
        }
    }
    if flags & 2 != 0 {
        rest = rest.get(2..)?;
    }
    Some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_there_built_in_or_as_modules() {
        let config = "CONFIG_A=y\nCONFIG_B=m\n# CONFIG_C is not set\nCONFIG_D=\"y\"\n";
        let list = "# what\nCONFIG_A\nCONFIG_B # why\n\nCONFIG_C\nCONFIG_D\n";
        assert_eq!(missing(config, list), ["CONFIG_C", "CONFIG_D"]);
    }

    #[test]
    fn the_list_that_ships_is_a_list_of_options() {
        assert!(required(REQUIRED).count() > 5);
        for name in required(REQUIRED) {
            assert!(name.starts_with("CONFIG_"), "{name}");
        }
    }

    #[test]
    fn a_gzip_header_with_a_name_is_skipped() {
        let packed = [&[0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 3][..], b"name\0", b"body"].concat();
        assert_eq!(gzip_body(&packed), Some(&b"body"[..]));
        assert_eq!(gzip_body(b"PK"), None);
    }
}
