//! Checks of what the user named, before anything is started.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use kata_types::Mib;
use kata_vmm::{Begin, LaunchError, MemorySharing, Unsupported, VmSpec};

/// With less, a guest does not get as far as its init.
const MIN_MEMORY: Mib = Mib(64);

/// Checks the specification; the error names the thing and what to do.
pub(crate) fn check(spec: &VmSpec, other_user: bool) -> Result<(), LaunchError> {
    sizes(spec)?;
    file(
        "the QEMU binary",
        &spec.binary,
        "install qemu-system or set `path` under [hypervisor.qemu]",
        other_user,
        true,
    )?;
    let kernel_hint = "build one with `cargo xtask kernel` or set `kernel` under [hypervisor.qemu]";
    let kernel = file("the guest kernel", &spec.boot.kernel, kernel_hint, other_user, false)?;
    if cfg!(target_arch = "x86_64") {
        kernel_format(kernel).map_err(|reason| {
            input("the guest kernel", &spec.boot.kernel, reason, "give an ELF vmlinux with PVH entry, or a bzImage")
        })?;
    }
    let initrd_hint = "build one with `cargo xtask image` or set `initrd` under [hypervisor.qemu]";
    file("the guest image", &spec.boot.initrd, initrd_hint, other_user, false)?;
    if let Some(param) = spec.boot.params.iter().find(|p| p.chars().any(char::is_control)) {
        return Err(LaunchError::Size(format!("the kernel parameter {param:?} holds a control character")));
    }
    Ok(())
}

fn sizes(spec: &VmSpec) -> Result<(), LaunchError> {
    if let Begin::Restore(from) = &spec.begin
        && from.sharing == MemorySharing::CopyOnWrite
        && spec.free_page_reporting
    {
        let operation = "report free pages of memory that is copy-on-write".to_owned();
        return Err(Unsupported { operation, by: crate::NAME.to_owned() }.into());
    }
    let wrong = |text: String| Err(LaunchError::Size(text));
    if spec.memory < MIN_MEMORY {
        return wrong(format!("{} of memory are too little for a guest; give {MIN_MEMORY} or more", spec.memory));
    }
    if spec.max_memory < spec.memory {
        return wrong(format!("the maximum of memory, {}, is below the {} at boot", spec.max_memory, spec.memory));
    }
    if spec.vcpus == 0 || spec.max_vcpus < spec.vcpus {
        return wrong(format!("{} vCPUs at boot and {} at most cannot be", spec.vcpus, spec.max_vcpus));
    }
    Ok(())
}

fn input(what: &'static str, path: &Path, reason: impl Into<String>, hint: &str) -> LaunchError {
    LaunchError::Input { what, path: path.to_owned(), reason: reason.into(), hint: hint.to_owned() }
}

/// Opens a file that QEMU will read. It is shown to QEMU itself, so the directories above it need not be accessible
/// to QEMU's user, but the file must be.
fn file(what: &'static str, path: &Path, hint: &str, other_user: bool, program: bool) -> Result<File, LaunchError> {
    let opened = File::open(path).and_then(|f| f.metadata().map(|m| (f, m)));
    let (file, meta) = opened.map_err(|e| input(what, path, reason(&e), hint))?;
    if !meta.is_file() {
        return Err(input(what, path, "is not a file", hint));
    }
    let mode = meta.permissions().mode();
    if program && mode & 0o111 == 0 {
        return Err(input(what, path, "is not executable", hint));
    }
    let need = if program { 0o005 } else { 0o004 };
    if other_user && mode & need != need {
        let hint = format!(
            "QEMU runs under a user of its own: `chmod o+r{} {}`",
            if program { "x" } else { "" },
            path.display()
        );
        return Err(input(what, path, "is not readable for others than its owner", &hint));
    }
    if !program && meta.len() == 0 {
        return Err(input(what, path, "is empty", hint));
    }
    // What the path means now is what is bound into QEMU's root; it must be absolute for that.
    fs::canonicalize(path).map_err(|e| input(what, path, reason(&e), hint))?;
    Ok(file)
}

fn reason(e: &io::Error) -> String {
    match e.kind() {
        io::ErrorKind::NotFound => "does not exist".to_owned(),
        io::ErrorKind::PermissionDenied => "is not readable".to_owned(),
        _ => e.to_string(),
    }
}

/// An ELF file, or the Linux/x86 boot protocol's magic (Documentation/arch/x86/boot.rst).
fn kernel_format(mut kernel: File) -> Result<(), String> {
    let mut magic = [0; 4];
    let mut at =
        |offset| kernel.seek(SeekFrom::Start(offset)).and_then(|_| kernel.read_exact(&mut magic)).ok().map(|()| magic);
    if at(0) == Some(*b"\x7fELF") || at(0x202) == Some(*b"HdrS") {
        return Ok(());
    }
    Err("is no kernel that QEMU boots".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kata_types::SandboxId;
    use kata_vmm::Boot;
    use std::path::PathBuf;

    fn spec(dir: &Path) -> VmSpec {
        let mut kernel = vec![0; 0x400];
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        fs::write(dir.join("kernel"), kernel).unwrap();
        fs::write(dir.join("initrd"), "x").unwrap();
        for name in ["kernel", "initrd"] {
            fs::set_permissions(dir.join(name), PermissionsExt::from_mode(0o644)).unwrap();
        }
        VmSpec {
            sandbox: SandboxId::new("s").unwrap(),
            run_dir: dir.to_owned(),
            binary: PathBuf::from("/bin/sh"),
            boot: Boot { kernel: dir.join("kernel"), initrd: dir.join("initrd"), params: vec![] },
            memory: Mib(128),
            max_memory: Mib(256),
            vcpus: 1,
            max_vcpus: 2,
            debug: false,
            cgroups: vec![],
            free_page_reporting: true,
            begin: kata_vmm::Begin::Boot,
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        check(&spec(dir.path()), true).unwrap();
        let fails = |change: &dyn Fn(&mut VmSpec), words: &[&str]| {
            let mut bad = spec(dir.path());
            change(&mut bad);
            let e = check(&bad, true).unwrap_err().to_string();
            for word in words {
                assert!(e.contains(word), "{word} in {e}");
            }
            assert!(!e.contains('\n'), "{e}");
        };
        fails(&|s| s.binary = "/no/qemu".into(), &["the QEMU binary /no/qemu", "does not exist", "install"]);
        fails(&|s| s.binary = dir.path().join("initrd"), &["is not executable"]);
        fails(&|s| s.boot.kernel = "/no/kernel".into(), &["the guest kernel /no/kernel", "does not exist", "xtask"]);
        fails(&|s| s.boot.kernel = dir.path().to_owned(), &["is not a file"]);
        fails(&|s| s.boot.kernel = dir.path().join("initrd"), &["no kernel", "vmlinux"]);
        fails(&|s| s.boot.initrd = "/no/initrd".into(), &["the guest image /no/initrd", "xtask"]);
        fails(&|s| s.memory = Mib(8), &["8 MiB", "64 MiB"]);
        fails(&|s| s.max_memory = Mib(127), &["127 MiB", "128 MiB"]);
        fails(&|s| s.vcpus = 0, &["0 vCPUs"]);
        fails(&|s| s.max_vcpus = 0, &["vCPUs"]);
        fails(&|s| s.boot.params = vec!["a\nb".to_owned()], &["control character"]);
        let kernel = dir.path().join("kernel");
        let e = {
            let s = spec(dir.path());
            fs::set_permissions(&kernel, PermissionsExt::from_mode(0o600)).unwrap();
            check(&s, true).unwrap_err().to_string()
        };
        assert!(e.contains("chmod o+r") && e.contains("readable"), "{e}");
    }
}
