//! Layouts of connection tracking: the map entry of a live connection, the record that is sent for it, and the
//! control block between the two sides.
//!
//! In and out: plain numbers. What always holds: a tuple is `struct nf_conntrack_tuple` byte for byte (the user side
//! checks the running kernel's BTF against [`KernelTuple`]'s accessors before it loads anything), so the programs
//! copy and compare five words and decode nothing. Not here: names, addresses as types (the agent's `ring.rs`).

use crate::layout;

/// `struct nf_conntrack_tuple`, verbatim, as five words: source address (16), source port or ICMP identifier (2, network
/// order), address family (2), destination address (16), destination port or ICMP type and code (2), protocol (1),
/// direction (1). The kernel zeroes what a family or protocol does not use.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct KernelTuple {
    pub words: [u64; 5],
}
layout!(KernelTuple, size: 40, fields: [[u64; 5]]);

impl KernelTuple {
    /// Byte offsets inside the tuple, which BTF must confirm: source address, source port, family, destination
    /// address, destination port, protocol.
    pub const OFFSETS: [u32; 6] = [0, 16, 18, 20, 36, 38];

    pub fn bytes(self) -> [u8; 40] {
        let mut out = [0; 40];
        for (chunk, word) in out.chunks_exact_mut(8).zip(self.words) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        out
    }

    pub fn from_bytes(bytes: [u8; 40]) -> Self {
        let mut words = [0; 5];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            let mut raw = [0; 8];
            raw.copy_from_slice(chunk);
            *word = u64::from_ne_bytes(raw);
        }
        Self { words }
    }
}

/// The value of `CONNECTIONS`, keyed by the address of `struct nf_conn`. Kept small: it is preallocated for every
/// connection the node may have. Counters and the reply tuple stand in the `nf_conn` itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Connection {
    /// When it was confirmed (boot time, ns); for an adopted one when it was adopted.
    pub start_ns: u64,
    /// Equal to `start_ns` once a sweep has reported it. A copy of the start, not a flag: an entry of a
    /// preallocated map may be reused under a running sweep, and a late write must not mark its successor.
    pub announced_ns: u64,
    /// When a sweep first saw it without references (0: never): its end was missed unless it goes away at once.
    pub suspect_ns: u64,
    pub original: KernelTuple,
    pub zone: u16,
    /// 1: it existed before the agent.
    pub adopted: u16,
    pub spare: u32,
}
layout!(Connection, size: 72, fields: [u64, u64, u64, KernelTuple, u16, u16, u32]);

/// What a record tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// A live connection, from a sweep.
    Live = 1,
    /// Its memory is about to be freed: final counters.
    End = 2,
    /// The memory of a connection was reused or freed unseen: only `original` and `start_ns` are meant, counters are 0.
    Stale = 3,
    /// A live connection that is not in the map (the map was full), seen while user space dumps.
    Outside = 4,
}

/// Bits of [`ConnectionRecord::flags`].
#[derive(Clone, Copy, Debug)]
pub struct RecordFlags;

impl RecordFlags {
    /// It had an entry in the map; otherwise `start_ns` is 0.
    pub const IN_MAP: u32 = 1;
    /// A sweep has reported it before.
    pub const ANNOUNCED: u32 = 1 << 1;
    /// It existed before the agent.
    pub const ADOPTED: u32 = 1 << 2;
    /// IPS_CONFIRMED was set: it was in the connection table.
    pub const CONFIRMED: u32 = 1 << 3;
    /// IPS_NAT_CLASH was set: the reply-only twin of another entry with the same original tuple.
    pub const CLASH: u32 = 1 << 4;
    /// Accounting was off when it began: its counters are 0 whatever it moved.
    pub const UNCOUNTED: u32 = 1 << 5;
}

/// One look at a connection, as it crosses a ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ConnectionRecord {
    /// When it was read (boot time, ns). Of an end: after the entry left the map, so that no sweep that began later
    /// can have seen it.
    pub at_ns: u64,
    pub start_ns: u64,
    pub original: KernelTuple,
    pub reply: KernelTuple,
    /// Packets and bytes of the original direction, packets and bytes of the reply direction.
    pub counters: [u64; 4],
    pub zone: u16,
    /// `enum tcp_conntrack`; meaningless for other protocols.
    pub tcp_state: u8,
    /// [`RecordKind`].
    pub kind: u8,
    /// [`RecordFlags`].
    pub flags: u32,
}
layout!(
    ConnectionRecord,
    size: 136,
    fields: [u64, u64, KernelTuple, KernelTuple, [u64; 4], u16, u8, u8, u32]
);

/// Nothing happens when the kernel fills a conntrack netlink message.
pub const MODE_OFF: u32 = 0;
/// Connections that this thread dumps are adopted.
pub const MODE_ADOPT: u32 = 1;
/// Connections that this thread dumps and that are not in the map enter it, or are reported where it has no room.
pub const MODE_OUTSIDE: u32 = 2;

/// The one entry of `CONTROL`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Control {
    /// Address of the agent's own `struct net`; written by the program `identify`. 0: nothing is ours yet.
    pub netns: u64,
    /// Inode number of that namespace, for user space to compare with `/proc/thread-self/ns/net`.
    pub netns_inum: u64,
    /// Thread that dumps, as the initial pid namespace numbers it; written by `identify`.
    pub thread: u32,
    /// One of the `MODE_` constants.
    pub mode: u32,
}
layout!(Control, size: 24, fields: [u64, u64, u32, u32]);

/// Connections in one shard of `CONNECTIONS`: what one run of `sweep` reads. At a measured 0.4 to 0.7 us each, most of it
/// memory that no cache has, a run stays well below 2 ms; with 4096 it was 2.6 ms.
pub const SHARD_CAPACITY: usize = 1024;

/// Bytes of `struct nf_conn` that the programs read in one go; all fields used must lie inside.
pub const WINDOW_BYTES: usize = 256;

/// The shard of a connection. Both sides must agree. `shards` below 2^32.
#[inline(always)]
pub fn shard_of(address: u64, shards: u64) -> u32 {
    // Fibonacci hashing of the address without the bits that alignment leaves zero, then a range reduction.
    let hash = (address >> 6).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    ((hash.wrapping_mul(shards)) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_in_range_and_even() {
        // Addresses as a slab hands them out: 256 bytes apart, and with gaps between pages.
        let shards = 64;
        let mut counts = [0_u32; 64];
        for i in 0..(64 * 1024_u64) {
            let address = 0xffff_8881_0000_0000 + i * 256 + (i / 16) * 4096;
            counts[shard_of(address, shards) as usize] += 1;
        }
        assert!(counts.iter().all(|&n| (900..1150).contains(&n)), "{counts:?}");
    }

    #[test]
    fn a_tuple_survives_its_bytes() {
        let mut bytes = [0; 40];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = i as u8;
        }
        assert_eq!(KernelTuple::from_bytes(bytes).bytes(), bytes);
    }
}
