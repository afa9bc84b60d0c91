//! What the kernel side and the user side of flowlogd share: the layouts of the maps, and the built objects.
//!
//! In: nothing. Out: `#[repr(C)]` types, one topic a file, and [`object`], the eBPF object for the architecture
//! that this crate was compiled for. What always holds: no type has padding (asserted when compiling, both for the
//! host and for BPF), every field is a plain number in the kernel's byte order unless its doc says otherwise, so any
//! bit pattern is a valid value. Not here: programs (`programs/`, compiled only for BPF), loading (the agent).
#![no_std]

mod connection;
mod drop;
#[cfg(not(target_arch = "bpf"))]
mod objects;
mod offsets;
mod socket;
mod stats;

pub use connection::{
    Connection, ConnectionRecord, Control, KernelTuple, MODE_ADOPT, MODE_OFF, MODE_OUTSIDE, RecordFlags,
    RecordKind, SHARD_CAPACITY, WINDOW_BYTES, shard_of,
};
pub use drop::{DropCount, DropKey, OLD_FILTER_REASON, REASON_SLOTS, REASON_SUBSYSTEM_BASE};
#[cfg(not(target_arch = "bpf"))]
pub use objects::{OBJECT_AARCH64, OBJECT_X86_64, object};
pub use offsets::{ABSENT, Settings};
pub use socket::{
    ARGS_BYTES, ARGS_UNREAD, Listener, ListenerKey, PART_BYTES, PATH_PARTS, ProcessKey, ProcessRecord,
    SOCKET_SHARD_CAPACITY, Socket, SocketFlags, SocketKind, SocketRecord, SocketSettings, TcpStats,
};
pub use stats::{STATS_SLOTS, Stat, slot};

/// Asserts the size of a shared type, and that its fields fill it: no padding means no uninitialised byte crosses.
macro_rules! layout {
    ($type:ty, size: $size:expr, fields: [$($field:ty),+ $(,)?]) => {
        const _: () = assert!(size_of::<$type>() == $size);
        const _: () = assert!($(size_of::<$field>() +)+ 0 == $size, "a shared type must have no padding");
        #[cfg(feature = "user")]
        // SAFETY: `repr(C)`, no padding (asserted above), and only integers and arrays of integers inside:
        // every byte is initialised and every bit pattern is a valid value.
        unsafe impl aya::Pod for $type {}
    };
}
pub(crate) use layout;
