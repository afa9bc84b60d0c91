//! Connections: their start, their end, and those that exist when the agent begins. Nothing here runs per packet.
//!
//! In: the kernel's own calls (kprobes). Out: entries of `CONNECTIONS`, final records. What always holds:
//! - an end leaves the map before its record is made, so a sweep that begins after a record was read never reports that
//!   connection again, and records sorted by `at_ns` are in the true order;
//! - an end is reported from the `nf_conn` itself whether or not the map holds it;
//! - whatever is not reported has a slot in `STATS`.
//!
//! Not here: deltas, names, and who is told (the agent).

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, macros::kprobe, programs::ProbeContext};
use flowlogd_ebpf::{MODE_ADOPT, MODE_OUTSIDE, RecordFlags, RecordKind, Stat};

use super::nf_conn::{Conn, IPS_CONFIRMED, IPS_DYING, IPS_NAT_CLASH, KPROBE, SCRATCH};
use super::records::{deliver, deliver_stale, enter, shard};
use super::{CONTROL, boot_ns, count, read, setting};

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
