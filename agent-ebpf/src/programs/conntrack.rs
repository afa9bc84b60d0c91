//! Connections: their start, their end, and the sweep over the live ones. Nothing here runs per packet.
//!
//! In: `struct nf_conn` of the kernel, read in one go. Out: `ConnectionRecord`s, ends into the ring `ENDS`, sweeps into
//! `SWEPT`, and what found no room into `TOMBSTONES`. What always holds:
//! - an end leaves the map before its record is made, so a sweep that begins after a record was read never reports that
//!   connection again, and records sorted by `at_ns` are in the true order;
//! - an end is reported from the `nf_conn` itself whether or not the map holds it;
//! - conntrack reuses memory (SLAB_TYPESAFE_BY_RCU): each read compares the tuple, each mismatch is counted;
//! - whatever is not reported has a slot in `STATS`.
//!
//! Not here: deltas, names, and who is told (the agent).

use core::ffi::c_void;

use aya_ebpf::{
    bindings::BPF_ANY,
    btf_maps::{HashMap, PerCpuArray, RingBuf},
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_smp_processor_id,
        generated::{bpf_for_each_map_elem, bpf_ringbuf_output, bpf_ringbuf_query},
    },
    macros::{btf_map, kprobe},
    programs::{ProbeContext, RawTracePointContext},
};
use flowlogd_ebpf::{
    ABSENT, Connection, ConnectionRecord, KernelTuple, MODE_ADOPT, MODE_OUTSIDE, RecordFlags, RecordKind,
    Stat, WINDOW_BYTES, shard_of,
};

use super::hashes::{Hash, Hashes};
use super::{CONTROL, add, boot_ns, count, own_netns, read, setting};

/// One slice of the live connections, keyed by the address of the `nf_conn`. Preallocated, never LRU.
type Shard = Hash<u64, Connection>;

/// The shards; the agent puts `Settings::shards` maps into it.
#[btf_map]
static CONNECTIONS: Hashes<{ size_of::<u64>() }, { size_of::<Connection>() }> = Hashes::new();

/// Final records, and what a dump finds outside the map.
#[btf_map]
static ENDS: RingBuf<ConnectionRecord, 4194304> = RingBuf::new();

/// Records of sweeps. A whole shard fits, and user space drains it between shards.
#[btf_map]
static SWEPT: RingBuf<ConnectionRecord, 1048576> = RingBuf::new();

/// Final records that found `ENDS` full, under keys that never repeat: an address may be reused before they are read.
#[btf_map]
static TOMBSTONES: HashMap<u64, ConnectionRecord, 8192> = HashMap::new();

#[repr(C)]
#[derive(Clone, Copy)]
struct Scratch {
    window: [u8; WINDOW_BYTES],
    record: ConnectionRecord,
}

/// Working memory beyond the 512 bytes of stack: slot 0 for kprobes (they do not nest), slot 1 for test runs (the
/// agent makes one at a time).
#[btf_map]
static SCRATCH: PerCpuArray<Scratch, 2> = PerCpuArray::new();
const KPROBE: u32 = 0;
const TEST_RUN: u32 = 1;

const IPS_CONFIRMED: u64 = 1 << 3;
const IPS_DYING: u64 = 1 << 9;
const IPS_NAT_CLASH: u64 = 1 << 12;
const BPF_RB_NO_WAKEUP: u64 = 1;
const BPF_RB_AVAIL_DATA: u64 = 0;

/// A `struct nf_conn`, as it was at one moment.
struct Conn {
    window: *const u8,
}

impl Conn {
    /// Reads the `nf_conn` at `address` into the slot's window.
    #[inline(always)]
    fn read(address: u64, scratch: *mut Scratch) -> Option<Self> {
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
    fn tuple(&self, offset: u64) -> KernelTuple {
        let word = |i: u64| self.field::<u64>(offset + 8 * i);
        KernelTuple { words: [word(0), word(1), word(2), word(3), word(4)] }
    }

    #[inline(always)]
    fn status(&self) -> u64 {
        self.field(setting!(ct_status))
    }

    #[inline(always)]
    fn references(&self) -> u32 {
        self.field(setting!(ct_use))
    }

    /// Whether it belongs to the agent's network namespace.
    #[inline(always)]
    fn is_ours(&self) -> bool {
        let offset = setting!(ct_net);
        let own = own_netns();
        own != 0 && (offset == ABSENT || self.field::<u64>(offset) == own)
    }

    #[inline(always)]
    fn zone(&self) -> u16 {
        let offset = setting!(ct_zone);
        if offset == ABSENT { 0 } else { self.field(offset) }
    }

    /// Whether the tuple is `original`. Word by word: no call, no loop.
    #[inline(always)]
    fn has_original(&self, original: *const KernelTuple) -> bool {
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
    fn fill(
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

#[inline(always)]
fn shard(address: u64) -> Option<&'static Shard> {
    CONNECTIONS.get(shard_of(address, setting!(shards)))
}

/// Sends a record that must not get lost: into the ring, or else among the tombstones.
#[inline(always)]
fn deliver(record: *const ConnectionRecord) {
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
fn deliver_stale(entry: &Connection, scratch: *mut Scratch) {
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
unsafe fn stale_record(record: *mut ConnectionRecord, entry: &Connection) {
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
fn enter(address: u64, conn: &Conn, scratch: *mut Scratch, adopted: u16) -> bool {
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

/// `__nf_conntrack_confirm(skb)`: the first packet of a connection is through, its entry is about to enter the table. It
/// may yet fail to (an insertion clash); then `nf_conntrack_free` takes it out again.
#[kprobe]
pub fn conntrack_confirm(ctx: ProbeContext) -> u32 {
    let Some(skb) = ctx.arg::<u64>(0) else { return 0 };
    let Some(nfct) = read::<u64>(skb, setting!(skb_nfct)) else {
        count(Stat::ReadFailed);
        return 0;
    };
    let address = nfct & !7;
    if address == 0 {
        return 0;
    }
    start(address)
}

/// `nf_conntrack_hash_check_insert(ct)`: an entry that was not made by a packet (conntrackd, a BPF program).
#[kprobe]
pub fn conntrack_insert(ctx: ProbeContext) -> u32 {
    let Some(address) = ctx.arg::<u64>(0) else { return 0 };
    start(address)
}

#[inline(always)]
fn start(address: u64) -> u32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(KPROBE) else { return 0 };
    let Some(conn) = Conn::read(address, scratch) else {
        count(Stat::ReadFailed);
        return 0;
    };
    if conn.status() & IPS_CONFIRMED != 0 {
        return 0;
    }
    if !conn.is_ours() {
        count(Stat::OtherNetns);
        return 0;
    }
    count(Stat::Confirmed);
    if !enter(address, &conn, scratch, 0) {
        count(Stat::Overflow);
    }
    0
}

/// `nf_conntrack_free(ct)`: the last moment at which the counters can be read.
#[kprobe]
pub fn conntrack_free(ctx: ProbeContext) -> u32 {
    let Some(address) = ctx.arg::<u64>(0) else { return 0 };
    let Some(scratch) = SCRATCH.get_ptr_mut(KPROBE) else { return 0 };
    let Some(conn) = Conn::read(address, scratch) else {
        count(Stat::ReadFailed);
        return 0;
    };
    if !conn.is_ours() {
        return 0;
    }
    let mut flags = 0;
    let mut start_ns = 0;
    if let Some(shard) = shard(address) {
        if let Some(entry) = shard.get_ptr(&address) {
            // SAFETY: a live map value; nobody else removes or replaces the entry of a connection that still exists.
            let entry = unsafe { *entry };
            if !shard.remove(&address) {
                count(Stat::RemoveFailed);
            }
            if conn.has_original(&raw const entry.original) {
                start_ns = entry.start_ns;
                flags = RecordFlags::IN_MAP;
                if entry.announced_ns == entry.start_ns {
                    flags |= RecordFlags::ANNOUNCED;
                }
                if entry.adopted != 0 {
                    flags |= RecordFlags::ADOPTED;
                }
            } else {
                count(Stat::Stale);
                deliver_stale(&entry, scratch);
            }
        }
    }
    // SAFETY: `scratch` is a live slot of SCRATCH.
    let record = unsafe { &raw mut (*scratch).record };
    conn.fill(record, RecordKind::End, boot_ns(), start_ns, flags);
    deliver(record);
    0
}

/// `ctnetlink_fill_info(skb, portid, seq, type, ct, ..)`: while the agent's own thread dumps the table, each connection
/// passes here with its address.
#[kprobe]
pub fn conntrack_dump(ctx: ProbeContext) -> u32 {
    let Some(mode) = dump_mode() else { return 0 };
    let Some(address) = ctx.arg::<u64>(4) else { return 0 };
    dumped(address, mode)
}

/// `nf_ct_port_tuple_to_nlattr(skb, tuple)` and its like for ICMP, for kernels in which the compiler has changed
/// `ctnetlink_fill_info`: the tuple is a part of the connection. Each connection passes twice, once a direction.
#[kprobe]
pub fn conntrack_dump_tuple(ctx: ProbeContext) -> u32 {
    let Some(mode) = dump_mode() else { return 0 };
    let Some(tuple) = ctx.arg::<u64>(1) else { return 0 };
    // The last byte of the tuple is its direction.
    match read::<u8>(tuple, 39) {
        Some(0) => dumped(tuple.wrapping_sub(setting!(ct_original)), mode),
        _ => 0,
    }
}

/// What to do with a dumped connection, if it is the agent that dumps.
#[inline(always)]
fn dump_mode() -> Option<u32> {
    let (thread, mode) = match CONTROL.get(0) {
        Some(control) => (control.thread, control.mode),
        None => return None,
    };
    let wanted = mode == MODE_ADOPT || mode == MODE_OUTSIDE;
    (wanted && bpf_get_current_pid_tgid() as u32 == thread).then_some(mode)
}

#[inline(always)]
fn dumped(address: u64, mode: u32) -> u32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(KPROBE) else { return 0 };
    let Some(conn) = Conn::read(address, scratch) else {
        count(Stat::ReadFailed);
        return 0;
    };
    let status = conn.status();
    if !conn.is_ours() || status & IPS_CONFIRMED == 0 || status & (IPS_DYING | IPS_NAT_CLASH) != 0 {
        return 0;
    }
    if let Some(shard) = shard(address) {
        if let Some(entry) = shard.get_ptr(&address) {
            // SAFETY: a live map value.
            if conn.has_original(unsafe { &raw const (*entry).original }) {
                return 0;
            }
        }
    }
    let adopt = mode == MODE_ADOPT;
    if enter(address, &conn, scratch, u16::from(adopt)) {
        // The next sweep tells of it.
        count(if adopt { Stat::Adopted } else { Stat::Recovered });
        return 0;
    }
    let mut flags = 0;
    if adopt {
        count(Stat::Adopted);
        count(Stat::Overflow);
        flags = RecordFlags::ADOPTED;
    }
    // SAFETY: `scratch` is a live slot of SCRATCH.
    let record = unsafe { &raw mut (*scratch).record };
    conn.fill(record, RecordKind::Outside, boot_ns(), 0, flags);
    deliver(record);
    0
}

/// What a run of the sweep carries from entry to entry.
#[repr(C)]
struct Run {
    at_ns: u64,
    /// Entries whose connection is there.
    found: u32,
    full: u32,
}

/// Reports one live connection.
#[inline(always)]
fn visit(address: u64, entry: *mut Connection, run: &mut Run, shard: &Shard) {
    let Some(scratch) = SCRATCH.get_ptr_mut(TEST_RUN) else { return };
    // SAFETY: `entry` is a live map value. A preallocated entry may be reused for another connection while we look:
    // everything read here is checked against the `nf_conn` and, where that differs, against a fresh lookup.
    let seen = unsafe { *entry };
    let conn = Conn::read(address, scratch);
    let matches = match &conn {
        Some(conn) => conn.has_original(&raw const seen.original) && conn.is_ours(),
        None => false,
    };
    if !matches {
        // Reused memory, or an entry reused under our feet: only what the map holds now can tell.
        let Some(current) = shard.get_ptr(&address) else { return };
        // SAFETY: a live map value.
        let current = unsafe { *current };
        if current.start_ns != seen.start_ns {
            return;
        }
        close_unseen(address, &seen, shard, Stat::Stale);
        return;
    }
    let Some(conn) = conn else { return };
    run.found += 1;
    if conn.references() == 0 {
        // About to be freed: its end is on the way. Still here at a later sweep: its end was missed.
        if seen.suspect_ns == 0 {
            // SAFETY: a live map value; only sweeps write this word, one at a time.
            unsafe { (*entry).suspect_ns = run.at_ns };
        } else if seen.suspect_ns != run.at_ns {
            close_unseen(address, &seen, shard, Stat::MissedFree);
        }
        return;
    }
    let status = conn.status();
    if status & IPS_CONFIRMED == 0 || status & IPS_NAT_CLASH != 0 {
        // Not in the table (yet), or the twin of another entry with the same identity: its end will tell.
        return;
    }
    let Some(mut room) = SWEPT.reserve(0) else {
        count(Stat::SweepRingFull);
        run.full = 1;
        return;
    };
    let record: *mut ConnectionRecord = room.as_mut_ptr();
    let mut flags = RecordFlags::IN_MAP;
    if seen.announced_ns == seen.start_ns {
        flags |= RecordFlags::ANNOUNCED;
    } else {
        // SAFETY: a live map value; see `Connection::announced_ns` for why a late write is harmless.
        unsafe { (*entry).announced_ns = seen.start_ns };
    }
    if seen.adopted != 0 {
        flags |= RecordFlags::ADOPTED;
    }
    conn.fill(record, RecordKind::Live, run.at_ns, seen.start_ns, flags);
    room.submit(BPF_RB_NO_WAKEUP);
}

/// Takes an entry out whose connection is gone, and says so if anybody was told of it.
#[inline(always)]
fn close_unseen(address: u64, entry: &Connection, shard: &Shard, why: Stat) {
    if entry.announced_ns == entry.start_ns {
        let Some(mut room) = SWEPT.reserve(0) else {
            // Stays in the map for the next sweep.
            count(Stat::SweepRingFull);
            return;
        };
        // SAFETY: a reserved ring entry.
        unsafe { stale_record(room.as_mut_ptr(), entry) };
        room.submit(BPF_RB_NO_WAKEUP);
    }
    count(why);
    if !shard.remove(&address) {
        count(Stat::RemoveFailed);
    }
}

/// The callback of `sweep`: the kernel calls it for each entry; 0 goes on, 1 stops.
unsafe extern "C" fn visit_entry(
    map: *mut c_void,
    key: *const u64,
    entry: *mut Connection,
    run: *mut Run,
) -> i64 {
    // SAFETY: the kernel passes the map, a key, a value and the context that `sweep` gave, all live for this call.
    let (address, run, shard) = unsafe { (*key, &mut *run, &*map.cast::<Shard>()) };
    visit(address, entry, run, shard);
    // The verifier must see that it is 0 or 1.
    if run.full != 0 { 1 } else { 0 }
}

/// Reports every live connection of the shard whose number is the first argument. Returns how many entries it found
/// to be connections, or a negative error number. Runs by BPF_PROG_TEST_RUN: in the agent's own thread, under RCU.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp")]
pub extern "C" fn sweep(ctx: *mut c_void) -> i32 {
    let ctx = RawTracePointContext::new(ctx);
    let Some(shard): Option<&Shard> = CONNECTIONS.get(ctx.arg::<u32>(0)) else { return -2 };
    let mut run = Run { at_ns: boot_ns(), found: 0, full: 0 };
    // SAFETY: the callback has the signature that the kernel expects of this map; `run` outlives the call.
    let result = unsafe {
        bpf_for_each_map_elem(shard.as_ptr(), visit_entry as *mut c_void, (&raw mut run).cast(), 0)
    };
    if result < 0 { result as i32 } else { run.found as i32 }
}

/// For kernels without callbacks: reports the connections whose addresses are its arguments (0: none), up to 12.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp")]
pub extern "C" fn sweep_entries(ctx: *mut c_void) -> i32 {
    let ctx = RawTracePointContext::new(ctx);
    // The context can only be read at constant offsets, hence not in the loop.
    let addresses: [u64; 12] = [
        ctx.arg(0),
        ctx.arg(1),
        ctx.arg(2),
        ctx.arg(3),
        ctx.arg(4),
        ctx.arg(5),
        ctx.arg(6),
        ctx.arg(7),
        ctx.arg(8),
        ctx.arg(9),
        ctx.arg(10),
        ctx.arg(11),
    ];
    let mut run = Run { at_ns: boot_ns(), found: 0, full: 0 };
    for address in addresses {
        if address == 0 {
            continue;
        }
        let Some(shard) = shard(address) else { continue };
        let Some(entry) = shard.get_ptr_mut(&address) else { continue };
        visit(address, entry, &mut run, shard);
    }
    run.found as i32
}
