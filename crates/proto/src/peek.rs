//! Looking into a message without decoding it.

use protobuf::CodedInputStream;

/// Fields 1 and 2 of any message, where they are strings; empty where there are none. The agent's calls and containerd's
/// name there what they are about.
///
/// # Errors
/// What is no message.
pub fn first_strings(message: &[u8]) -> protobuf::Result<[String; 2]> {
    let mut input = CodedInputStream::from_bytes(message);
    let mut found = [String::new(), String::new()];
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        match tag {
            // Wire type 2.
            0x0a => found[0] = input.read_string()?,
            0x12 => found[1] = input.read_string()?,
            _ => protobuf::rt::skip_field_for_tag(tag, &mut input)?,
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use protobuf::Message;

    use super::*;
    use crate::agent as pb;

    #[test]
    fn the_first_two_strings_are_found_among_other_fields() {
        let exec = pb::ExecProcessRequest { container_id: "c".into(), exec_id: "e".into(), ..Default::default() };
        assert_eq!(first_strings(&exec.write_to_bytes().unwrap()).unwrap(), ["c", "e"]);
        let remove = pb::RemoveContainerRequest { container_id: "c".into(), timeout: 7, ..Default::default() };
        assert_eq!(first_strings(&remove.write_to_bytes().unwrap()).unwrap(), ["c", ""]);
        assert!(first_strings(b"\xff\xff rubbish").is_err());
    }
}
