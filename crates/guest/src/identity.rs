//! What tells one machine from another that began from the same template. It is made when the host has reseeded the
//! kernel's generator (`ReseedRandomDev`). The boot id is made by the kernel when somebody first asks for it: nothing of
//! ours may do so before a guest is saved.

use std::fs;

use crate::failure::Failure;

/// machine-id(5).
const MACHINE_ID: &str = "/etc/machine-id";
/// A fresh random UUID at each read (random(4)).
const UUID: &str = "/proc/sys/kernel/random/uuid";

/// Gives the guest a machine id of its own.
pub fn machine_id() -> Result<(), Failure> {
    let uuid = fs::read_to_string(UUID).map_err(|e| Failure::io(format_args!("cannot read {UUID}"), &e))?;
    let id = from_uuid(&uuid);
    log::info!("machine id {}", id.trim_end());
    fs::write(MACHINE_ID, id).map_err(|e| Failure::io(format_args!("cannot write {MACHINE_ID}"), &e))
}

fn from_uuid(uuid: &str) -> String {
    let mut id: String = uuid.chars().filter(char::is_ascii_hexdigit).collect();
    id.push('\n');
    id
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_machine_id_is_32_hex_digits() {
        let id = super::from_uuid("0b0f9c9e-4d5a-4e0b-8a57-2f7c1f8f4a11\n");
        assert_eq!(id, "0b0f9c9e4d5a4e0b8a572f7c1f8f4a11\n");
    }
}
