//! The sweep over the live connections, run by BPF_PROG_TEST_RUN in the agent's own thread.
//!
//! In: the entries of one shard. Out: a record of each into `SWEPT`. What always holds: each read compares the tuple; an
//! entry whose connection is gone (its memory reused, or freed for longer than a sweep) is closed and counted; one run is
//! one shard, so that it stays below 2 ms. Not here: pace and order of the shards (the agent).

use core::ffi::c_void;

use aya_ebpf::{helpers::generated::bpf_for_each_map_elem, programs::RawTracePointContext};
use flowlogd_ebpf::{Connection, ConnectionRecord, RecordFlags, RecordKind, Stat};

use super::nf_conn::{Conn, IPS_CONFIRMED, IPS_NAT_CLASH, SCRATCH, TEST_RUN};
use super::records::{BPF_RB_NO_WAKEUP, CONNECTIONS, SWEPT, Shard, shard, stale_record};
use super::{boot_ns, count};

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
