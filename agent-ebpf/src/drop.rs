//! Layouts of the drop counts: a bounded map by tuple and reason, and a table by reason alone.
//!
//! In and out: plain numbers. What always holds: a drop by a filter is in `DROPS` or in a `STATS` slot, in packets and
//! in bytes; a drop for another reason is counted in `REASONS` only. Not here: names of reasons (they are resolved from
//! the running kernel's BTF by the agent).

use crate::layout;

/// The key of `DROPS`. All bytes count: unused ones are zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DropKey {
    /// Source and destination of the packet where it was dropped, as it was on the wire; IPv4 in the first four bytes.
    pub src: [u8; 16],
    pub dst: [u8; 16],
    /// Network byte order; 0 where the protocol has none. `src_port` carries the ICMP identifier.
    pub src_port: u16,
    pub dst_port: u16,
    /// IP protocol of the innermost header that was reached.
    pub proto: u8,
    /// 4 or 6.
    pub version: u8,
    pub icmp_type: u8,
    pub icmp_code: u8,
    /// The kernel's number of the reason.
    pub reason: u32,
    /// 1: `original` is set.
    pub has_original: u32,
    /// The original tuple of the connection (before DNAT), when the packet travels in its original direction.
    pub original: crate::KernelTuple,
}
layout!(
    DropKey,
    size: 88,
    fields: [[u8; 16], [u8; 16], u16, u16, u8, u8, u8, u8, u32, u32, crate::KernelTuple]
);

/// The value of `DROPS`; packets and bytes only grow until user space takes the whole map away.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DropCount {
    pub packets: u64,
    /// IP total length.
    pub bytes: u64,
    /// When the first of these packets was dropped, nanoseconds since boot: whose address it was then is told.
    pub first_ns: u64,
}
layout!(DropCount, size: 24, fields: [u64, u64, u64]);

/// Slots of `REASONS` for one CPU: packets by reason. Laid out as `STATS` is.
pub const REASON_SLOTS: u32 = 512;
/// Reasons below this have the slot of their number; a reason of subsystem `n` (bits 16 and up) has slot base + n.
pub const REASON_SUBSYSTEM_BASE: u32 = 448;
/// The number that stands for a drop by netfilter where the kernel has no reasons; all others are 0 there.
pub const OLD_FILTER_REASON: u32 = 1;
