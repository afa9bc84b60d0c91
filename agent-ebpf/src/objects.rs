//! The built eBPF objects, tracked in `objects/` and written by `cargo xtask ebpf`.
//!
//! In: the two object files. Out: their bytes, aligned as an ELF reader needs them, and the one for this
//! architecture. What always holds: `cargo xtask ebpf --check` rebuilds them and compares byte for byte.
//! Not here: any reading of them.

#[repr(C, align(16))]
struct Aligned<T: ?Sized>(T);

static X86_64: &Aligned<[u8]> = &Aligned(*include_bytes!("../objects/flowlogd.x86_64.bpf.o"));
static AARCH64: &Aligned<[u8]> = &Aligned(*include_bytes!("../objects/flowlogd.aarch64.bpf.o"));

/// The object whose kprobes read arguments as x86_64 passes them.
pub static OBJECT_X86_64: &[u8] = &X86_64.0;
/// The object whose kprobes read arguments as aarch64 passes them.
pub static OBJECT_AARCH64: &[u8] = &AARCH64.0;

/// The object for the architecture this crate was compiled for; `None` where there is none.
pub const fn object() -> Option<&'static [u8]> {
    if cfg!(target_arch = "x86_64") {
        Some(OBJECT_X86_64)
    } else if cfg!(target_arch = "aarch64") {
        Some(OBJECT_AARCH64)
    } else {
        None
    }
}
