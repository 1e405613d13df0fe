//! The runtime's options, which containerd gives to `start` on stdin: an `Any` with a `runtimeoptions.v1.Options`, whose
//! field 2 is the path of a configuration. CRI's `ConfigPath` and ctr's `--runtime-config-path` become that.

use std::io::Read;
use std::path::PathBuf;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{self, CodedInputStream, Message};
use rustix::fs::{FileType, fstat};

/// What the message is called, whatever prefix comes before it.
const OPTIONS: &str = "runtimeoptions.v1.Options";
/// `config_path` in it, as a string (wire type 2).
const CONFIG_PATH: u32 = (2 << 3) | 2;
/// More than this is no path.
const MOST: u64 = 64 << 10;

/// The configuration that containerd's configuration names, if it names one.
pub fn config_path() -> Option<PathBuf> {
    let stdin = std::io::stdin();
    // containerd gives a pipe, or /dev/null. A terminal is somebody trying this by hand, and would be waited for.
    let is_pipe = fstat(&stdin).is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Fifo);
    let mut bytes = Vec::new();
    if !is_pipe || stdin.take(MOST).read_to_end(&mut bytes).is_err() {
        return None;
    }
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Option<PathBuf> {
    let any = Any::parse_from_bytes(bytes).ok()?;
    if !any.type_url.ends_with(OPTIONS) {
        return None;
    }
    path_in(&any.value).ok().flatten().filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn path_in(message: &[u8]) -> protobuf::Result<Option<String>> {
    let mut input = CodedInputStream::from_bytes(message);
    let mut found = None;
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        if tag == CONFIG_PATH {
            found = Some(input.read_string()?);
        } else {
            protobuf::rt::skip_field_for_tag(tag, &mut input)?;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(type_url: &str, value: &[u8]) -> Vec<u8> {
        let any = Any { type_url: type_url.into(), value: value.to_vec(), ..Any::default() };
        any.write_to_bytes().unwrap()
    }

    #[test]
    fn the_path_is_found_among_other_fields_and_nothing_else_is_taken_for_it() {
        let value = b"\x0a\x01x\x12\x04/a/b\x1a\x01y";
        assert_eq!(parse(&any("runtimeoptions.v1.Options", value)), Some("/a/b".into()));
        assert_eq!(parse(&any("containerd.runc.v1.Options", value)), None);
        assert_eq!(parse(&any("runtimeoptions.v1.Options", b"\x12\x7f/a")), None);
        assert_eq!(parse(&any("runtimeoptions.v1.Options", b"")), None);
        assert_eq!(parse(b"rubbish"), None);
        assert_eq!(parse(b""), None);
    }
}
