//! Guest memory for the accelerator probe.

use std::io;
use std::os::fd::AsRawFd;

/// The argument of `KVM_SET_USER_MEMORY_REGION` (linux/kvm.h).
#[repr(C)]
struct Region {
    slot: u32,
    flags: u32,
    guest_phys_addr: u64,
    memory_size: u64,
    userspace_addr: u64,
}

/// `_IOW(0xAE, 0x46, struct kvm_userspace_memory_region)`; the struct has 32 bytes.
const KVM_SET_USER_MEMORY_REGION: libc::c_ulong = 0x4020_ae46;

/// Gives a VM `image` as its memory from guest-physical 0 on, in slot 0. The memory is never given back: this is for a
/// process that probes and exits.
///
/// # Errors
/// `mmap(2)`'s and the ioctl's; `EINVAL` if the image is not whole pages of 4 KiB.
pub fn give_memory(vm: &impl AsRawFd, image: &[u8]) -> io::Result<()> {
    if image.is_empty() || !image.len().is_multiple_of(4096) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
    let addr = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            image.len(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if addr == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping is ours, of this length, and overlaps nothing.
    unsafe { std::ptr::copy_nonoverlapping(image.as_ptr(), addr.cast::<u8>(), image.len()) };
    let region =
        Region { slot: 0, flags: 0, guest_phys_addr: 0, memory_size: image.len() as u64, userspace_addr: addr as u64 };
    // SAFETY: the region describes a live mapping that is never unmapped and that no Rust reference points to, so the
    // guest may write to it at any time.
    let r = unsafe { libc::ioctl(vm.as_raw_fd(), KVM_SET_USER_MEMORY_REGION as _, &raw const region) };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
