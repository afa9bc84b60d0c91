//! One `struct nf_conn`, read in one go.
//!
//! In: its address, and the offsets in the settings. Out: [`Conn`], from which records are filled. What always holds: a
//! field is taken at an offset that the verifier knows as a constant, from memory that is ours. Conntrack reuses memory
//! (SLAB_TYPESAFE_BY_RCU): a `Conn` may be another connection than the caller means until its tuple was compared. Not
//! here: maps of connections.

use core::ffi::c_void;

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use flowlogd_ebpf::{ABSENT, ConnectionRecord, KernelTuple, RecordFlags, RecordKind, WINDOW_BYTES};

use super::{own_netns, read, setting};

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Scratch {
    window: [u8; WINDOW_BYTES],
    pub record: ConnectionRecord,
}

/// Working memory beyond the 512 bytes of stack: slot 0 for kprobes (they do not nest), slot 1 for test runs (the
/// agent makes one at a time).
#[btf_map]
pub static SCRATCH: PerCpuArray<Scratch, 2> = PerCpuArray::new();
pub const KPROBE: u32 = 0;
pub const TEST_RUN: u32 = 1;

pub const IPS_CONFIRMED: u64 = 1 << 3;
pub const IPS_DYING: u64 = 1 << 9;
pub const IPS_NAT_CLASH: u64 = 1 << 12;

/// A `struct nf_conn`, as it was at one moment.
pub struct Conn {
    window: *const u8,
}

impl Conn {
    /// Reads the `nf_conn` at `address` into the slot's window.
    #[inline(always)]
    pub fn read(address: u64, scratch: *mut Scratch) -> Option<Self> {
        let size = setting!(ct_read);
        if size == 0 || size > WINDOW_BYTES as u64 {
            return None;
        }
        // SAFETY: `scratch` is a live slot of SCRATCH, of which the window is WINDOW_BYTES long, and `size` is at most that.
        // The helper checks the source.
        let (window, result) = unsafe {
            let window = (&raw mut (*scratch).window).cast::<u8>();
            let result = aya_ebpf::helpers::generated::bpf_probe_read_kernel(
                window.cast(),
                size as u32,
                address as *const c_void,
            );
            (window, result)
        };
        (result == 0).then_some(Self { window })
    }

    /// A field at a constant offset. The offsets come from a frozen map: the verifier knows and checks them.
    #[inline(always)]
    fn field<T: Copy>(&self, offset: u64) -> T {
        // SAFETY: user space refuses offsets outside the window, and the verifier checks each of them again.
        unsafe { self.window.add(offset as usize).cast::<T>().read_unaligned() }
    }

    #[inline(always)]
    pub fn tuple(&self, offset: u64) -> KernelTuple {
        let word = |i: u64| self.field::<u64>(offset + 8 * i);
        KernelTuple { words: [word(0), word(1), word(2), word(3), word(4)] }
    }

    #[inline(always)]
    pub fn status(&self) -> u64 {
        self.field(setting!(ct_status))
    }

    #[inline(always)]
    pub fn references(&self) -> u32 {
        self.field(setting!(ct_use))
    }

    /// Whether it belongs to the agent's network namespace.
    #[inline(always)]
    pub fn is_ours(&self) -> bool {
        let offset = setting!(ct_net);
        let own = own_netns();
        own != 0 && (offset == ABSENT || self.field::<u64>(offset) == own)
    }

    #[inline(always)]
    pub fn zone(&self) -> u16 {
        let offset = setting!(ct_zone);
        if offset == ABSENT { 0 } else { self.field(offset) }
    }

    /// Whether the tuple is `original`. Word by word: no call, no loop.
    #[inline(always)]
    pub fn has_original(&self, original: *const KernelTuple) -> bool {
        let at = setting!(ct_original);
        // SAFETY: the caller's pointer is to a live map value.
        let words = unsafe { (*original).words };
        self.field::<u64>(at) == words[0]
            && self.field::<u64>(at + 8) == words[1]
            && self.field::<u64>(at + 16) == words[2]
            && self.field::<u64>(at + 24) == words[3]
            && self.field::<u64>(at + 32) == words[4]
    }

    /// Packets and bytes of both directions; `None`: accounting was off when it began.
    #[inline(always)]
    fn counters(&self) -> Option<[u64; 4]> {
        let ext: u64 = self.field(setting!(ct_ext));
        if ext == 0 {
            return None;
        }
        let offset = read::<u8>(ext, setting!(ext_acct))?;
        if offset == 0 {
            return None;
        }
        read::<[u64; 4]>(ext, u64::from(offset))
    }

    /// Fills a record; `start_ns` and the flags of the map entry are the caller's.
    #[inline(always)]
    pub fn fill(
        &self,
        record: *mut ConnectionRecord,
        kind: RecordKind,
        at_ns: u64,
        start_ns: u64,
        mut flags: u32,
    ) {
        let status = self.status();
        if status & IPS_CONFIRMED != 0 {
            flags |= RecordFlags::CONFIRMED;
        }
        if status & IPS_NAT_CLASH != 0 {
            flags |= RecordFlags::CLASH;
        }
        let counters = self.counters().unwrap_or_else(|| {
            flags |= RecordFlags::UNCOUNTED;
            [0; 4]
        });
        // SAFETY: `record` is a live slot of SCRATCH or a reserved ring entry, exclusively ours, of this size.
        unsafe {
            (*record).at_ns = at_ns;
            (*record).start_ns = start_ns;
            (*record).original = self.tuple(setting!(ct_original));
            (*record).reply = self.tuple(setting!(ct_reply));
            (*record).counters = counters;
            (*record).zone = self.zone();
            (*record).tcp_state = self.field(setting!(ct_tcp_state));
            (*record).kind = kind as u8;
            (*record).flags = flags;
        }
    }
}
