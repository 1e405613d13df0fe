//! Getting the ELF kernel out of a bzImage, so that the guest does not spend its boot decompressing.

use std::io::Write;
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};

use crate::run;

/// The magic of the boot protocol's header, at [`HEADER`].
const MAGIC: &[u8] = b"HdrS";
/// Offsets of the x86 boot protocol (Documentation/arch/x86/boot.rst).
const SETUP_SECTS: usize = 0x1f1;
const HEADER: usize = 0x202;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// The first version that tells where the payload is.
const FIRST_WITH_PAYLOAD: u16 = 0x0208;

/// The compressed kernel within a bzImage.
///
/// # Errors
/// Not a bzImage, too old a boot protocol, or offsets beyond its end.
pub fn payload(image: &[u8]) -> Result<&[u8]> {
    let bytes = |at: usize, n: usize| image.get(at..at + n).context("the file is too short for a bzImage");
    ensure!(bytes(HEADER, 4)? == MAGIC, "not a bzImage: no HdrS at {HEADER:#x}");
    let word = |at: usize| -> Result<usize> { Ok(u32::from_le_bytes(bytes(at, 4)?.try_into()?) as usize) };
    let version = u16::from_le_bytes(bytes(VERSION, 2)?.try_into()?);
    ensure!(version >= FIRST_WITH_PAYLOAD, "boot protocol {version:#x} does not tell where the payload is");
    // 0 stands for 4, for the sake of very old loaders.
    let setup = match bytes(SETUP_SECTS, 1)?[0] {
        0 => 4,
        n => usize::from(n),
    };
    let start = (setup + 1) * 512 + word(PAYLOAD_OFFSET)?;
    let end = start + word(PAYLOAD_LENGTH)?;
    image.get(start..end).with_context(|| format!("the payload {start}..{end} lies beyond the end of the bzImage"))
}

/// The ELF `vmlinux` in a bzImage.
///
/// # Errors
/// As [`payload`]; a compression that is not known; no decompressor; a result that is not ELF.
pub fn vmlinux(image: &[u8]) -> Result<Vec<u8>> {
    let payload = payload(image)?;
    // All but gzip, which has it in its own trailer, are followed by four bytes with the unpacked size.
    let body = &payload[..payload.len().saturating_sub(4)];
    let unpacked = match payload {
        [0x7f, b'E', b'L', b'F', ..] => payload.to_vec(),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => through("xz", &["-dc"], body)?,
        [0x1f, 0x8b, ..] => through("gzip", &["-dc"], payload)?,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => through("zstd", &["-dc"], body)?,
        [0x02, 0x21, 0x4c, 0x18, ..] => through("lz4", &["-dc"], body)?,
        _ => bail!(
            "the kernel is compressed in a way not known here (it begins {:02x?})",
            &payload[..4.min(payload.len())]
        ),
    };
    ensure!(unpacked.starts_with(b"\x7fELF"), "what the bzImage holds is not an ELF file");
    Ok(unpacked)
}

/// Sends `input` through a filter program.
///
/// # Errors
/// The program is not there, or fails.
pub fn through(program: &str, args: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    let mut command = run::cmd(program, args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {program}"))?;
    let mut stdin = child.stdin.take().context("a piped stdin")?;
    let output = std::thread::scope(|scope| {
        // A failed write means that the program gave up; its status says so.
        scope.spawn(move || drop(stdin.write_all(input)));
        child.wait_with_output()
    })?;
    ensure!(output.status.success(), "{program} failed: {}", output.status);
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0u8; 3 * 512];
        image[SETUP_SECTS] = 1;
        image[HEADER..HEADER + 4].copy_from_slice(MAGIC);
        image[VERSION..VERSION + 2].copy_from_slice(&FIRST_WITH_PAYLOAD.to_le_bytes());
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16u32.to_le_bytes());
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.truncate(2 * 512 + 16);
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn the_kernel_is_found_and_unpacked() {
        let elf = b"\x7fELF and more";
        assert_eq!(vmlinux(&image(elf)).unwrap(), elf);
        let packed = through("gzip", &["-c"], elf).unwrap();
        assert_eq!(vmlinux(&image(&packed)).unwrap(), elf);
    }

    #[test]
    fn what_is_no_bzimage_is_refused() {
        assert!(vmlinux(b"short").is_err());
        assert!(vmlinux(&[0; 4096]).is_err());
        assert!(vmlinux(&image(b"what is this")).is_err());
        let mut beyond = image(b"\x7fELF");
        beyond[PAYLOAD_OFFSET + 2] = 0xff;
        assert!(vmlinux(&beyond).is_err());
    }
}
