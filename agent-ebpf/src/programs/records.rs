//! Where connections are kept and how they are told of: the shards, the rings, the tombstones.
//!
//! In: filled records. Out: the maps that user space reads. What always holds: a final record is in the ring, among the
//! tombstones, or in the counts of what was lost, with its packets and bytes. Not here: when (`conntrack.rs`, `sweep.rs`).

use aya_ebpf::{
    bindings::BPF_ANY,
    btf_maps::{HashMap, RingBuf},
    helpers::{
        bpf_get_smp_processor_id,
        generated::{bpf_ringbuf_output, bpf_ringbuf_query},
    },
    macros::btf_map,
};
use flowlogd_ebpf::{Connection, ConnectionRecord, KernelTuple, RecordFlags, RecordKind, Stat, shard_of};

use super::hashes::{Hash, Hashes};
use super::nf_conn::{Conn, Scratch};
use super::{add, boot_ns, count, setting};

/// One slice of the live connections, keyed by the address of the `nf_conn`. Preallocated, never LRU.
pub type Shard = Hash<u64, Connection>;

/// The shards; the agent puts `Settings::shards` maps into it.
#[btf_map]
pub static CONNECTIONS: Hashes<{ size_of::<u64>() }, { size_of::<Connection>() }> = Hashes::new();

/// Final records, and what a dump finds outside the map.
#[btf_map]
static ENDS: RingBuf<ConnectionRecord, 4194304> = RingBuf::new();

/// Records of sweeps. A whole shard fits, and user space drains it between shards.
#[btf_map]
pub static SWEPT: RingBuf<ConnectionRecord, 1048576> = RingBuf::new();

/// Final records that found `ENDS` full, under keys that never repeat: an address may be reused before they are read.
#[btf_map]
static TOMBSTONES: HashMap<u64, ConnectionRecord, 8192> = HashMap::new();

pub const BPF_RB_NO_WAKEUP: u64 = 1;
const BPF_RB_AVAIL_DATA: u64 = 0;

#[inline(always)]
pub fn shard(address: u64) -> Option<&'static Shard> {
    CONNECTIONS.get(shard_of(address, setting!(shards)))
}

/// Sends a record that must not get lost: into the ring, or else among the tombstones.
#[inline(always)]
pub fn deliver(record: *const ConnectionRecord) {
    // SAFETY: maps and the record are live; sizes are those of the record.
    let failed = unsafe {
        let ring = (&raw const ENDS).cast_mut().cast();
        let waiting = bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA);
        let flags = if waiting < setting!(wake_bytes) { BPF_RB_NO_WAKEUP } else { 0 };
        bpf_ringbuf_output(ring, record.cast_mut().cast(), size_of::<ConnectionRecord>() as u64, flags) != 0
    };
    if !failed {
        count(Stat::Ends);
        return;
    }
    // Unique: two records cannot be made on one CPU within a nanosecond.
    // SAFETY: the helper has no preconditions.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let key = (boot_ns() << 10) | u64::from(cpu & 1023);
    // SAFETY: `record` points to a live slot of SCRATCH.
    if TOMBSTONES.insert(key, unsafe { &*record }, u64::from(BPF_ANY)).is_ok() {
        count(Stat::Tombstones);
        return;
    }
    // SAFETY: as above.
    let counters = unsafe { (*record).counters };
    count(Stat::EndsLost);
    add(Stat::EndsLostPackets, counters[0] + counters[2]);
    add(Stat::EndsLostBytes, counters[1] + counters[3]);
}

/// Reports that the connection an entry stands for is gone unseen.
#[inline(always)]
pub fn deliver_stale(entry: &Connection, scratch: *mut Scratch) {
    if entry.announced_ns != entry.start_ns {
        // Nobody was told of it: there is nothing to close. The caller has counted it.
        return;
    }
    // SAFETY: `scratch` is a live slot of SCRATCH.
    let record = unsafe { &raw mut (*scratch).record };
    // SAFETY: as above.
    unsafe { stale_record(record, entry) };
    deliver(record);
}

/// # Safety
/// `record` must be a live slot of SCRATCH or a reserved ring entry.
#[inline(always)]
pub unsafe fn stale_record(record: *mut ConnectionRecord, entry: &Connection) {
    // SAFETY: by contract.
    unsafe {
        (*record).at_ns = boot_ns();
        (*record).start_ns = entry.start_ns;
        (*record).original = entry.original;
        (*record).reply = KernelTuple { words: [0; 5] };
        (*record).counters = [0; 4];
        (*record).zone = entry.zone;
        (*record).tcp_state = 0;
        (*record).kind = RecordKind::Stale as u8;
        (*record).flags = RecordFlags::IN_MAP | RecordFlags::ANNOUNCED;
    }
}

/// Enters a connection into its shard; false: there is no room. What stood under this address is gone unseen.
#[inline(always)]
pub fn enter(address: u64, conn: &Conn, scratch: *mut Scratch, adopted: u16) -> bool {
    let Some(shard) = shard(address) else { return false };
    if let Some(old) = shard.get_ptr(&address) {
        // SAFETY: a live map value; it can be replaced only by this function for the same address.
        let old = unsafe { *old };
        if conn.has_original(&raw const old.original) {
            return true;
        }
        count(Stat::Stale);
        deliver_stale(&old, scratch);
    }
    let entry = Connection {
        start_ns: boot_ns(),
        announced_ns: 0,
        suspect_ns: 0,
        original: conn.tuple(setting!(ct_original)),
        zone: conn.zone(),
        adopted,
        spare: 0,
    };
    shard.insert(&address, &entry, BPF_ANY)
}
