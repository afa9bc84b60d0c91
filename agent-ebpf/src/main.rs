//! The program root: what is loaded into the kernel. A host build is an empty main, so that the workspace builds with
//! the stable toolchain; `cargo xtask ebpf` builds the real thing for `bpfel-unknown-none`.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod programs;

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Programs are written without a panicking path; the verifier refuses an endless loop, so one that crept in
    // cannot be loaded.
    loop {}
}

/// The kernel's GPL-only calls (reading kernel memory) ask for it.
#[cfg(target_arch = "bpf")]
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
