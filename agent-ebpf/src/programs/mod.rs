//! The programs, one file a hook family, and what they all stand on: the settings and the counters.
//!
//! In: [`SETTINGS`], written by the agent before the object is loaded. Out: programs in their ELF sections, maps by
//! name. What always holds: kernel memory is read by `bpf_probe_read_kernel` only, which fails instead of faulting;
//! nothing runs per packet except when a packet is dropped. Not here: decisions about flows; programs only copy and count.

mod conntrack;
mod drop;
mod hashes;
mod identify;
mod nf_conn;
mod process;
mod records;
mod sockets;
mod sweep;
mod tcp;

use aya_ebpf::{
    Global,
    btf_maps::Array,
    helpers::{bpf_get_smp_processor_id, bpf_probe_read_kernel},
    macros::btf_map,
};
use flowlogd_ebpf::{ABSENT, Control, STATS_SLOTS, Settings, Stat, slot};

#[unsafe(no_mangle)]
pub static SETTINGS: Global<Settings> = Global::new(Settings {
    ct_read: 0,
    ct_use: 0,
    ct_zone: 0,
    ct_original: 0,
    ct_reply: 0,
    ct_status: 0,
    ct_net: 0,
    ct_ext: 0,
    ct_tcp_state: 0,
    ext_acct: 0,
    skb_nfct: 0,
    skb_dev: 0,
    skb_sk: 0,
    skb_head: 0,
    skb_network_header: 0,
    skb_tail: 0,
    skb_len: 0,
    skb_data: 0,
    skb_protocol: 0,
    dev_net: 0,
    sock_net: 0,
    task_nsproxy: 0,
    nsproxy_net: 0,
    net_inum: 0,
    shards: 0,
    has_reason: 0,
    hook_start: 0,
    hook_end: 0,
    filter_reasons: [0; 5],
    wake_bytes: 0,
});

/// Reads one field of [`SETTINGS`] by itself: one 64-bit load from a frozen map is a constant to the verifier, a
/// copy of the whole structure is not.
macro_rules! setting {
    ($($field:tt)+) => {
        $crate::programs::load_setting(core::mem::offset_of!(flowlogd_ebpf::Settings, $($field)+))
    };
}
pub(crate) use setting;

/// The 64-bit word at a byte offset inside [`SETTINGS`].
#[inline(always)]
pub fn load_setting(offset: usize) -> u64 {
    let settings: *const u8 = (&raw const SETTINGS).cast();
    // SAFETY: `Global<T>` is `repr(transparent)` over T and always initialised; `setting!` gives the offset of a field,
    // each a u64 (or the start of an array of them).
    unsafe { core::ptr::read_volatile(settings.add(offset).cast::<u64>()) }
}

const MMAPABLE: usize = aya_ebpf::bindings::BPF_F_MMAPABLE as usize;

/// Counts that each CPU adds to alone. The loader makes room for all CPUs.
pub type CpuCounts<const SLOTS: usize> = Array<u64, SLOTS, MMAPABLE>;

#[btf_map]
pub static STATS: CpuCounts<{ STATS_SLOTS as usize }> = Array::new();

#[btf_map]
pub static CONTROL: Array<Control, 1> = Array::new();

/// Adds to a count of this CPU.
#[inline(always)]
pub fn add_to<const SLOTS: usize>(counts: &CpuCounts<SLOTS>, index: u32, n: u64) {
    // SAFETY: the helper has no preconditions.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    if let Some(value) = counts.get_ptr_mut(slot(cpu, SLOTS as u32, index)) {
        // SAFETY: a slot of an array lives as long as the map, and only programs on this CPU write it. Two programs that
        // interrupt each other may lose an increment of a count; none that stands for a flow's bytes nests (kprobe
        // programs do not nest, and the drop program's counts of bytes are its own).
        unsafe { value.write_volatile(value.read_volatile().wrapping_add(n)) };
    }
}

#[inline(always)]
pub fn add(stat: Stat, n: u64) {
    add_to(&STATS, stat as u32, n);
}

#[inline(always)]
pub fn count(stat: Stat) {
    add(stat, 1);
}

/// Reads a `T` at `address + offset` of kernel memory; `None` when it cannot be read.
#[inline(always)]
pub fn read<T: Copy>(address: u64, offset: u64) -> Option<T> {
    if offset == ABSENT {
        return None;
    }
    // SAFETY: the helper checks the address and fails on memory that is not there; `T` is only ever an integer or an
    // array of them here, for which every bit pattern is valid.
    unsafe { bpf_probe_read_kernel(address.wrapping_add(offset) as *const T) }.ok()
}

/// The agent's own `struct net`; 0 until `identify` has run.
#[inline(always)]
pub fn own_netns() -> u64 {
    match CONTROL.get(0) {
        Some(control) => control.netns,
        None => 0,
    }
}

/// Nanoseconds since boot, suspended time included.
#[inline(always)]
fn boot_ns() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { aya_ebpf::helpers::bpf_ktime_get_boot_ns() }
}
